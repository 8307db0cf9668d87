//! The system calls that each kind of thread may make, by number, and what no
//! thread of this program ever needs.
//!
//! Numbers are allowed whatever their arguments, which the kernel answers
//! from a bitmap without running a filter; the few that are told apart by
//! arguments are in `filters.rs`.

use libc::c_long;

use super::kind::Kind;

/// cachestat(2) (6.5), which has one number everywhere.
const CACHESTAT: c_long = 451;

/// Calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
mod older {
    use libc::c_long;

    pub(super) const COMMON: &[c_long] = &[libc::SYS_poll];
    pub(super) const OPENING: &[c_long] = &[libc::SYS_open];
    pub(super) const LOOKING: &[c_long] = &[
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_readlink,
        libc::SYS_access,
    ];
    pub(super) const WAITING: &[c_long] = &[libc::SYS_epoll_wait];
    pub(super) const NEVER: &[c_long] = &[
        libc::SYS_uselib,
        libc::SYS_modify_ldt,
        libc::SYS_ioperm,
        libc::SYS_iopl,
        libc::SYS__sysctl,
    ];
}
#[cfg(not(target_arch = "x86_64"))]
mod older {
    use libc::c_long;

    pub(super) const COMMON: &[c_long] = &[];
    pub(super) const OPENING: &[c_long] = &[];
    pub(super) const LOOKING: &[c_long] = &[];
    pub(super) const WAITING: &[c_long] = &[];
    pub(super) const NEVER: &[c_long] = &[];
}

/// What the C library and the standard library do in any thread, its end
/// included, and what touches nothing but open descriptors and own memory.
const COMMON: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_munlock,
    libc::SYS_mincore,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Another filter answers for those that are no threads, and for clone3.
    libc::SYS_clone,
    libc::SYS_clone3,
];

/// Opens files. In threads that open none another filter answers, without a
/// line: the C library tries, to see how it may give memory back.
pub(super) fn opening() -> impl Iterator<Item = c_long> {
    all(&[&[libc::SYS_openat], older::OPENING])
}

/// Looks at the system by paths, of which landlock opens few.
const LOOKING: &[c_long] = &[
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_pread64,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
];

/// Reads, writes and changes of the open image and its device.
const IMAGE: &[c_long] = &[
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_syncfs,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_fstatfs,
    libc::SYS_statx,
    CACHESTAT,
];

/// Reads of an open snapshot.
const READING: &[c_long] = &[
    libc::SYS_pread64,
    libc::SYS_fadvise64,
    libc::SYS_fstatfs,
    libc::SYS_statx,
];

/// Rings of io_uring that are there; what they may be given is limited by
/// landlock only.
const RINGS: &[c_long] = &[libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

/// Open sockets and events.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_readv,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_eventfd2,
    libc::SYS_dup,
    libc::SYS_dup3,
];

/// Waits for several descriptors.
const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
];

/// Tells the service manager something; another filter allows no other family
/// of sockets.
const NOTIFYING: &[c_long] = &[libc::SYS_connect, libc::SYS_sendto, libc::SYS_sendmsg];

/// All that a kind of thread may do.
pub(super) fn allowed(kind: Kind) -> impl Iterator<Item = c_long> {
    let parts: &[&[c_long]] = match kind {
        Kind::Session => &[
            LOOKING,
            older::LOOKING,
            IMAGE,
            SOCKETS,
            WAITING,
            older::WAITING,
            RINGS,
            NOTIFYING,
            // Memory that is handed to the front-end, descriptors that come and
            // go with it, and the end of the process.
            &[
                libc::SYS_memfd_create,
                libc::SYS_name_to_handle_at,
                libc::SYS_socketpair,
                libc::SYS_mlock,
                libc::SYS_mlock2,
            ],
        ],
        Kind::Worker => &[
            IMAGE,
            RINGS,
            // Where there is no io_uring.
            WAITING,
            older::WAITING,
            &[libc::SYS_eventfd2, libc::SYS_sched_getattr],
        ],
        Kind::Guard => &[
            LOOKING,
            older::LOOKING,
            IMAGE,
            &[libc::SYS_inotify_add_watch, libc::SYS_inotify_rm_watch],
        ],
        Kind::Lookout => &[LOOKING, older::LOOKING],
        Kind::Lease => &[&[libc::SYS_signalfd4]],
        Kind::Filler => &[IMAGE],
        Kind::Pinner => &[RINGS],
        Kind::Log => &[],
        Kind::Signals => &[IMAGE, NOTIFYING],
        Kind::Control => &[
            LOOKING,
            older::LOOKING,
            IMAGE,
            SOCKETS,
            WAITING,
            older::WAITING,
            RINGS,
        ],
        Kind::Metrics => &[LOOKING, older::LOOKING, SOCKETS, WAITING, older::WAITING],
        Kind::Watch => &[NOTIFYING],
        Kind::Keeper => &[],
        Kind::Export => &[READING, SOCKETS],
    };
    let common = [COMMON, older::COMMON].concat().into_iter();
    common.chain(opening()).chain(all(parts))
}

fn all(parts: &[&[c_long]]) -> std::vec::IntoIter<c_long> {
    parts.concat().into_iter()
}

/// What whoever answers operators does besides where snapshots are made;
/// landlock opens no folder but theirs.
pub(super) const MAKING: &[c_long] = &[
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_flock,
];

/// What no start needs, of this program or of any that it becomes: other
/// processes, the system, and the kernel's less used ends.
pub(super) fn never() -> impl Iterator<Item = c_long> {
    all(&[NEVER, older::NEVER])
}

const NEVER: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_personality,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];
