//! Descriptors of all kinds, to be sent along.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use vhost_backend::fuzzing::memory_file;

/// For how long what is left open is waited for.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Fd {
    /// 64 KiB that can be guest memory.
    Memory,
    /// Less than it seems.
    Short,
    Kick,
    Call,
    Socket,
    Pipe,
    Null,
}

pub struct Descriptors {
    memory: File,
    short: File,
    kick: File,
    call: File,
    sockets: (UnixStream, UnixStream),
    pipe: (PipeReader, PipeWriter),
    null: File,
}

fn event() -> File {
    // SAFETY: takes two integers; a fresh descriptor is owned here.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    }
}

impl Descriptors {
    /// With guest memory that begins with these bytes.
    pub fn new(bytes: &[u8]) -> Descriptors {
        let memory = memory_file(0x1_0000);
        let most = bytes.len().min(0x1_0000);
        memory.write_all_at(&bytes[..most], 0).unwrap();
        Descriptors {
            memory,
            short: memory_file(0x1800),
            kick: event(),
            call: event(),
            sockets: UnixStream::pair().unwrap(),
            pipe: std::io::pipe().unwrap(),
            null: File::open("/dev/null").unwrap(),
        }
    }

    pub fn numbers(&self, which: &[Fd]) -> Vec<RawFd> {
        let number = |fd: &Fd| match fd {
            Fd::Memory => self.memory.as_raw_fd(),
            Fd::Short => self.short.as_raw_fd(),
            Fd::Kick => self.kick.as_raw_fd(),
            Fd::Call => self.call.as_raw_fd(),
            Fd::Socket => self.sockets.0.as_raw_fd(),
            Fd::Pipe => self.pipe.0.as_raw_fd(),
            Fd::Null => self.null.as_raw_fd(),
        };
        which.iter().take(40).map(number).collect()
    }

    /// What is guest memory.
    #[allow(dead_code)]
    pub fn memory(&self) -> &File {
        &self.memory
    }

    pub fn kick(&mut self) {
        // The server may have written it full.
        let _ = self.kick.write(&1_u64.to_ne_bytes());
    }
}

/// How many descriptors this process has open.
pub fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// As many are open as `before` again: some are closed by threads of their own, which nobody
/// waits for.
pub fn settle(before: usize) {
    let start = Instant::now();
    while open() != before && start.elapsed() < LIMIT {
        std::thread::yield_now();
    }
    assert_eq!(open(), before, "descriptors are left open");
}
