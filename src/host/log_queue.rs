//! A log that never holds its caller up: lines go through a queue of fixed
//! size to a thread that writes them, and are dropped while it is full.
//!
//! No thread that serves, guards or answers may wait for a full pipe, a full
//! disk or a stopped terminal, nor for another thread that logs: a line for
//! which there is no room, or whose turn does not come at once, is dropped and
//! counted. Before anything is served, a line waits a little for its turn, and
//! there is no limit on how many come; afterwards there is one for each kind.
//! Putting a line in allocates nothing. What a terminal might obey is not
//! written as it is, whoever has chosen it.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use log::Level;

use crate::host::journal;
use crate::host::log_budget::{Budget, Kind};

/// Lines that may wait.
const LINES: usize = 256;
/// Longest line in bytes; the rest of a longer one is left out.
const LINE: usize = 500;
/// How long lines that are left out are counted before that is told.
const GATHER: Duration = Duration::from_secs(10);
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

/// Whether a terminal or a reader of lines might take it for more than a
/// character: controls, ends of lines, changes of the direction of text.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Gives the text in pieces, with what is active escaped.
fn harmless(text: &str, mut add: impl FnMut(&str)) {
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|&(_, c)| is_active(c)) {
        add(&rest[..at]);
        for c in c.escape_default() {
            add(c.encode_utf8(&mut [0; 4]));
        }
        rest = &rest[at + c.len_utf8()..];
    }
    add(rest);
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        harmless(text, |piece| self.add(piece));
        Ok(())
    }
}

impl Line {
    /// As much of it as there is room for.
    fn add(&mut self, text: &str) {
        let room = LINE - self.len;
        let mut take = text.len().min(room);
        while !text.is_char_boundary(take) {
            take -= 1;
        }
        self.bytes[self.len..self.len + take].copy_from_slice(&text.as_bytes()[..take]);
        self.len += take;
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
    /// Nothing is served yet: lines may wait for their turn, however many.
    patient: AtomicBool,
    budget: Budget,
    /// No more lines will come.
    ending: AtomicBool,
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
            budget: Budget::default(),
            ending: AtomicBool::new(false),
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

    /// As [`put`](Self::put), if not too many lines of its kind have come.
    pub(crate) fn put_limited(&self, kind: Kind, line: fmt::Arguments<'_>) {
        if self.patient.load(Ordering::Relaxed) || self.budget.admits(kind) {
            self.put(line);
        } else if self.budget.leave_out() {
            // The thread that writes has to tell that in a while. It has the
            // lock when it looks for what there is to do.
            drop(self.lock_soon());
            self.more.notify_one();
        }
    }

    /// Puts a line in the queue, or drops it. Never waits. What is longer than
    /// [`LINE`] bytes is cut.
    pub(crate) fn put(&self, line: fmt::Arguments<'_>) {
        self.put_piece(line, true);
    }

    /// Puts a line of any length in the queue, or drops some of it.
    pub(crate) fn put_whole(&self, line: &str) {
        // As a whole, so that no escape is cut.
        let mut whole = String::with_capacity(line.len());
        harmless(line, |piece| whole.push_str(piece));
        let mut rest = whole.as_str();
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
        // When what was left out is to be told.
        let mut due: Option<Instant> = None;
        loop {
            if self.budget.has_left_out() {
                let now = Instant::now();
                let at = *due.get_or_insert(now + GATHER);
                if at <= now || (state.count == 0 && self.ending.load(Ordering::Relaxed)) {
                    due = None;
                    state.writing = true;
                    drop(state);
                    self.tell_left_out(&mut to);
                    state = self.lock();
                }
            }
            if state.count == 0 {
                state.writing = false;
                self.done.notify_all();
                state = self.wait(state, due);
                continue;
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

    /// Waits for a line, or until then.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(until) = until else {
            let woken = self.more.wait(state);
            return woken.unwrap_or_else(PoisonError::into_inner);
        };
        let left = until.saturating_duration_since(Instant::now());
        let woken = self.more.wait_timeout(state, left);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    fn tell_left_out(&self, to: &mut impl Write) {
        let count = self.budget.take_left_out();
        let mut line = Line::EMPTY;
        if count == 0 {
            return;
        }
        let _ = write!(
            line,
            "{}extentd: warning: {count} lines of the log were left out: more came than are written",
            journal::mark(Level::Warn)
        );
        if write_line(to, &line).is_ok() {
            // No other line may be admitted for long.
            self.tell_dropped(to);
        } else if !self.ending.load(Ordering::Relaxed) {
            // At the end nobody tries again.
            self.budget.put_back(count);
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
            "{}extentd: warning: {dropped} lines of the log were dropped",
            journal::mark(Level::Warn)
        );
        if write_line(to, &line).is_err() {
            self.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
    }

    /// Waits until all lines are written, but no longer than `limit`.
    pub(crate) fn drain(&self, limit: Duration) {
        let until = Instant::now() + limit;
        self.ending.store(true, Ordering::Relaxed);
        // A thread that panics while it logs has the queue.
        let Some(mut state) = self.lock_soon() else {
            return;
        };
        self.more.notify_one();
        while state.count > 0 || state.writing || self.budget.has_left_out() {
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
mod tests;
