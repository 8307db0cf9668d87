//! Files: what threads may still open, by landlock(7). Nothing at all, or to
//! look at the system: /proc, /sys and the image itself. Who answers operators
//! makes files in one folder besides, if one was named. No thread connects or
//! listens by TCP any more, nor reaches other processes by signals or by
//! sockets with abstract names.
#![allow(unsafe_code)]

use std::error::Error;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};

use super::kind::Kind;

/// The newest interface that was tried.
const NEWEST: ABI = ABI::V7;
/// Since which version signals between threads of one process are no matter
/// of who is in which domain: the lease's are such.
const SIGNALS_WITHIN: u32 = 7;

/// Why files cannot be restricted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unrestricted {
    #[error("this kernel has no landlock (5.13), or it was not enabled at boot (lsm=)")]
    Unsupported,
    #[error("the limit on open files is reached: raise it (LimitNOFILE=, ulimit -n)")]
    Descriptors,
    #[error("{0}")]
    Other(String),
}

fn refused(error: impl Error + 'static) -> Unrestricted {
    if is_limit(&error) {
        Unrestricted::Descriptors
    } else {
        Unrestricted::Other(error.to_string())
    }
}

/// The error, or what it comes from, is the limit on open files.
fn is_limit(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let host = error.downcast_ref::<io::Error>();
        if host.is_some_and(|error| error.raw_os_error() == Some(libc::EMFILE)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Rules for all sorts of threads.
pub(super) struct Files {
    nothing: RulesetCreated,
    looking: RulesetCreated,
    making: RulesetCreated,
    version: u32,
}

impl Files {
    /// Makes the rules; none is in force yet.
    ///
    /// # Errors
    /// The kernel has no landlock, or a path cannot be opened.
    pub(super) fn prepare(image: &Path, folder: Option<&Path>) -> Result<Self, Unrestricted> {
        let version = version();
        if version == 0 {
            return Err(Unrestricted::Unsupported);
        }
        let look = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        let mut looking = ruleset(version).map_err(refused)?;
        for folder in ["/proc", "/sys"] {
            let folder = PathFd::new(folder).map_err(refused)?;
            let rule = PathBeneath::new(folder, look);
            looking = looking.add_rule(rule).map_err(refused)?;
        }
        // Where it is not there the start says so itself.
        if let Ok(image) = PathFd::new(image) {
            let access = make_bitflags!(AccessFs::{ReadFile | WriteFile});
            let rule = PathBeneath::new(image, access);
            looking = looking.add_rule(rule).map_err(refused)?;
        }
        let mut making = looking.try_clone().map_err(refused)?;
        // Likewise.
        if let Some(folder) = folder.and_then(|folder| PathFd::new(folder).ok()) {
            let access = make_bitflags!(AccessFs::{
                ReadFile | WriteFile | ReadDir | MakeReg | RemoveFile
            });
            let rule = PathBeneath::new(folder, access);
            making = making.add_rule(rule).map_err(refused)?;
        }
        Ok(Self {
            nothing: ruleset(version).map_err(refused)?,
            looking,
            making,
            version,
        })
    }

    /// The version of the kernel's interface.
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// Restricts this thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn enter(&self, kind: Kind) -> Result<(), Unrestricted> {
        if kind == Kind::Keeper {
            // The program that it becomes opens anything anew.
            return Ok(());
        }
        let rules = match kind {
            Kind::Control => &self.making,
            kind if kind.looks() => &self.looking,
            _ => &self.nothing,
        };
        let rules = rules.try_clone().map_err(refused)?;
        rules.restrict_self().map_err(refused)?;
        Ok(())
    }
}

fn ruleset(version: u32) -> Result<RulesetCreated, RulesetError> {
    let mut scopes = BitFlags::<Scope>::empty();
    // A manager may listen there for what it is notified of.
    let abstract_manager = std::env::var_os("NOTIFY_SOCKET")
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"@"));
    if !abstract_manager {
        scopes |= Scope::AbstractUnixSocket;
    }
    if version >= SIGNALS_WITHIN {
        scopes |= Scope::Signal;
    }
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?;
    if scopes.is_empty() {
        rules.create()
    } else {
        rules.scope(scopes)?.create()
    }
}

/// The version of the kernel's interface, 0 without one.
fn version() -> u32 {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_ulong = 1;
    // SAFETY: asked for the version, the kernel wants a null pointer and no
    // size, and touches no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}
