//! A look at the lease that is good for one system call, if that follows without an interruption.
//!
//! Between the look and the call a thread may be stopped for longer than a lease lasts (SIGSTOP, a frozen control
//! group, a debugger), and then make the call for blocks that have become somebody else's. So the last instructions
//! before it are a restartable sequence (rseq(2), Linux 4.18): when the kernel lets the thread go on anywhere between
//! them, be it at the system call's own instruction, it lets it go on at the end, without the call.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;

/// How often a thread looks that is interrupted each time before its system call.
const ATTEMPTS: usize = 100;

/// Raw I/O may be given to the kernel now, by one system call of this thread. From
/// [`Worker::may_submit`](super::Worker::may_submit).
#[derive(Debug)]
#[must_use = "it is good for one system call, at once"]
pub struct Permit {
    /// The thread's word of the kernel that is cleared by an interruption; null where there is none.
    armed: *mut u64,
    /// It holds for the thread that looked.
    _thread: PhantomData<*const ()>,
}

impl Permit {
    /// What depends on nothing, for I/O that no lease is needed for.
    pub fn unconditional() -> Permit {
        Permit {
            armed: std::ptr::null_mut(),
            _thread: PhantomData,
        }
    }

    /// From now on an interruption is noticed; what the permit depends on is looked at after this.
    #[inline]
    pub fn begin() -> Permit {
        Permit {
            armed: sequence::arm(),
            _thread: PhantomData,
        }
    }

    /// Looks by `look`, and makes a system call; what it returned, or `None` if `look` has forbidden it, or if the
    /// thread was interrupted in each of many attempts.
    ///
    /// # Safety
    /// As for [`call`](Self::call).
    #[inline]
    pub unsafe fn submit(
        mut look: impl FnMut() -> Option<Permit>,
        number: libc::c_long,
        args: [usize; 6],
    ) -> Option<io::Result<usize>> {
        for _ in 0..ATTEMPTS {
            // SAFETY: the caller's promise.
            if let Some(result) = unsafe { look()?.call(number, args) } {
                return Some(result);
            }
        }
        None
    }

    /// Makes a system call; what it returned, or `None` if it was not made because the thread was interrupted since
    /// the look: it has to look again.
    ///
    /// On a C library or processor that this has no restartable sequence for, an interruption in the last instructions
    /// before the call is not noticed.
    ///
    /// # Safety
    /// As for the call itself: what its arguments point to is valid for as long as the kernel uses it.
    #[inline]
    pub unsafe fn call(self, number: libc::c_long, args: [usize; 6]) -> Option<io::Result<usize>> {
        let result = if self.armed.is_null() {
            let [a, b, c, d, e, f] = args;
            // SAFETY: the caller's promise.
            let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
            return Some(usize::try_from(result).map_err(|_| io::Error::last_os_error()));
        } else {
            // SAFETY: the caller's promise; the word is this thread's, as the permit is.
            unsafe { sequence::call(self.armed, number, args) }
        }?;
        let errno = i32::try_from(result).ok().filter(|&errno| errno < 0);
        Some(match errno {
            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
            None => Ok(result.cast_unsigned()),
        })
    }
}

#[cfg(all(target_arch = "x86_64", target_env = "gnu", not(miri)))]
mod sequence {
    use std::arch::{asm, global_asm};
    use std::cell::Cell;

    /// What the kernel says where a thread has no rseq area: a negative processor.
    const CPU_ID: usize = 4;
    /// Where the area of `struct rseq` names the sequence in force.
    const RSEQ_CS: usize = 8;

    // rdi: the number of the system call; rsi: its six arguments; rdx: the thread's word; rcx: where to put a 1 if
    // the call was made. The call's own six registers are loaded before the sequence begins.
    //
    // The sequence ends right behind `syscall`: a thread that is interrupted when it has not made the call yet is
    // inside, one that is in the call is not. It begins with a look at the word, which the kernel clears when it
    // interrupts the thread outside of the sequence. The four bytes before the label for interruptions are the
    // signature that glibc registers (`RSEQ_SIG`), as an instruction that cannot be executed.
    global_asm!(
        ".pushsection __rseq_cs, \"aw\"",
        ".balign 32",
        ".hidden extentd_mapping_sequence",
        ".globl extentd_mapping_sequence",
        "extentd_mapping_sequence:",
        ".long 0, 0",
        ".quad 2f, 3f - 2f, 5f",
        ".popsection",
        ".pushsection .text.extentd_mapping_call, \"ax\"",
        ".balign 16",
        ".hidden extentd_mapping_call",
        ".globl extentd_mapping_call",
        ".type extentd_mapping_call, @function",
        "extentd_mapping_call:",
        "push rbx",
        "push rbp",
        "push r12",
        "mov rbx, rdx",
        "mov r12, rcx",
        "lea rbp, [rip + extentd_mapping_sequence]",
        "mov rax, rdi",
        "mov r11, rsi",
        "mov rdi, [r11]",
        "mov rsi, [r11 + 8]",
        "mov rdx, [r11 + 16]",
        "mov r10, [r11 + 24]",
        "mov r8, [r11 + 32]",
        "mov r9, [r11 + 40]",
        "2:",
        "cmp [rbx], rbp",
        "jne 4f",
        "syscall",
        "3:",
        "mov byte ptr [r12], 1",
        "4:",
        "mov qword ptr [rbx], 0",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        ".byte 0x0f, 0xb9, 0x3d",
        ".long 0x53053053",
        "5:",
        "jmp 4b",
        ".size extentd_mapping_call, . - extentd_mapping_call",
        ".popsection",
    );

    unsafe extern "sysv64" {
        fn extentd_mapping_call(
            number: libc::c_long,
            args: *const [usize; 6],
            word: *mut u64,
            made: *mut bool,
        ) -> isize;
        /// `struct rseq_cs`.
        static extentd_mapping_sequence: u64;
    }

    thread_local! {
        /// Where the kernel looks for this thread's sequence; null where it does not, 1 where that is not known yet.
        static WORD: Cell<*mut u64> = const { Cell::new(std::ptr::without_provenance_mut(1)) };
    }

    #[inline]
    pub(super) fn arm() -> *mut u64 {
        let mut word = WORD.get();
        if word.addr() == 1 {
            word = find();
            WORD.set(word);
        }
        if !word.is_null() {
            // SAFETY: it is this thread's, and writable by it at any time (rseq(2)).
            unsafe { word.write_volatile((&raw const extentd_mapping_sequence).addr() as u64) };
        }
        word
    }

    /// The area that glibc (2.35 and newer) has registered for this thread.
    #[cold]
    fn find() -> *mut u64 {
        // SAFETY: the names are C strings; a null pointer says that there is no such object.
        let (offset, size) = unsafe {
            (
                libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>(),
                libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>(),
            )
        };
        // SAFETY: glibc's ABI: the first is a `ptrdiff_t`, the second an `unsigned int`, 0 if nothing is registered;
        // neither changes after the program has started.
        if offset.is_null() || size.is_null() || unsafe { *size } == 0 {
            return std::ptr::null_mut();
        }
        let thread: usize;
        // SAFETY: reads the thread pointer, which the x86-64 ABI keeps at the begin of what fs points to.
        unsafe { asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, readonly)) };
        // SAFETY: as above.
        let area = thread.wrapping_add_signed(unsafe { *offset });
        let area = std::ptr::with_exposed_provenance_mut::<u8>(area);
        // SAFETY: the area is at least 20 bytes that live as long as the thread.
        let (processor, word) = unsafe { (area.add(CPU_ID).cast::<i32>(), area.add(RSEQ_CS)) };
        // SAFETY: the kernel writes it, so it is read as it is at some moment.
        if unsafe { processor.read_volatile() } < 0 {
            return std::ptr::null_mut();
        }
        word.cast()
    }

    /// The result of the call as the kernel gives it; `None`: it was not made.
    ///
    /// # Safety
    /// The word is from [`arm`] on this thread; the call's arguments are valid.
    #[inline]
    pub(super) unsafe fn call(
        word: *mut u64,
        number: libc::c_long,
        args: [usize; 6],
    ) -> Option<isize> {
        let mut made = false;
        // SAFETY: the caller's promise; the other pointers are to locals, and the function keeps to the C ABI.
        let result = unsafe { extentd_mapping_call(number, &raw const args, word, &raw mut made) };
        made.then_some(result)
    }
}

#[cfg(not(all(target_arch = "x86_64", target_env = "gnu", not(miri))))]
mod sequence {
    pub(super) fn arm() -> *mut u64 {
        std::ptr::null_mut()
    }

    /// # Safety
    /// Nothing is called: there is nothing to be armed.
    pub(super) unsafe fn call(
        _word: *mut u64,
        _number: libc::c_long,
        _args: [usize; 6],
    ) -> Option<isize> {
        None
    }
}

#[cfg(all(test, target_arch = "x86_64", target_env = "gnu", not(miri)))]
mod tests {
    use std::arch::asm;
    use std::cell::Cell;

    use super::*;

    fn getpid(permit: Permit) -> Option<io::Result<usize>> {
        // SAFETY: the call takes nothing.
        unsafe { permit.call(libc::SYS_getpid, [0; 6]) }
    }

    #[test]
    fn a_call_is_made_and_its_error_is_told() {
        let own = std::process::id() as usize;
        assert_eq!(getpid(Permit::unconditional()).unwrap().unwrap(), own);
        assert_eq!(getpid(Permit::begin()).unwrap().unwrap(), own);
        for permit in [Permit::unconditional(), Permit::begin()] {
            // SAFETY: there is no such descriptor, so nothing is read.
            let result = unsafe { permit.call(libc::SYS_fsync, [usize::MAX, 0, 0, 0, 0, 0]) };
            let error = result.unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }

    thread_local! {
        /// What the handler below puts into this thread's word, and how often it has.
        static REARMED: Cell<(*mut u64, u64, usize)> = const { Cell::new((std::ptr::null_mut(), 0, 0)) };
    }

    /// Undoes what the kernel does to the word when it interrupts outside of the sequence: what goes on after an
    /// interruption inside would find it as it was.
    extern "C" fn rearm(_signal: libc::c_int) {
        let (word, value, times) = REARMED.get();
        // SAFETY: the word of this thread.
        unsafe { word.write_volatile(value) };
        REARMED.set((word, value, times + 1));
    }

    #[test]
    fn a_thread_that_is_interrupted_in_the_last_instructions_does_not_call() {
        let permit = Permit::begin();
        // SAFETY: the word of this thread.
        REARMED.set((permit.armed, unsafe { permit.armed.read_volatile() }, 0));
        let handler: extern "C" fn(libc::c_int) = rearm;
        // SAFETY: the handler only touches what is this thread's; no other is trapped.
        unsafe { libc::signal(libc::SIGTRAP, handler as libc::sighandler_t) };
        // SAFETY: sets and clears the trap flag of this thread: each instruction in between is interrupted.
        let result = unsafe {
            asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
            let result = getpid(permit);
            asm!("pushfq", "and qword ptr [rsp], -257", "popfq");
            result
        };
        let (_, _, times) = REARMED.get();
        assert!(times > 20, "{times} instructions were interrupted");
        assert!(result.is_none());
    }

    #[test]
    fn a_thread_that_slept_since_the_look_does_not_call() {
        let permit = Permit::begin();
        assert!(!permit.armed.is_null(), "glibc has registered no area");
        // The kernel has given the processor to others in between.
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(getpid(permit).is_none());
        assert!(getpid(Permit::begin()).is_some());
    }
}
