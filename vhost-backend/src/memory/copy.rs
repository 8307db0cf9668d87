//! Copies between this process and memory that others share with it: they may
//! write it meanwhile, and it may not be there.
//!
//! To the compiler a copy is a call that it knows nothing of, so it expects
//! nothing of bytes that change under it. Where the memory cannot be reached,
//! a copy ends and says so, as one of the kernel does (EFAULT): the handler of
//! SIGBUS lets it go on [behind](landing) what has failed. Whoever accesses
//! such memory otherwise loses the mapping (see `sigbus.rs`).
#![allow(unsafe_code)]

/// The memory cannot be reached: its file was truncated, or there is no room
/// for its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreachable;

/// Copies `len` bytes.
///
/// # Errors
/// One of the two cannot be reached; a part may have been copied.
///
/// # Safety
/// `from` is mapped for reads and `to` for writes of so many bytes, they do
/// not overlap, and one of them is of this process alone. The other one may be
/// memory that is shared with it and guarded.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, len: usize) -> Result<(), Unreachable> {
    // SAFETY: as the caller vouches.
    if unsafe { raw::copy(to, from, len) } == 0 {
        Ok(())
    } else {
        Err(Unreachable)
    }
}

/// Writes `len` zeros.
///
/// # Errors
/// The memory cannot be reached; a part may have been written.
///
/// # Safety
/// `to` is mapped for writes of so many bytes: memory of this process alone,
/// or such that is shared with it and guarded.
#[inline]
pub unsafe fn zero(to: *mut u8, len: usize) -> Result<(), Unreachable> {
    // SAFETY: as the caller vouches.
    if unsafe { raw::zero(to, len) } == 0 {
        Ok(())
    } else {
        Err(Unreachable)
    }
}

/// Where a thread goes on whose instruction at `at` cannot reach memory, if
/// that is one of a copy.
#[cfg(target_arch = "x86_64")]
pub(super) fn landing(at: usize) -> Option<usize> {
    raw::landing(at)
}

#[cfg(target_arch = "x86_64")]
mod raw {
    use std::arch::global_asm;

    // Nothing is pushed, so every instruction may be left for the landing.
    global_asm!(
        ".pushsection .text.extentd_shared_copy,\"ax\",@progbits",
        ".hidden extentd_shared_copy",
        ".globl extentd_shared_copy",
        ".type extentd_shared_copy,@function",
        "extentd_shared_copy:",
        "cmp rdx, 16",
        "jne 2f",
        "mov rax, [rsi]",
        "mov rcx, [rsi + 8]",
        "mov [rdi], rax",
        "mov [rdi + 8], rcx",
        "xor eax, eax",
        "ret",
        "2:",
        "mov rcx, rdx",
        "shr rcx, 3",
        "rep movsq",
        "mov rcx, rdx",
        "and ecx, 7",
        "rep movsb",
        "xor eax, eax",
        "ret",
        ".size extentd_shared_copy, . - extentd_shared_copy",
        ".hidden extentd_shared_zero",
        ".globl extentd_shared_zero",
        ".type extentd_shared_zero,@function",
        "extentd_shared_zero:",
        "mov rcx, rsi",
        "xor eax, eax",
        "rep stosb",
        "ret",
        ".size extentd_shared_zero, . - extentd_shared_zero",
        ".hidden extentd_shared_failed",
        ".globl extentd_shared_failed",
        ".type extentd_shared_failed,@function",
        "extentd_shared_failed:",
        "mov eax, 1",
        "ret",
        ".size extentd_shared_failed, . - extentd_shared_failed",
        ".popsection",
    );

    unsafe extern "C" {
        #[link_name = "extentd_shared_copy"]
        pub(super) fn copy(to: *mut u8, from: *const u8, len: usize) -> u32;
        #[link_name = "extentd_shared_zero"]
        pub(super) fn zero(to: *mut u8, len: usize) -> u32;
        fn extentd_shared_failed() -> u32;
    }

    pub(super) fn landing(at: usize) -> Option<usize> {
        let first = copy as *const () as usize;
        let failed = extentd_shared_failed as *const () as usize;
        (first..failed).contains(&at).then_some(failed)
    }
}

/// Word by word, each an atomic access; a mapping that cannot be reached is
/// lost, which a copy finds out afterwards.
#[cfg(not(target_arch = "x86_64"))]
mod raw {
    use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

    use super::super::sigbus::losses;

    const WORD: usize = size_of::<usize>();

    /// # Safety
    /// As `copy` of this file.
    pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> u32 {
        let before = losses();
        let mut at = 0;
        while at < len {
            let (source, target) = (from.wrapping_add(at).cast_mut(), to.wrapping_add(at));
            let aligned = source.addr() % WORD == 0 && target.addr() % WORD == 0;
            // SAFETY: within what the caller vouches for, and aligned where
            // that is needed.
            unsafe {
                if aligned && len - at >= WORD {
                    let word = AtomicUsize::from_ptr(source.cast()).load(Ordering::Relaxed);
                    AtomicUsize::from_ptr(target.cast()).store(word, Ordering::Relaxed);
                    at += WORD;
                } else {
                    let byte = AtomicU8::from_ptr(source).load(Ordering::Relaxed);
                    AtomicU8::from_ptr(target).store(byte, Ordering::Relaxed);
                    at += 1;
                }
            }
        }
        u32::from(losses() != before)
    }

    /// # Safety
    /// As `zero` of this file.
    pub(super) unsafe fn zero(to: *mut u8, len: usize) -> u32 {
        let before = losses();
        for at in 0..len {
            // SAFETY: within what the caller vouches for.
            unsafe { AtomicU8::from_ptr(to.wrapping_add(at)).store(0, Ordering::Relaxed) };
        }
        u32::from(losses() != before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::shared::Shared;
    use crate::memory::tests::memfd;

    const PAGE: usize = 4096;

    #[test]
    fn any_bytes_are_copied_and_zeroed_and_no_others() {
        let source: Vec<u8> = (0..=255).cycle().take(600).collect();
        for (from, to, len) in [(0, 0, 0), (1, 3, 1), (5, 2, 16), (0, 7, 513), (87, 0, 512)] {
            let mut target = vec![0xaa; 600];
            // SAFETY: both are vectors that are long enough.
            unsafe {
                copy(source.as_ptr().add(from), target.as_mut_ptr().add(to), len).unwrap();
            }
            assert_eq!(target[to..to + len], source[from..from + len]);
            assert!(
                target[..to]
                    .iter()
                    .chain(&target[to + len..])
                    .all(|b| *b == 0xaa)
            );
            // SAFETY: as above.
            unsafe { zero(target.as_mut_ptr().add(to), len).unwrap() };
            assert!(target[to..to + len].iter().all(|b| *b == 0));
            assert!(
                target[..to]
                    .iter()
                    .chain(&target[to + len..])
                    .all(|b| *b == 0xaa)
            );
        }
    }

    /// A copy goes on behind the instruction that has failed.
    const LANDS: bool = cfg!(target_arch = "x86_64");

    #[test]
    fn vu_20_a_copy_that_cannot_reach_memory_fails_and_nothing_is_lost() {
        let file = memfd(4 * PAGE as u64, 0);
        let map = || {
            file.set_len(4 * PAGE as u64).unwrap();
            let shared = Shared::map(file.try_clone().unwrap(), 0, 4 * PAGE as u64).unwrap();
            file.set_len(2 * PAGE as u64).unwrap();
            shared
        };
        let kept = map();
        let mut own = vec![1; 2 * PAGE];
        for round in 0..3 {
            for (at, len) in [
                (2 * PAGE, 16),
                (2 * PAGE - 3, 7),
                (3 * PAGE + 1, 5),
                (PAGE, 2 * PAGE),
            ] {
                for way in 0..3 {
                    // Where the instruction cannot be left, the mapping is lost each time.
                    let own_mapping = (!LANDS).then(map);
                    let shared = own_mapping.as_ref().unwrap_or(&kept);
                    let there = shared.at(at);
                    // SAFETY: within the mapping and within `own`.
                    let result = unsafe {
                        match way {
                            0 => copy(there, own.as_mut_ptr(), len),
                            1 => copy(own.as_ptr(), there, len),
                            _ => zero(there, len),
                        }
                    };
                    assert_eq!(result, Err(Unreachable), "{round} {at} {len} {way}");
                    assert_eq!(shared.is_lost(), !LANDS);
                }
            }
            // SAFETY: as above.
            unsafe {
                copy(own.as_ptr(), kept.at(1), PAGE).unwrap();
                copy(kept.at(1), own.as_mut_ptr(), PAGE).unwrap();
            }
        }
        assert!(!kept.is_lost());
    }
}
