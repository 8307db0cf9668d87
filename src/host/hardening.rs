//! What keeps the process from waiting for memory, and the kernel from
//! ending it, while a guest swaps through it.
#![allow(unsafe_code)]

use std::io;

use crate::host::switches;

/// `PR_SET_IO_FLUSHER` (Linux 5.6): allocations that the kernel makes for the
/// thread never wait for I/O.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// `CAP_IPC_LOCK`
const CAP_IPC_LOCK: u32 = 14;
/// What `MCL_ONFAULT` is where libc has it.
const LOCK_LATER: libc::c_int = libc::MCL_FUTURE | libc::MCL_ONFAULT;

/// One measure that the host does not let us take, and what it needs.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} ({source}): {remedy}")]
pub struct Shortfall {
    what: &'static str,
    remedy: &'static str,
    source: io::Error,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Bytes of the stacks of threads that do little: all of a stack is locked.
pub(crate) const SMALL_STACK: usize = 256 << 10;

/// Takes the measures that every thread inherits, so before there is a second
/// one; all that could not be taken, or that [`lock_memory`] would not get.
pub(crate) fn protect() -> Vec<Shortfall> {
    let mut shortfalls = Vec::new();
    let mut take = |measure, what, remedy, action: &dyn Fn() -> io::Result<()>| {
        if switches::left_out(measure) {
            return;
        }
        if let Err(source) = action() {
            shortfalls.push(Shortfall {
                what,
                remedy,
                source,
            });
        }
    };
    take(
        "flusher",
        "become an I/O flusher",
        "it takes CAP_SYS_RESOURCE: AmbientCapabilities=CAP_SYS_RESOURCE in the unit, or setcap cap_sys_resource,cap_ipc_lock+ep",
        &become_flusher,
    );
    take(
        "oom",
        "keep the out-of-memory killer away",
        "it takes CAP_SYS_RESOURCE, or OOMScoreAdjust=-1000 in the unit",
        &protect_from_oom,
    );
    take("lock", LOCK, LOCK_REMEDY, &may_lock);
    share_heap();
    shortfalls
}

/// One heap for all threads: the GNU C library else reserves address space for
/// each, which would count as locked, and no thread that matters allocates. Others
/// have but one.
fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a parameter, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

const LOCK: &str = "lock its memory";
const LOCK_REMEDY: &str = "it takes CAP_IPC_LOCK (AmbientCapabilities=CAP_IPC_LOCK in the unit, or setcap) or no limit: LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited";

fn become_flusher() -> io::Result<()> {
    // SAFETY: prctl takes plain numbers here.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) })
}

fn protect_from_oom() -> io::Result<()> {
    // A manager may have done it, without the right for us to do it again.
    if oom_score_adj()? == -1000 {
        return Ok(());
    }
    std::fs::write("/proc/self/oom_score_adj", "-1000")
}

/// How the out-of-memory killer likes this process, -1000 to 1000.
///
/// # Errors
/// /proc cannot be read.
pub(crate) fn oom_score_adj() -> io::Result<i32> {
    let text = std::fs::read_to_string("/proc/self/oom_score_adj")?;
    text.trim()
        .parse()
        .map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Locking would be allowed whatever the size: a limit that suffices now may
/// not once the guest's memory is mapped, which counts until it is let go.
fn may_lock() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one rlimit is writable.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let capable = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << CAP_IPC_LOCK != 0);
    if capable || limit.rlim_cur == libc::RLIM_INFINITY {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Locks all memory of the process: what there is now is loaded at once,
/// stacks included, what comes later is locked as it is touched. So mapping a
/// guest's memory, which `vhost-backend` lets go at once, loads none of it.
///
/// # Errors
/// The host does not allow it.
pub(crate) fn lock_memory() -> Result<(), Shortfall> {
    if switches::left_out("lock") {
        return Ok(());
    }
    // What a thread that has just begun maps between the two calls is locked
    // as well.
    // SAFETY: mlockall takes a plain number and changes no contents.
    let now = check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) });
    now.and_then(|()| {
        // SAFETY: likewise. Without MCL_CURRENT what is locked stays so.
        check(unsafe { libc::mlockall(LOCK_LATER) })
    })
    .map_err(|source| Shortfall {
        what: LOCK,
        remedy: LOCK_REMEDY,
        source,
    })
}

/// Frees memory that is not used, so that none of it is locked. Only the GNU C
/// library has to be told.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim only gives free memory back.
    unsafe {
        libc::malloc_trim(0)
    };
}
