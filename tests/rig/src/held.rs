//! A thread of another process that is held where it is.
#![allow(unsafe_code)]

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Holds a thread until it is dropped, as a tracer does.
#[derive(Debug)]
pub struct Held {
    /// Ends the tracer, which has to be one and the same thread.
    release: Option<Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Held {
    /// Holds the thread of that number.
    pub fn thread(thread: i32) -> Self {
        let (release, released) = channel::<()>();
        let (ready, is_ready) = channel();
        let tracer = std::thread::spawn(move || {
            seize(thread).unwrap();
            ready.send(()).unwrap();
            // It ends when the other end is dropped; so does the tracing.
            let _ = released.recv();
        });
        is_ready.recv().unwrap();
        Self {
            release: Some(release),
            tracer: Some(tracer),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release.take();
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}

/// The number of a process' thread of that name.
pub fn thread_named(process: u32, name: &str) -> Option<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?;
    tasks.map_while(Result::ok).find_map(|task| {
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let number = task.file_name().to_str()?.parse().ok();
        number.filter(|_| comm.trim() == name)
    })
}

/// Attaches to a thread and stops it.
fn seize(thread: i32) -> io::Result<()> {
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        // SAFETY: both requests take no pointer that is used.
        if unsafe { libc::ptrace(request, thread, 0, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let mut status = 0;
    // SAFETY: `status` is writable.
    let stopped = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    if stopped != thread {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
