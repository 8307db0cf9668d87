//! Counts what the threads that serve requests allocate: in the steady state,
//! nothing. Says so where there is no memory.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::limits;

/// What the calling thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Other,
    /// It serves rings, and is in nobody's request.
    Worker,
    /// It moves requests on.
    Request,
}

thread_local! {
    // Without a destructor, so that it can be used by an allocator.
    static SCOPE: Cell<Scope> = const { Cell::new(Scope::Other) };
}

static BY_WORKERS: AtomicU64 = AtomicU64::new(0);
static IN_REQUESTS: AtomicU64 = AtomicU64::new(0);

/// How often memory was allocated, since the process has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// By threads that serve rings, for whatever reason: a new session makes
    /// them allocate, a request does not.
    pub by_workers: u64,
    /// Of these, while they moved requests on.
    pub in_requests: u64,
}

/// The counts so far.
pub(crate) fn counts() -> Counts {
    Counts {
        by_workers: BY_WORKERS.load(Ordering::Relaxed),
        in_requests: IN_REQUESTS.load(Ordering::Relaxed),
    }
}

/// From now on the calling thread serves rings.
pub(crate) fn serve_rings() {
    SCOPE.set(Scope::Worker);
}

/// While this lives, the calling thread moves requests on.
#[derive(Debug)]
pub(crate) struct InRequests {
    before: Scope,
}

impl InRequests {
    /// Begins.
    pub(crate) fn begin() -> Self {
        Self {
            before: SCOPE.replace(Scope::Request),
        }
    }
}

impl Drop for InRequests {
    fn drop(&mut self) {
        SCOPE.set(self.before);
    }
}

/// The process has everything that a start takes.
static STARTED: AtomicBool = AtomicBool::new(false);

/// From now on it does not end the process by itself that there is no memory:
/// whoever asks for some may do without. What only the start has used goes back
/// to the host.
pub(crate) fn started() {
    STARTED.store(true, Ordering::Release);
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but what the allocator has that nobody uses.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Bytes without which the C library has no memory for itself.
const LEAST: usize = 256 << 10;

/// Has a start say it also where the C library is the one that has no memory
/// and ends the process: what a new thread needs at first is not asked for
/// here.
pub fn watch_over_start() {
    let handler: extern "C" fn(libc::c_int) = aborted;
    // SAFETY: the handler has the form of one, lives as long as the program,
    // and does only what is safe in a handler (see there).
    unsafe { libc::signal(libc::SIGABRT, handler as *const () as libc::sighandler_t) };
}

/// The process is ending itself, and goes on with that when this returns. Maps,
/// polls, writes and exits, all by system calls.
extern "C" fn aborted(_: libc::c_int) {
    if STARTED.load(Ordering::Acquire) {
        return;
    }
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel likes, is in nobody's way.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), LEAST, access, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        tell_no_memory();
    }
}

/// Says that there is no memory, where that is so. A start ends by it.
fn checked(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        tell_no_memory();
    }
    memory
}

/// Says that there is no memory; a start ends by it. Neither allocates nor
/// waits: a line for which there is no room is not said.
#[cold]
pub(crate) fn tell_no_memory() {
    let mut stderr = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd is there.
    let ready = unsafe { libc::poll(&raw mut stderr, 1, 0) } == 1;
    if ready && stderr.revents & libc::POLLOUT != 0 {
        let line = concat_line(limits::NO_MEMORY);
        // SAFETY: the line is as long as it says. Nothing can be done where it
        // is not written.
        unsafe { libc::write(stderr.fd, line.0.as_ptr().cast(), line.1) };
    }
    if !STARTED.load(Ordering::Acquire) {
        // SAFETY: nothing of the process is used any more.
        unsafe { libc::_exit(1) };
    }
}

/// A line of the process with these words, and its length.
fn concat_line(words: &str) -> ([u8; 256], usize) {
    let mut line = [0; 256];
    let parts = [b"extentd: ", words.as_bytes(), b"\n"];
    let bytes = parts.into_iter().flatten();
    let mut length = 0;
    for (to, from) in line.iter_mut().zip(bytes) {
        *to = *from;
        length += 1;
    }
    (line, length)
}

/// The system's allocator, with counts. `main.rs` makes it the process' own.
#[derive(Debug)]
pub struct Counting;

fn count() {
    // A thread that ends has no scope any more, and serves nothing.
    let scope = SCOPE.try_with(Cell::get).unwrap_or(Scope::Other);
    if scope != Scope::Other {
        BY_WORKERS.fetch_add(1, Ordering::Relaxed);
        if scope == Scope::Request {
            IN_REQUESTS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting
// allocates nothing and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `alloc`.
        checked(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: likewise.
        checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: likewise.
        checked(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: likewise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_threads_that_serve_rings_are_counted_and_requests_apart() {
        let layout = Layout::new::<u64>();
        let allocate = move || {
            // SAFETY: the layout has a size; freed with the same one.
            unsafe { Counting.dealloc(Counting.alloc(layout), layout) };
        };
        // Other tests of this process may count too, but they do not serve.
        std::thread::spawn(move || {
            let start = counts();
            allocate();
            assert_eq!(counts(), start);
            serve_rings();
            allocate();
            assert_eq!(counts().by_workers, start.by_workers + 1);
            let scope = InRequests::begin();
            allocate();
            drop(scope);
            allocate();
            assert_eq!(
                counts(),
                Counts {
                    by_workers: start.by_workers + 3,
                    in_requests: start.in_requests + 1,
                }
            );
        })
        .join()
        .unwrap();
    }
}
