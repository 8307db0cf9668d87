//! For tests: each thread tries what it is to be denied, and says what came of
//! it. With the feature `test-switches` only.
#![allow(unsafe_code)]

use std::fmt::Write as _;
use std::io;

use libc::c_long;

use super::kind::Kind;
use crate::host::logging;

/// A name for people, a call, and its arguments, which are numbers or
/// addresses of what is never freed. None of these does harm where it is
/// allowed.
type Try = (&'static str, c_long, [usize; 6]);

/// Numbers of the x32 ABI begin here.
#[cfg(target_arch = "x86_64")]
const GETPID_OF_X32: c_long = 0x4000_0000 | libc::SYS_getpid;
#[cfg(not(target_arch = "x86_64"))]
const GETPID_OF_X32: c_long = -1;

/// `PTRACE_SEIZE`, which C libraries have as numbers of different types.
const PTRACE_SEIZE: i32 = 0x4206;

fn tries() -> [Try; 13] {
    let path = |name: &'static std::ffi::CStr| name.as_ptr().addr();
    let number = |number: i32| usize::try_from(number).unwrap_or(usize::MAX);
    let init = 1;
    let executable = number(libc::PROT_READ | libc::PROT_EXEC);
    let anonymous = number(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let here = libc::AT_FDCWD.cast_unsigned() as usize;
    [
        // A program that is not there, so that nothing is replaced.
        (
            "execve",
            libc::SYS_execve,
            [path(c"/nonexistent"), 0, 0, 0, 0, 0],
        ),
        // A child would end at once: its stack is nowhere.
        ("clone3", libc::SYS_clone3, [0; 6]),
        (
            "ptrace",
            libc::SYS_ptrace,
            [number(PTRACE_SEIZE), init, 0, 0, 0, 0],
        ),
        (
            "mount",
            libc::SYS_mount,
            [path(c"none"), path(c"/nonexistent"), 0, 0, 0, 0],
        ),
        (
            "socket",
            libc::SYS_socket,
            [number(libc::AF_INET), number(libc::SOCK_STREAM), 0, 0, 0, 0],
        ),
        (
            "open",
            libc::SYS_openat,
            [here, path(c"/etc/passwd"), number(libc::O_CLOEXEC), 0, 0, 0],
        ),
        ("kill", libc::SYS_kill, [init, 0, 0, 0, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [init, init, 0, 0, 0, 0]),
        (
            "unlink",
            libc::SYS_unlinkat,
            [here, path(c"/nonexistent"), 0, 0, 0, 0],
        ),
        (
            "execute",
            libc::SYS_mmap,
            [0, 4096, executable, anonymous, usize::MAX, 0],
        ),
        ("ring", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("setuid", libc::SYS_setuid, [usize::MAX, 0, 0, 0, 0, 0]),
        ("x32", GETPID_OF_X32, [0; 6]),
    ]
}

/// Tries all of them, and tells one line.
pub(super) fn all(kind: Kind) {
    let mut line = format!("extentd: {kind:?} tries:");
    for (name, call, [a, b, c, d, e, f]) in tries() {
        // SAFETY: what the arguments point to lives as long as the program,
        // and none of the calls writes to memory of this process or changes
        // what it has mapped or open, but for what is new.
        let result = unsafe { libc::syscall(call, a, b, c, d, e, f) };
        let came = match result {
            -1 => match io::Error::last_os_error().raw_os_error() {
                Some(libc::ENOSYS) => "ENOSYS".to_owned(),
                Some(libc::EPERM) => "EPERM".to_owned(),
                Some(libc::EACCES) => "EACCES".to_owned(),
                other => format!("error {}", other.unwrap_or(0)),
            },
            _ => "done".to_owned(),
        };
        let _ = write!(line, " {name}={came}");
    }
    logging::tell(&line);
}
