//! A log that never holds its caller up: lines go through a queue of fixed
//! size to a thread that writes them, and are dropped while it is full.
//!
//! No thread that serves, guards or answers may wait for a full pipe, a full
//! disk or a stopped terminal, nor for another thread that logs: a line for
//! which there is no room, or whose turn does not come at once, is dropped and
//! counted. Before anything is served, a line waits a little for its turn.
//! Putting a line in allocates nothing.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Lines that may wait.
const LINES: usize = 256;
/// Longest line in bytes; the rest of a longer one is left out.
const LINE: usize = 500;
/// How often a line asks for the queue before it is dropped: others have it
/// for as long as it takes to copy a line.
const TRIES: usize = 10_000;
/// How long it asks while nothing is served yet: whoever has the queue may not
/// have a CPU, and what is said at a start is said once.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Line {
    bytes: [u8; LINE],
    len: usize,
    /// The next one does not go on with it.
    ends: bool,
}

impl Line {
    const EMPTY: Line = Line {
        // Not zeros, so that every page of the queue is there from the start.
        bytes: [b' '; LINE],
        len: 0,
        ends: true,
    };
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE - self.len;
        let mut take = text.len().min(room);
        while !text.is_char_boundary(take) {
            take -= 1;
        }
        self.bytes[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
        Ok(())
    }
}

struct State {
    lines: Box<[Line]>,
    first: usize,
    count: usize,
    /// A line was taken out and is being written.
    writing: bool,
}

/// The queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Lines that nobody has been told of.
    dropped: AtomicU64,
    more: Condvar,
    done: Condvar,
    /// Nothing is served yet, and lines may wait for their turn.
    patient: AtomicBool,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                lines: vec![Line::EMPTY; LINES].into(),
                first: 0,
                count: 0,
                writing: false,
            }),
            dropped: AtomicU64::new(0),
            more: Condvar::new(),
            done: Condvar::new(),
            patient: AtomicBool::new(false),
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether lines may wait for their turn from now on: not once there is
    /// anybody to serve.
    pub(crate) fn be_patient(&self, patient: bool) {
        self.patient.store(patient, Ordering::Relaxed);
    }

    fn lock_soon(&self) -> Option<MutexGuard<'_, State>> {
        let mut since = None;
        loop {
            for _ in 0..TRIES {
                match self.state.try_lock() {
                    Ok(state) => return Some(state),
                    Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                    Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
                }
            }
            if !self.patient.load(Ordering::Relaxed)
                || since.get_or_insert_with(Instant::now).elapsed() > PATIENCE
            {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Puts a line in the queue, or drops it. Never waits. What is longer than
    /// [`LINE`] bytes is cut.
    pub(crate) fn put(&self, line: fmt::Arguments<'_>) {
        self.put_piece(line, true);
    }

    /// Puts a line of any length in the queue, or drops some of it.
    pub(crate) fn put_whole(&self, line: &str) {
        let mut rest = line;
        loop {
            let most = (0..=LINE.min(rest.len())).rev();
            let cut = most.into_iter().find(|&at| rest.is_char_boundary(at));
            let (piece, more) = rest.split_at(cut.unwrap_or(0));
            self.put_piece(format_args!("{piece}"), more.is_empty());
            if more.is_empty() {
                return;
            }
            rest = more;
        }
    }

    fn put_piece(&self, line: fmt::Arguments<'_>, ends: bool) {
        let state = self.lock_soon().filter(|state| state.count < LINES);
        let Some(mut state) = state else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let at = (state.first + state.count) % LINES;
        let slot = &mut state.lines[at];
        slot.len = 0;
        slot.ends = ends;
        // A line never fails to take what fits.
        let _ = slot.write_fmt(line);
        state.count += 1;
        drop(state);
        self.more.notify_one();
    }

    /// Writes one line after the other, for ever. What cannot be written
    /// counts as dropped, and is told as soon as something can.
    pub(crate) fn write_all(&self, mut to: impl Write) -> ! {
        let mut line = Line::EMPTY;
        let mut state = self.lock();
        loop {
            while state.count == 0 {
                state.writing = false;
                self.done.notify_all();
                state = self
                    .more
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            line.clone_from(&state.lines[state.first]);
            state.first = (state.first + 1) % LINES;
            state.count -= 1;
            state.writing = true;
            drop(state);
            if write_line(&mut to, &line).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            } else {
                self.tell_dropped(&mut to);
            }
            state = self.lock();
        }
    }

    /// Writes what is there, where no thread does, until that fails.
    pub(crate) fn write_rest(&self, mut to: impl Write) {
        let mut state = self.lock();
        while state.count > 0 {
            let written = write_line(&mut to, &state.lines[state.first]);
            state.first = (state.first + 1) % LINES;
            state.count -= 1;
            if written.is_err() {
                return;
            }
        }
    }

    fn tell_dropped(&self, to: &mut impl Write) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut line = Line::EMPTY;
        if dropped == 0 {
            return;
        }
        let _ = write!(
            line,
            "extentd: warning: {dropped} lines of the log were dropped"
        );
        if write_line(to, &line).is_err() {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Waits until all lines are written, but no longer than `limit`.
    pub(crate) fn drain(&self, limit: Duration) {
        let until = Instant::now() + limit;
        // A thread that panics while it logs has the queue.
        let Some(mut state) = self.lock_soon() else {
            return;
        };
        while state.count > 0 || state.writing {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.done.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// In one piece, as others may write to the same file.
fn write_line(to: &mut impl Write, line: &Line) -> io::Result<()> {
    let mut bytes = [b'\n'; LINE + 1];
    bytes[..line.len].copy_from_slice(&line.bytes[..line.len]);
    to.write_all(&bytes[..line.len + usize::from(line.ends)])
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    /// Writes to a channel that takes nothing until it is read.
    struct Pipe(mpsc::SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_pipe_holds_nobody_up_and_what_was_dropped_is_told() {
        let queue = Arc::new(Queue::default());
        let (sender, receiver) = mpsc::sync_channel(0);
        let writer = Arc::clone(&queue);
        queue.put(format_args!("first"));
        thread::spawn(move || writer.write_all(Pipe(sender)));
        // The writer has taken the first line when it offers it, and then
        // waits with the second until somebody reads.
        assert_eq!(receiver.recv().unwrap(), b"first\n");
        queue.put(format_args!("line 0"));
        let begun = |queue: &Queue| queue.lock().count == 0;
        while !begun(&queue) {
            thread::yield_now();
        }
        // Nobody reads: this returns all the same.
        for number in 1..LINES + 101 {
            queue.put(format_args!("line {number}"));
        }
        let mut text = String::new();
        while !text.contains("dropped") {
            text.push_str(&String::from_utf8(receiver.recv().unwrap()).unwrap());
        }
        assert!(text.starts_with("line 0\n"), "{text}");
        assert!(text.contains("100 lines"), "{text}");
    }

    #[test]
    fn a_line_does_not_wait_for_another_thread_that_logs() {
        let queue = Queue::default();
        let state = queue.lock();
        queue.put(format_args!("dropped"));
        drop(state);
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 1);
        assert_eq!(queue.lock().count, 0);
    }

    #[test]
    fn before_anything_is_served_a_line_waits_for_its_turn_and_not_for_ever() {
        let queue = Queue::default();
        queue.be_patient(true);
        thread::scope(|scope| {
            let state = queue.lock();
            let line = scope.spawn(|| queue.put(format_args!("kept")));
            // Longer than all tries of one who does not wait.
            thread::sleep(Duration::from_millis(100));
            assert!(!line.is_finished());
            drop(state);
        });
        assert_eq!(queue.lock().count, 1);
        let state = queue.lock();
        queue.put(format_args!("dropped"));
        drop(state);
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 1);
    }

    /// A file on a full disk, until there is room.
    struct Full {
        writes: usize,
        to: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes += 1;
            if self.writes <= 3 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.to.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_could_not_be_written_is_told_when_there_is_room() {
        let queue = Arc::new(Queue::default());
        let (to, receiver) = mpsc::channel();
        let writer = Arc::clone(&queue);
        for number in 0..4 {
            queue.put(format_args!("line {number}"));
        }
        thread::spawn(move || writer.write_all(Full { writes: 0, to }));
        assert_eq!(receiver.recv().unwrap(), b"line 3\n");
        let told = String::from_utf8(receiver.recv().unwrap()).unwrap();
        assert!(told.contains(" 3 lines "), "{told}");
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut line = Line::EMPTY;
        write!(line, "{}\u{fc}end", "x".repeat(LINE - 1)).unwrap();
        assert!(std::str::from_utf8(&line.bytes[..line.len]).is_ok());
        assert!(line.len >= LINE - 1);
    }

    #[test]
    fn a_whole_line_is_longer_than_a_piece() {
        let queue = Arc::new(Queue::default());
        let text = "\u{fc}".repeat(LINE + 1);
        queue.put_whole(&text);
        let (sender, receiver) = mpsc::sync_channel(16);
        let writer = Arc::clone(&queue);
        thread::spawn(move || writer.write_all(Pipe(sender)));
        let mut bytes = Vec::new();
        while bytes.last() != Some(&b'\n') {
            bytes.extend(receiver.recv().unwrap());
        }
        assert_eq!(String::from_utf8(bytes).unwrap(), text + "\n");
    }

    #[test]
    fn draining_waits_for_the_last_line() {
        let queue = Arc::new(Queue::default());
        let (sender, receiver) = mpsc::sync_channel(16);
        let writer = Arc::clone(&queue);
        queue.put(format_args!("one"));
        thread::spawn(move || writer.write_all(Pipe(sender)));
        queue.drain(Duration::from_secs(60));
        assert_eq!(receiver.try_recv().unwrap(), b"one\n");
        // And it does not wait for ever for a writer that there is not.
        let alone = Queue::default();
        alone.put(format_args!("two"));
        alone.drain(Duration::from_millis(1));
    }
}
