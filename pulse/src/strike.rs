//! How a thread is got out of a call that waits: by a signal that does nothing,
//! but has the call fail with `EINTR`.
#![allow(unsafe_code)]

use std::io;

/// The signal: none that anything else uses.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

/// As the kernel numbers it.
pub(crate) fn this_thread() -> libc::pid_t {
    // SAFETY: it only returns a number.
    unsafe { libc::gettid() }
}

/// Has the signal do nothing. To be called once, before threads are watched.
///
/// # Errors
/// What sigaction(2) says.
pub fn catch_strikes() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zeros is a valid sigaction: no flags, above all not
    // SA_RESTART, and nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = (nothing as extern "C" fn(libc::c_int)) as usize;
    // SAFETY: the handler has the form that one without SA_SIGINFO has, and
    // does nothing, which is safe wherever it interrupts.
    let set = unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Interrupts a thread of this process that is known to live.
pub(crate) fn strike(thread: libc::pid_t) {
    // SAFETY: tgkill takes plain numbers, and reaches this process only.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
}
