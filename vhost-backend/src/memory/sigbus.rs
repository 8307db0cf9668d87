//! Survives a front-end that shrinks the guest's memory under us.
//!
//! A front-end owns the files behind guest memory and can truncate them after
//! we have mapped them; the next access is a SIGBUS (VU-20). The handler here
//! puts zero pages over the hole if it lies in a registered mapping, and lets
//! any other SIGBUS end the process as it would have.
#![allow(unsafe_code)]

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More than two full memory tables: the one in use, and one that retires.
const SLOTS: usize = 1280;

/// One registered mapping. `start` is 0 while the slot is free and [`CLAIMED`]
/// while it is being filled.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    granule: AtomicUsize,
}

const CLAIMED: usize = usize::MAX;

static RANGES: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        granule: AtomicUsize::new(0),
    }
}; SLOTS];

/// A mapping in which a SIGBUS is survived, until this is dropped. Drop it
/// before the mapping.
#[derive(Debug)]
pub(crate) struct Guarded {
    slot: usize,
}

impl Guarded {
    /// Guards the mapping of `len` bytes at `start`; `granule` is the unit, in
    /// bytes, in which parts of it can be replaced.
    ///
    /// # Errors
    /// The handler cannot be installed, or too many mappings are registered.
    pub(crate) fn new(start: usize, len: usize, granule: usize) -> io::Result<Self> {
        install()?;
        for (index, slot) in RANGES.iter().enumerate() {
            if slot
                .start
                .compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                slot.end.store(start.saturating_add(len), Ordering::Relaxed);
                slot.granule.store(granule, Ordering::Relaxed);
                slot.start.store(start, Ordering::Release);
                return Ok(Self { slot: index });
            }
        }
        Err(io::Error::other("too many mappings of guest memory"))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(slot) = RANGES.get(self.slot) {
            slot.start.store(0, Ordering::Release);
        }
    }
}

/// The piece to replace for a fault at `addr`: its start and its length.
fn piece_at(addr: usize) -> Option<(usize, usize)> {
    RANGES.iter().find_map(|slot| {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Relaxed);
        let granule = slot.granule.load(Ordering::Relaxed);
        let inside = start != 0
            && start != CLAIMED
            && (start..end).contains(&addr)
            && granule.is_power_of_two();
        inside.then(|| (addr & !(granule - 1), granule))
    })
}

fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    static FAILED: AtomicUsize = AtomicUsize::new(0);
    ONCE.call_once(|| {
        // SAFETY: all zeros is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_sigbus;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for and
        // does only what a signal handler may (see there).
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
            let errno = io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EINVAL);
            FAILED.store(usize::try_from(errno).unwrap_or(1), Ordering::Relaxed);
        }
    });
    match FAILED.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(
            i32::try_from(errno).unwrap_or(libc::EINVAL),
        )),
    }
}

/// Async-signal-safe: atomics and system calls only; errno is kept.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; for a SIGBUS
    // that it raised itself (si_code > 0) the address is set.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code > 0
        && let Some((start, len)) = piece_at(addr)
    {
        // SAFETY: errno is thread-local.
        let errno = unsafe { *libc::__errno_location() };
        // SAFETY: the piece lies in a mapping of guest memory that its owner
        // keeps until the range is unregistered, so nothing else is replaced;
        // guest memory is only ever accessed through raw pointers.
        let mapped = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        if mapped != libc::MAP_FAILED {
            return;
        }
    }
    // SAFETY: both calls are async-signal-safe. The signal is blocked until
    // this handler returns and then ends the process.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registered_ranges_are_replaced() {
        let guard = Guarded::new(0x7000_0000_0000, 0x40_0000, 0x1000).unwrap();
        let huge = Guarded::new(0x7000_1000_0000, 0x40_0000, 0x20_0000).unwrap();
        assert_eq!(piece_at(0x7000_0000_1234), Some((0x7000_0000_1000, 0x1000)));
        assert_eq!(
            piece_at(0x7000_103f_ffff),
            Some((0x7000_1020_0000, 0x20_0000))
        );
        assert_eq!(piece_at(0x7000_0040_0000), None);
        assert_eq!(piece_at(0x6fff_ffff_ffff), None);
        drop(guard);
        assert_eq!(piece_at(0x7000_0000_1234), None);
        drop(huge);
    }
}
