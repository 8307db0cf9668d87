//! The I/O seam: single operations on the image and on the disk under it,
//! given to the kernel in batches.
//!
//! [`uring::Uring`] is for use; [`sync::Sync`] does the same with plain
//! system calls where the host refuses io_uring, and is what tests compare
//! with. Dispatch is static, by [`Any`].

#![allow(unsafe_code)]

pub(crate) mod bounce;
mod entries;
mod inline;
pub(crate) mod limits;
pub(crate) mod manner;
pub(crate) mod pin;
mod polled;
mod probe;
mod ring;
pub(crate) mod sync;
pub(crate) mod uring;
#[cfg(test)]
mod withdrawn_tests;

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use mapping::path::Permit;

use self::manner::Manner;
pub(crate) use self::ring::Features;

/// What an operation is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The image: a regular file or a block device, opened once.
    Image,
    /// The block device under the image's file system.
    Device,
    /// The image by the page cache: what direct I/O does not take at its end.
    Tail,
}

/// The open files of an engine. Both stay open for as long as the engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Files {
    /// The image.
    pub image: RawFd,
    /// How it is read and written.
    pub image_manner: Manner,
    /// The device under it, if raw I/O to it is possible.
    pub device: Option<RawFd>,
    /// How that is read and written.
    pub device_manner: Manner,
    /// The image once more, if its end needs the page cache.
    pub tail: Option<RawFd>,
    /// What keeps others away for as long as it is open, beside the image.
    pub keeper: Option<RawFd>,
}

/// The result of an operation on the device that was not given to the kernel,
/// because that was not allowed any more.
pub(crate) const WITHDRAWN: i32 = -libc::ESTALE;

impl Files {
    fn descriptor(&self, target: Target) -> RawFd {
        match target {
            Target::Image => self.image,
            Target::Device => self.device.unwrap_or(-1),
            Target::Tail => self.tail.unwrap_or(-1),
        }
    }

    /// Something may be polled.
    fn are_polled(&self) -> bool {
        [self.image_manner, self.device_manner].contains(&Manner::Polled)
    }

    /// Only plain reads and writes have a choice.
    fn manner(&self, work: &Work) -> Manner {
        match work {
            Work::Read(target, _)
            | Work::Write {
                target,
                stable: false,
                ..
            } => match target {
                Target::Image => self.image_manner,
                Target::Device => self.device_manner,
                Target::Tail => Manner::Queued,
            },
            _ => Manner::Queued,
        }
    }
}

/// A vector of buffers and where it goes: at most 1024 entries, which stay
/// where they are until the operation has ended.
#[derive(Debug, Clone, Copy)]
pub struct Vector {
    /// The first entry.
    pub iov: *const libc::iovec,
    /// How many.
    pub count: u32,
    /// Byte offset in the target.
    pub offset: u64,
    /// Bytes of all entries together.
    pub bytes: u64,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Read into the buffers.
    Read(Target, Vector),
    /// Write the buffers; with `stable`, to stable storage (`RWF_DSYNC`).
    Write {
        /// Where to.
        target: Target,
        /// What.
        vector: Vector,
        /// Write-through.
        stable: bool,
    },
    /// fdatasync(2).
    Sync(Target),
    /// fallocate(2) on the image.
    Allocate {
        /// `FALLOC_FL_*`.
        mode: i32,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Work {
    /// Bytes that it reads or writes.
    fn bytes(&self) -> u64 {
        match self {
            Self::Read(_, vector) | Self::Write { vector, .. } => vector.bytes,
            Self::Sync(_) | Self::Allocate { .. } => 0,
        }
    }

    /// It reads or writes the device under the image's file system.
    fn is_raw(&self) -> bool {
        matches!(
            self,
            Work::Read(Target::Device, _)
                | Work::Write {
                    target: Target::Device,
                    ..
                }
        )
    }
}

/// A registered buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    base: usize,
    len: usize,
}

impl Slot {
    /// `len` bytes at the address `base`.
    pub(crate) fn new(base: usize, len: usize) -> Slot {
        Slot { base, len }
    }

    /// As an entry for the kernel.
    pub(crate) fn entry(&self) -> libc::iovec {
        libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(self.base),
            iov_len: self.len,
        }
    }

    /// All of `piece` lies in it.
    fn contains(&self, piece: &libc::iovec) -> bool {
        let offset = piece.iov_base.addr().wrapping_sub(self.base);
        offset <= self.len && piece.iov_len <= self.len - offset
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Takes operations, and gives back one result for each.
pub trait Engine {
    /// Queues an operation, to be named by `token` when it has ended.
    ///
    /// # Safety
    /// The entries of a vector, and the memory they name, stay valid until
    /// the operation's result was given by [`completions`](Self::completions).
    unsafe fn push(&mut self, token: u32, work: Work);

    /// Gives all that is queued to the kernel, with at most one system call,
    /// and lets it post what has ended. Reads and writes of the device are
    /// given only by a permit of `may`, which is asked right before; else they
    /// end with [`WITHDRAWN`].
    fn submit(&mut self, may: &mut impl FnMut() -> Option<Permit>);

    /// Something is queued that the kernel does not have.
    fn has_queued(&self) -> bool;

    /// Gives each result once: bytes moved (0 for other operations), or a
    /// negative errno.
    fn completions(&mut self, done: impl FnMut(u32, i32));

    /// [`completions`](Self::completions) may have something to give; costs no
    /// more than a few loads, and a system call while something is polled for.
    fn has_ended(&mut self) -> bool;

    /// How many operations were looked for in place of an interrupt, since
    /// the start.
    fn polled(&self) -> u64 {
        0
    }

    /// Shares the registered buffers of another ring, which has them in the
    /// order of `slots`; operations on memory inside them are cheaper then.
    ///
    /// # Errors
    /// The engine or the kernel cannot.
    fn clone_buffers(&mut self, ring: RawFd, slots: &[Slot]) -> io::Result<()>;

    /// Lets go of what [`clone_buffers`](Self::clone_buffers) has shared;
    /// operations in flight keep what they use.
    fn drop_buffers(&mut self);

    /// From now on each signal of the eventfd `fd` ends a wait, in place of
    /// the one at `index` before. Indices are small. It stays open until the
    /// next call for this `index`.
    fn watch(&mut self, index: usize, fd: Option<RawFd>);

    /// Submits, and sleeps until something has ended, a watched eventfd is
    /// signalled, or `timeout` has passed; may return early.
    fn wait(&mut self, timeout: Option<Duration>, may: &mut impl FnMut() -> Option<Permit>);
}

/// The engine that the host allows.
#[derive(Debug)]
pub enum Any {
    /// io_uring.
    Uring(Box<uring::Uring>),
    /// Plain system calls.
    Sync(sync::Sync),
}

impl Engine for Any {
    unsafe fn push(&mut self, token: u32, work: Work) {
        match self {
            // SAFETY: the caller keeps the promise of `push`.
            Self::Uring(engine) => unsafe { engine.push(token, work) },
            // SAFETY: likewise.
            Self::Sync(engine) => unsafe { engine.push(token, work) },
        }
    }

    fn submit(&mut self, may: &mut impl FnMut() -> Option<Permit>) {
        match self {
            Self::Uring(engine) => engine.submit(may),
            Self::Sync(engine) => engine.submit(may),
        }
    }

    fn has_queued(&self) -> bool {
        match self {
            Self::Uring(engine) => engine.has_queued(),
            Self::Sync(engine) => engine.has_queued(),
        }
    }

    fn completions(&mut self, done: impl FnMut(u32, i32)) {
        match self {
            Self::Uring(engine) => engine.completions(done),
            Self::Sync(engine) => engine.completions(done),
        }
    }

    fn has_ended(&mut self) -> bool {
        match self {
            Self::Uring(engine) => engine.has_ended(),
            Self::Sync(engine) => engine.has_ended(),
        }
    }

    fn polled(&self) -> u64 {
        match self {
            Self::Uring(engine) => engine.polled(),
            Self::Sync(engine) => engine.polled(),
        }
    }

    fn clone_buffers(&mut self, ring: RawFd, slots: &[Slot]) -> io::Result<()> {
        match self {
            Self::Uring(engine) => engine.clone_buffers(ring, slots),
            Self::Sync(engine) => engine.clone_buffers(ring, slots),
        }
    }

    fn drop_buffers(&mut self) {
        match self {
            Self::Uring(engine) => engine.drop_buffers(),
            Self::Sync(engine) => engine.drop_buffers(),
        }
    }

    fn watch(&mut self, index: usize, fd: Option<RawFd>) {
        match self {
            Self::Uring(engine) => engine.watch(index, fd),
            Self::Sync(engine) => engine.watch(index, fd),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, may: &mut impl FnMut() -> Option<Permit>) {
        match self {
            Self::Uring(engine) => engine.wait(timeout, may),
            Self::Sync(engine) => engine.wait(timeout, may),
        }
    }
}
