//! Hosts on which only plain system calls are to be had.
#![allow(unsafe_code)]

/// Has io_uring_setup(2) fail with ENOSYS in this thread and in all processes
/// that it starts.
pub fn forbid_io_uring() {
    let step = |code: u32, jt, jf, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt,
        jf,
        k,
    };
    let io_uring_setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let failure = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::ENOSYS).unwrap();
    // The number of the call is the first field that a filter sees.
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            io_uring_setup,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, failure),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(steps.len()).unwrap(),
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: integers only.
    let promised = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(promised, 0);
    // SAFETY: the program and its steps are valid, and the kernel copies them.
    let set = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}
