//! A log that never holds its caller up: lines go through a queue of fixed
//! size to a thread that writes them, and are dropped while it is full.
//!
//! A thread that serves a guest's swap must not wait for a full pipe, whose
//! reader may itself wait for memory. Putting a line in allocates nothing.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lines that may wait.
const LINES: usize = 256;
/// Longest line in bytes; the rest of a longer one is left out.
const LINE: usize = 500;

#[derive(Clone)]
struct Line {
    bytes: [u8; LINE],
    len: usize,
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
    dropped: u64,
    /// A line was taken out and is being written.
    writing: bool,
}

/// The queue.
pub struct Queue {
    state: Mutex<State>,
    more: Condvar,
    done: Condvar,
}

impl Default for Queue {
    fn default() -> Self {
        let empty = Line {
            // Not zeros, so that every page of the queue is there from the start.
            bytes: [b' '; LINE],
            len: 0,
        };
        Self {
            state: Mutex::new(State {
                lines: vec![empty; LINES].into(),
                first: 0,
                count: 0,
                dropped: 0,
                writing: false,
            }),
            more: Condvar::new(),
            done: Condvar::new(),
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a line in the queue, or drops it.
    pub fn put(&self, line: fmt::Arguments<'_>) {
        let mut state = self.lock();
        if state.count == LINES {
            state.dropped += 1;
            return;
        }
        let at = (state.first + state.count) % LINES;
        let slot = &mut state.lines[at];
        slot.len = 0;
        // A line never fails to take what fits.
        let _ = slot.write_fmt(line);
        state.count += 1;
        self.more.notify_one();
    }

    /// Writes one line after the other, for ever.
    pub fn write_all(&self, mut to: impl Write) -> ! {
        let mut line = Line {
            bytes: [0; LINE],
            len: 0,
        };
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
            let dropped = std::mem::take(&mut state.dropped);
            drop(state);
            // Where the log is closed, nobody wants to see it.
            let _ = write_line(&mut to, &line, dropped);
            state = self.lock();
        }
    }

    /// Waits until all lines are written, but no longer than `limit`.
    pub fn drain(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.lock();
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

fn write_line(to: &mut impl Write, line: &Line, dropped: u64) -> io::Result<()> {
    to.write_all(&line.bytes[..line.len])?;
    to.write_all(b"\n")?;
    if dropped > 0 {
        writeln!(
            to,
            "extentd: warning: {dropped} lines of the log were dropped"
        )?;
    }
    to.flush()
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
        thread::spawn(move || writer.write_all(Pipe(sender)));
        // Nobody reads: this returns all the same.
        for number in 0..LINES + 100 {
            queue.put(format_args!("line {number}"));
        }
        let mut text = String::new();
        while !text.contains("dropped") {
            text.push_str(&String::from_utf8(receiver.recv().unwrap()).unwrap());
        }
        assert!(text.starts_with("line 0\n"), "{text}");
        // One may have been taken out before the queue was full.
        assert!(
            text.contains("100 lines") || text.contains("99 lines"),
            "{text}"
        );
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut line = Line {
            bytes: [0; LINE],
            len: 0,
        };
        write!(line, "{}\u{fc}end", "x".repeat(LINE - 1)).unwrap();
        assert!(std::str::from_utf8(&line.bytes[..line.len]).is_ok());
        assert!(line.len >= LINE - 1);
    }

    #[test]
    fn draining_waits_for_the_last_line() {
        let queue = Arc::new(Queue::default());
        let (sender, receiver) = mpsc::sync_channel(16);
        let writer = Arc::clone(&queue);
        queue.put(format_args!("one"));
        thread::spawn(move || writer.write_all(Pipe(sender)));
        queue.drain(Duration::from_secs(60));
        assert_eq!(receiver.try_recv().unwrap(), b"one");
        // And it does not wait for ever for a writer that there is not.
        let alone = Queue::default();
        alone.put(format_args!("two"));
        alone.drain(Duration::from_millis(1));
    }
}
