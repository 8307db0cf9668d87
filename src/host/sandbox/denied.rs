//! A system call that a thread was denied: it fails as on a kernel that has
//! not got it, and the first time for each call there is a line.
//!
//! A thread that serves must live, so it is not killed; ENOSYS is what
//! libraries have a way round for.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::host::logging;

/// `si_code` of a signal that seccomp sends.
const SYS_SECCOMP: c_int = 1;

/// Calls whose number is told once, one bit each.
static TOLD: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static COUNT: AtomicU64 = AtomicU64::new(0);

/// How many calls were denied so far.
pub(super) fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// `siginfo_t` of SIGSYS, as far as it is needed.
#[repr(C)]
struct Info {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    address: *const c_void,
    number: c_int,
    architecture: u32,
}

/// From now on a call that a filter traps fails with ENOSYS and is told.
///
/// # Errors
/// What sigaction(2) says.
pub(super) fn watch() -> io::Result<()> {
    // SAFETY: all zeros is a value of this plain struct: no flags, no mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut Info, *mut c_void) = fail;
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the handler has the form that SA_SIGINFO asks for, lives as long
    // as the program, and does only what is safe in a handler (see there).
    let result = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The handler. It allocates nothing and waits for nothing: the log's queue is
/// tried a bounded number of times, also where this thread has it.
extern "C" fn fail(_: c_int, info: *mut Info, context: *mut c_void) {
    // SAFETY: the kernel passes a siginfo_t, of which `Info` is the beginning
    // for SIGSYS; others are told by their code, which is always there.
    let (code, number) = unsafe { ((*info).code, (*info).number) };
    if code != SYS_SECCOMP {
        return;
    }
    // SAFETY: with SA_SIGINFO the third argument is this thread's ucontext_t,
    // which nobody else uses while the handler runs.
    unsafe { answer(&mut *context.cast::<libc::ucontext_t>()) };
    COUNT.fetch_add(1, Ordering::Relaxed);
    let index = usize::try_from(number).unwrap_or(0);
    let bit = 1 << (index % 64);
    let word = &TOLD[(index / 64) % TOLD.len()];
    if word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        let mut name = [0u8; 16];
        // SAFETY: PR_GET_NAME writes at most 16 bytes, and ends them with NUL.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        // SAFETY: the last byte is NUL whatever was written.
        let name = unsafe { CStr::from_ptr(name.as_ptr().cast::<c_char>()) };
        logging::tell_at_once(format_args!(
            "extentd: error: the sandbox has denied thread {} the system call {number}: please report this; --sandbox off goes without",
            name.to_str().unwrap_or("unnamed"),
        ));
    }
}

/// What the call seems to have returned.
fn answer(context: &mut libc::ucontext_t) {
    #[cfg(target_arch = "x86_64")]
    {
        const RAX: usize = libc::REG_RAX.unsigned_abs() as usize;
        context.uc_mcontext.gregs[RAX] = -i64::from(libc::ENOSYS);
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.regs[0] = (-i64::from(libc::ENOSYS)).cast_unsigned();
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = context;
}
