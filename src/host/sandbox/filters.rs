//! Filters of system calls (seccomp): compiled once, entered by each thread.
//!
//! They lie over each other. What no start needs fails with EPERM in every
//! thread and in every program that this process becomes. New processes fail
//! with an error and without a signal, as the C library blocks signals around
//! them; files are not opened likewise where none is to be. And each kind of
//! thread has its list, outside of which a call is trapped (`denied.rs`).

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter, sock_filter,
};

use super::kind::Kind;
use super::lists;

/// Why system calls cannot be filtered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("this architecture has no list of them")]
    Architecture,
    #[error("{0}")]
    Filter(#[from] Error),
    #[error("{0}")]
    Compile(#[from] BackendError),
    #[error("{0}")]
    Host(#[from] io::Error),
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Compiled filters.
pub(super) struct Filters {
    foreign: BpfProgram,
    never: BpfProgram,
    processes: BpfProgram,
    opening: BpfProgram,
    kinds: Vec<(Kind, BpfProgram)>,
}

/// Kinds with a list of their own: a program that the keeper becomes has none.
fn listed() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| *kind != Kind::Keeper)
}

impl Filters {
    /// Compiles all of them; `makes_files`: operators may have files made.
    ///
    /// # Errors
    /// There are no lists for this architecture.
    pub(super) fn compile(makes_files: bool) -> Result<Self, Unfit> {
        if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            return Err(Unfit::Architecture);
        }
        let kinds = listed().map(|kind| {
            let trap = program(
                of_kind(kind, makes_files)?,
                SeccompAction::Trap,
                SeccompAction::Allow,
            )?;
            Ok((kind, trap))
        });
        Ok(Self {
            foreign: no_foreign_numbers(),
            never: program(
                lists::never().map(|call| (call, Vec::new())).collect(),
                SeccompAction::Allow,
                errno(libc::EPERM),
            )?,
            processes: program(processes()?, SeccompAction::Allow, errno(libc::ENOSYS))?,
            opening: program(
                lists::opening().map(|call| (call, Vec::new())).collect(),
                SeccompAction::Allow,
                errno(libc::EACCES),
            )?,
            kinds: kinds.collect::<Result<_, Unfit>>()?,
        })
    }

    /// Leaves this thread, and all that it will start, without what no start
    /// needs.
    ///
    /// # Errors
    /// The kernel has no filters, or refuses.
    pub(super) fn begin(&self) -> Result<(), Unfit> {
        if !self.foreign.is_empty() {
            apply_filter(&self.foreign)?;
        }
        Ok(apply_filter(&self.never)?)
    }

    /// Leaves this thread the calls of its kind.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(super) fn enter(&self, kind: Kind) -> Result<(), Unfit> {
        if let Some((_, program)) = self.kinds.iter().find(|(one, _)| *one == kind) {
            apply_filter(&self.processes)?;
            if !kind.looks() {
                apply_filter(&self.opening)?;
            }
            apply_filter(program)?;
        }
        Ok(())
    }
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, Unfit> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, otherwise, matched, architecture)?.try_into()?)
}

/// An argument, of which the lower half counts, is one of these.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value: &u64| {
        let (length, operator) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        let condition = SeccompCondition::new(argument, length, operator, *value)?;
        SeccompRule::new(vec![condition])
    };
    values.iter().map(rule).collect()
}

/// None of the bits `mask` is set in an argument.
fn without(argument: u8, mask: u64) -> Result<Vec<SeccompRule>, BackendError> {
    let (length, operator) = (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask));
    let condition = SeccompCondition::new(argument, length, operator, 0)?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}

/// Requests that ask about files, file systems and devices, and change
/// nothing; and one of sockets that makes them wait or not.
const IOCTLS: [u64; 12] = [
    0xc020_660b, // FS_IOC_FIEMAP
    0x8008_6601, // FS_IOC_GETFLAGS
    0x801c_581f, // FS_IOC_FSGETXATTR
    0x8100_587e, // XFS_IOC_FSGEOMETRY
    0x1268,      // BLKSSZGET
    0x8008_1270, // BLKBSZGET
    0x8008_1272, // BLKGETSIZE64
    0x127b,      // BLKPBSZGET
    0x125e,      // BLKROGET
    0x5401,      // TCGETS
    0x5421,      // FIONBIO
    0x541b,      // FIONREAD
];

/// FICLONE and FICLONERANGE, which make snapshots.
const CLONES: [u64; 2] = [0x4004_9409, 0x4020_940d];

/// The list of a kind, with the calls whose arguments matter.
fn of_kind(kind: Kind, makes_files: bool) -> Result<Rules, Unfit> {
    let makes_files = makes_files && kind == Kind::Control;
    let making = lists::MAKING.iter().copied().filter(|_| makes_files);
    let mut rules: Rules = lists::allowed(kind)
        .chain(making)
        .map(|call| (call, Vec::new()))
        .collect();
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    rules.insert(libc::SYS_mmap, without(2, executable)?);
    rules.insert(libc::SYS_mprotect, without(2, executable)?);
    // Of its own process only: it is how a panic ends it.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, one_of(0, &[own])?);
    // Likewise: its limits are named where one was reached.
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0])?);
    rules.insert(libc::SYS_prctl, one_of(0, &PRCTLS)?);
    if !matches!(kind, Kind::Log | Kind::Pinner | Kind::Lease) {
        let mut requests = IOCTLS.to_vec();
        if makes_files {
            requests.extend(CLONES);
        }
        rules.insert(libc::SYS_ioctl, one_of(1, &requests)?);
    }
    if matches!(kind, Kind::Session | Kind::Signals | Kind::Watch) {
        let local = u64::from(libc::AF_UNIX.unsigned_abs());
        rules.insert(libc::SYS_socket, one_of(0, &[local])?);
    }
    Ok(rules)
}

/// Names of threads and of memory.
const PRCTLS: [u64; 3] = [
    libc::PR_SET_NAME.unsigned_abs() as u64,
    libc::PR_GET_NAME.unsigned_abs() as u64,
    libc::PR_SET_VMA.unsigned_abs() as u64,
];

/// New processes: what is no thread. The arguments of clone3 lie in memory,
/// where a filter does not see them; the C library goes on with clone.
fn processes() -> Result<Rules, Unfit> {
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let mut rules = Rules::new();
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.insert(libc::SYS_clone, without(0, thread)?);
    Ok(rules)
}

/// Numbers of the x32 ABI, which share the architecture of 64-bit ones, are
/// refused: lists of what is forbidden would not know them.
fn no_foreign_numbers() -> BpfProgram {
    if !cfg!(target_arch = "x86_64") {
        return BpfProgram::new();
    }
    const X32: u32 = 0x4000_0000;
    // BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JGE | BPF_K, BPF_RET | BPF_K
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let step = |code, jt, k| sock_filter { code, jt, jf: 0, k };
    vec![
        // seccomp_data.nr
        step(LOAD, 0, 0),
        step(JUMP_IF_AT_LEAST, 1, X32),
        step(RETURN, 0, u32::from(SeccompAction::Allow)),
        step(RETURN, 0, u32::from(errno(libc::ENOSYS))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_but_the_keeper_has_a_list_that_compiles() {
        let filters = Filters::compile(true).unwrap();
        for kind in Kind::ALL {
            let listed = filters.kinds.iter().any(|(one, _)| *one == kind);
            assert_eq!(listed, kind != Kind::Keeper, "{kind:?}");
        }
    }

    #[test]
    fn nothing_is_allowed_that_no_start_needs() {
        let never: Vec<_> = lists::never().collect();
        for kind in listed() {
            for call in of_kind(kind, true).unwrap().keys() {
                assert!(!never.contains(call), "{kind:?}: {call}");
            }
        }
    }
}
