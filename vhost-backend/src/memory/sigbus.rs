//! Survives a front-end whose memory cannot be reached any more.
//!
//! A front-end owns the files behind the memory that it shares: it can truncate
//! them after we have mapped them, and there may be no room for a page that
//! nobody has touched yet (a full tmpfs or file system, no free huge page,
//! whatever seals the file has). The next access is a SIGBUS (VU-20). The
//! handler here puts zero pages in place of the whole mapping, at once, and
//! marks it lost: nothing in it is the front-end's from then on. Whoever has
//! used such memory asks [`losses`] afterwards. Only a [copy](super::copy) is
//! told at once, and nothing is lost. Any other SIGBUS ends the process as it
//! would have.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence};

use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

/// More than three full memory tables: the one in use, and others that retire.
const SLOTS: usize = 2048;

/// Bytes that are replaced where the host has no room for the whole mapping.
const WINDOW: usize = 1 << 20;

/// One registered mapping.
struct Slot {
    claimed: AtomicBool,
    /// Odd while the three numbers are being changed.
    sequence: AtomicUsize,
    start: AtomicUsize,
    /// The first byte behind it; 0 in a slot that is free.
    end: AtomicUsize,
    /// In which unit parts of it can be replaced, in bytes.
    unit: AtomicUsize,
    /// No request uses it: it does not count among losses.
    apart: AtomicBool,
    lost: AtomicBool,
}

static SLOTS_OF_ALL: [Slot; SLOTS] = [const {
    Slot {
        claimed: AtomicBool::new(false),
        sequence: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        unit: AtomicUsize::new(0),
        apart: AtomicBool::new(false),
        lost: AtomicBool::new(false),
    }
}; SLOTS];

/// How many mappings were lost.
static LOSSES: AtomicU64 = AtomicU64::new(0);

/// How many mappings of memory that others share with this process were lost
/// so far. A thread that saw the same number before and after it has used such
/// memory has used what the front-end shares, and not zeros in its place.
#[inline(always)]
pub(crate) fn losses() -> u64 {
    // The handler runs on the thread that asks, amid what it did before.
    compiler_fence(Ordering::SeqCst);
    LOSSES.load(Ordering::Relaxed)
}

impl Slot {
    /// Nobody else changes it meanwhile.
    fn set(&self, start: usize, end: usize, unit: usize) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.unit.store(unit, Ordering::Relaxed);
        self.sequence
            .store(before.wrapping_add(2), Ordering::Release);
    }

    /// Its three numbers as they were set together. One that is being changed
    /// has none: nobody uses its mapping yet, or any more.
    fn get(&self) -> Option<(usize, usize, usize)> {
        let before = self.sequence.load(Ordering::Acquire);
        let numbers = (
            self.start.load(Ordering::Relaxed),
            self.end.load(Ordering::Relaxed),
            self.unit.load(Ordering::Relaxed),
        );
        fence(Ordering::Acquire);
        let stable = before.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == before;
        stable.then_some(numbers)
    }
}

/// A mapping in which a SIGBUS is survived.
#[derive(Debug)]
pub(crate) struct Guarded {
    /// The mapping's place in the table, which is given back before it is
    /// unmapped.
    slot: usize,
    mmap: MmapRegion,
}

impl Guarded {
    /// What is mapped.
    pub(crate) fn file(&self) -> Option<&File> {
        self.mmap.file_offset().map(FileOffset::file)
    }

    /// Guards a mapping; `unit` is what parts of it can be replaced in. One
    /// that lies `apart` is used by no request, and not counted when it is
    /// [lost](losses).
    ///
    /// # Errors
    /// The handler cannot be installed, too many mappings are guarded, or this
    /// one is not unmapped with its owner.
    pub(crate) fn new(mmap: MmapRegion, unit: usize, apart: bool) -> io::Result<Self> {
        install()?;
        let start = mmap.as_ptr().expose_provenance();
        let end = start.checked_add(mmap.size());
        let Some(end) = end.filter(|_| mmap.owned() && unit.is_power_of_two()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let free = SLOTS_OF_ALL.iter().position(|slot| {
            let claim = &slot.claimed;
            claim
                .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        let index = free.ok_or_else(|| io::Error::other("too many mappings of guest memory"))?;
        if let Some(slot) = SLOTS_OF_ALL.get(index) {
            slot.lost.store(false, Ordering::Relaxed);
            slot.apart.store(apart, Ordering::Relaxed);
            slot.set(start, end, unit);
        }
        Ok(Self { slot: index, mmap })
    }

    /// The address of its first byte, with exposed provenance.
    pub(crate) fn start(&self) -> usize {
        self.mmap.as_ptr().addr()
    }

    /// Bytes.
    pub(crate) fn size(&self) -> usize {
        self.mmap.size()
    }

    /// It could not be reached some time: what is there now is not the
    /// front-end's.
    pub(crate) fn is_lost(&self) -> bool {
        compiler_fence(Ordering::SeqCst);
        SLOTS_OF_ALL
            .get(self.slot)
            .is_none_or(|slot| slot.lost.load(Ordering::Acquire))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(slot) = SLOTS_OF_ALL.get(self.slot) {
            slot.set(0, 0, 0);
            slot.claimed.store(false, Ordering::Release);
        }
    }
}

/// A fault's mapping, and what can be replaced: all of it, or the part around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    slot: usize,
    all: (usize, usize),
    part: (usize, usize),
}

/// What a fault at `addr` has hit.
fn find(addr: usize) -> Option<Found> {
    SLOTS_OF_ALL.iter().enumerate().find_map(|(index, slot)| {
        let (start, end, unit) = slot.get()?;
        if !(start..end).contains(&addr) {
            return None;
        }
        let within = unit.max(WINDOW).wrapping_sub(1);
        let first = (addr & !within).max(start);
        let last = (addr | within).saturating_add(1).min(end);
        Some(Found {
            slot: index,
            all: (start, end),
            part: (first, last),
        })
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

/// Puts zero pages there, which take no memory before they are used; whether
/// that went well. Shared ones, as they count against no limit on the data of
/// a process.
///
/// # Safety
/// The range lies in a mapping that is guarded, on whole units of it, and its
/// owner keeps it.
unsafe fn replace((start, end): (usize, usize)) -> bool {
    let flags = libc::MAP_FIXED | libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let at = start as *mut libc::c_void;
    let len = end.saturating_sub(start);
    // SAFETY: nothing but a part of that mapping is replaced, as the caller
    // vouches; it is only ever accessed through raw pointers, with no
    // expectation of what is there.
    let mapped = unsafe { libc::mmap(at, len, access, flags, -1, 0) } != libc::MAP_FAILED;
    if mapped {
        // SAFETY: it leaves the mapping and its contents as they are. What a
        // disk still reads to there belongs into no core dump.
        unsafe { libc::madvise(at, len, libc::MADV_DONTDUMP) };
    }
    mapped
}

/// Lets the thread go on behind a copy that cannot reach memory; `false` if it
/// does something else.
///
/// # Safety
/// The context is that of a signal.
#[cfg(target_arch = "x86_64")]
unsafe fn leave_copy(context: *mut libc::c_void) -> bool {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the caller's promise.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let Some(at) = registers.get_mut(libc::REG_RIP as usize) else {
        return false;
    };
    let landing = usize::try_from(*at).ok().and_then(super::copy::landing);
    let landing = landing.and_then(|landing| i64::try_from(landing).ok());
    if let Some(landing) = landing {
        *at = landing;
    }
    landing.is_some()
}

/// There is no such copy.
///
/// # Safety
/// None.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn leave_copy(_context: *mut libc::c_void) -> bool {
    false
}

/// Async-signal-safe: atomics and system calls only; errno is kept.
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; for a SIGBUS
    // that it raised itself (si_code > 0) the address is set.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code == libc::BUS_MCEERR_AO {
        // A page is broken that nobody here needs at the moment.
        return;
    }
    // SAFETY: with SA_SIGINFO the kernel passes the state of the thread.
    if code > 0 && unsafe { leave_copy(context) } {
        return;
    }
    if code > 0
        && let Some(found) = find(addr)
        && let Some(slot) = SLOTS_OF_ALL.get(found.slot)
    {
        // SAFETY: errno is thread-local.
        let errno = unsafe { *libc::__errno_location() };
        // Before there is anything that is not the front-end's.
        if !slot.lost.swap(true, Ordering::AcqRel) && !slot.apart.load(Ordering::Relaxed) {
            LOSSES.fetch_add(1, Ordering::AcqRel);
        }
        // SAFETY: the numbers are those of a `Guarded` that owns its mapping,
        // and the thread that has the fault uses it, so it is not dropped.
        let mapped = unsafe { replace(found.all) || replace(found.part) };
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        if mapped {
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
    use std::fs::File;
    use vm_memory::FileOffset;
    use vm_memory::mmap::MmapRegionBuilder;

    const SIZE: usize = 8 << 20;

    fn mapped() -> (File, MmapRegion) {
        let file = crate::memory::tests::memfd(SIZE as u64, 0);
        let mmap = MmapRegionBuilder::new(SIZE)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file.try_clone().unwrap(), 0))
            .build()
            .unwrap();
        (file, mmap)
    }

    #[test]
    fn only_what_is_guarded_is_found_and_only_as_long() {
        let (_file, mmap) = mapped();
        let start = mmap.as_ptr().addr();
        assert_eq!(find(start), None);
        let guarded = Guarded::new(mmap, 4096, false).unwrap();
        for addr in [start, start + SIZE / 2 + 7, start + SIZE - 1] {
            let found = find(addr).unwrap();
            assert_eq!(found.all, (start, start + SIZE));
            let (first, last) = found.part;
            assert!((first..last).contains(&addr) && last - first <= WINDOW);
            assert!(first >= start && last <= start + SIZE);
        }
        assert_ne!(find(start - 1).map(|f| f.all.0), Some(start));
        assert_ne!(find(start + SIZE).map(|f| f.all.0), Some(start));
        drop(guarded);
        assert_eq!(find(start), None);
    }

    #[test]
    fn a_part_is_of_whole_units() {
        let (_file, mmap) = mapped();
        let start = mmap.as_ptr().addr();
        let _guarded = Guarded::new(mmap, 2 << 20, false).unwrap();
        let (first, last) = find(start + SIZE / 2).unwrap().part;
        assert!((first.is_multiple_of(2 << 20) || first == start) && last - first <= 2 << 20);
    }

    /// Numbers that belong together are read together, whoever changes them.
    #[test]
    fn a_slot_is_never_read_half_changed() {
        let slot = &SLOTS_OF_ALL[SLOTS - 1];
        assert!(!slot.claimed.swap(true, Ordering::AcqRel));
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..200_000_usize {
                    let start = round << 32;
                    slot.set(start, start + round, round);
                }
            });
            while !writer.is_finished() {
                if let Some((start, end, unit)) = slot.get() {
                    assert_eq!((start, end), (unit << 32, (unit << 32) + unit));
                }
            }
            assert_eq!(slot.get().map(|(.., unit)| unit), Some(199_999));
        });
        slot.set(0, 0, 0);
        slot.claimed.store(false, Ordering::Release);
    }

    #[test]
    fn one_fault_loses_the_whole_mapping_and_no_other() {
        let ((file, first), (_kept, second)) = (mapped(), mapped());
        let address = first.as_ptr();
        let first = Guarded::new(first, 4096, false).unwrap();
        let second = Guarded::new(second, 4096, false).unwrap();
        // SAFETY: the first byte of a mapping of ours.
        unsafe { address.write_volatile(7) };
        assert!(!first.is_lost());
        file.set_len(4096).unwrap();
        let before = losses();
        // SAFETY: bytes of that mapping; that they are gone is the test.
        let (gone, there) = unsafe {
            (
                address.add(SIZE / 2).read_volatile(),
                address.read_volatile(),
            )
        };
        assert_eq!((gone, there), (0, 0), "all of it is replaced at once");
        assert!(first.is_lost() && !second.is_lost());
        assert!(losses() > before);
    }
}
