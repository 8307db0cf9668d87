//! A log that takes no more lines: a pipe that nobody reads, a file on a full
//! file system, a terminal whose output was stopped.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use front_end::{LIMIT, wait_readable};
use rig::program::run;
use tempfile::TempDir;

/// Which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pipe,
    FullDisk,
    Terminal,
}

/// What a pipe takes.
const PIPE: usize = 65536;
/// The size of a page, of which the small file system is made.
const PAGE: u64 = 4096;

/// A small file system in memory.
struct Small(TempDir);

impl Small {
    fn new() -> Option<Small> {
        let small = Small(tempfile::tempdir().unwrap());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "small"]);
        match run(mount.arg(small.0.path())) {
            Ok(_) => Some(small),
            Err(reason) => {
                eprintln!("SKIP: no file system in memory: {reason}");
                None
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(self.0.path()));
    }
}

/// A log.
pub enum Log {
    Pipe(PipeReader, PipeWriter),
    FullDisk(SmallLog),
    Terminal { ours: File, theirs: OwnedFd },
}

/// A log on a small file system, and how far it was read.
pub struct SmallLog {
    small: Small,
    file: File,
    read: u64,
}

impl Log {
    /// `None`, with the reason printed, where this host has none.
    pub fn new(kind: Kind) -> Option<Log> {
        Some(match kind {
            Kind::Pipe => {
                let (reader, writer) = std::io::pipe().unwrap();
                Log::Pipe(reader, writer)
            }
            Kind::FullDisk => {
                let small = Small::new()?;
                let file = append(&small.log());
                Log::FullDisk(SmallLog {
                    small,
                    file,
                    read: 0,
                })
            }
            Kind::Terminal => {
                let (ours, theirs) = terminal();
                Log::Terminal { ours, theirs }
            }
        })
    }

    /// What a process is given as its standard error.
    pub fn stderr(&self) -> Stdio {
        match self {
            Log::Pipe(_, writer) => writer.try_clone().unwrap().into(),
            Log::FullDisk(log) => append(&log.small.log()).into(),
            Log::Terminal { theirs, .. } => theirs.try_clone().unwrap().into(),
        }
    }

    /// It takes nothing more, from the next line on.
    pub fn stop(&mut self) {
        match self {
            Log::Pipe(reader, writer) => {
                while is_readable(&*reader) {
                    let _ = reader.read(&mut [0; PIPE]).unwrap();
                }
                writer.write_all(&[b'.'; PIPE]).unwrap();
            }
            Log::FullDisk(log) => {
                let used = log.file.metadata().unwrap().len() % PAGE;
                let rest = usize::try_from(PAGE - used).unwrap();
                log.file.write_all(&vec![b'.'; rest]).unwrap();
                let mut filler = File::create(log.small.filler()).unwrap();
                let full = loop {
                    if let Err(error) = filler.write_all(&[0; 4096]) {
                        break error;
                    }
                };
                assert_eq!(full.kind(), ErrorKind::StorageFull);
            }
            Log::Terminal { theirs, .. } => flow(theirs, libc::TCOOFF),
        }
    }

    /// It takes lines again.
    pub fn resume(&mut self) {
        match self {
            // Whoever reads it makes room.
            Log::Pipe(..) => {}
            Log::FullDisk(log) => std::fs::remove_file(log.small.filler()).unwrap(),
            Log::Terminal { theirs, .. } => flow(theirs, libc::TCOON),
        }
    }

    /// Reads it until it holds `wanted`.
    pub fn wait(&mut self, wanted: &str) {
        let start = Instant::now();
        let mut text = String::new();
        while !text.contains(wanted) {
            assert!(start.elapsed() < LIMIT, "no {wanted:?} in {text}");
            text.push_str(&self.more());
        }
    }

    /// What there is to read, perhaps nothing.
    fn more(&mut self) -> String {
        let mut bytes = vec![0; PIPE];
        let count = match self {
            Log::Pipe(reader, _) if is_readable(&*reader) => reader.read(&mut bytes).unwrap(),
            Log::Terminal { ours, .. } if is_readable(&*ours) => ours.read(&mut bytes).unwrap(),
            Log::FullDisk(log) => {
                let file = File::open(log.small.log()).unwrap();
                let count = file.read_at(&mut bytes, log.read).unwrap();
                log.read += count as u64;
                // A file has no event for that it has grown.
                if count == 0 {
                    std::thread::sleep(Duration::from_millis(10));
                }
                count
            }
            _ => 0,
        };
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }
}

fn append(path: &Path) -> File {
    let mut options = File::options();
    options.append(true).create(true).open(path).unwrap()
}

fn is_readable(file: &impl AsRawFd) -> bool {
    wait_readable(file, Duration::from_millis(10)).is_ok()
}

/// Both ends of a new terminal.
#[allow(unsafe_code)]
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let name = std::ptr::null_mut();
    let (settings, size) = (std::ptr::null(), std::ptr::null());
    // SAFETY: the two numbers outlive the call, which takes no name, settings
    // or size from null pointers.
    let result = unsafe { libc::openpty(&mut ours, &mut theirs, name, settings, size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: fresh descriptors are owned by nobody else.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

/// Stops the output to a terminal, or lets it go on.
#[allow(unsafe_code)]
fn flow(terminal: &OwnedFd, action: libc::c_int) {
    // SAFETY: no memory is involved.
    let result = unsafe { libc::tcflow(terminal.as_raw_fd(), action) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
