//! Capabilities: what each kind of thread keeps of those that the process was
//! started with.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::kind::Kind;

/// What the mode needs capabilities for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// A lease on an image of another user (`F_SETLEASE`): CAP_LEASE.
    pub lease: bool,
    /// Whether pages of a read-only image of another user are cached
    /// (cachestat(2)): CAP_DAC_OVERRIDE.
    pub cached: bool,
    /// A block device is opened again for each guest (`O_EXCL`), by another
    /// user than its owner: CAP_DAC_OVERRIDE.
    pub claim: bool,
    /// Memory that is locked or registered: CAP_IPC_LOCK.
    pub lock: bool,
    /// A start in swap-grade mode (`PR_SET_IO_FLUSHER`, oom_score_adj):
    /// CAP_SYS_RESOURCE.
    pub flush: bool,
    /// A start that listens at a low port: CAP_NET_BIND_SERVICE.
    pub port: bool,
}

impl Needs {
    /// What a thread of this kind calls for while it runs.
    fn of(&self, kind: Kind) -> CapabilitySet {
        let mut set = CapabilitySet::empty();
        // Whoever maps memory in a process that has locked all of it.
        set.set(CapabilitySet::IPC_LOCK, self.lock);
        match kind {
            Kind::Guard => {
                set.set(CapabilitySet::LEASE, self.lease);
                set.set(CapabilitySet::DAC_OVERRIDE, self.cached);
            }
            Kind::Filler => set.set(CapabilitySet::DAC_OVERRIDE, self.cached),
            Kind::Session | Kind::Control => set.set(CapabilitySet::DAC_OVERRIDE, self.claim),
            Kind::Keeper => set = self.start(),
            _ => {}
        }
        set
    }

    /// What a start calls for: it opens an image and makes sockets in folders
    /// of any user.
    fn start(&self) -> CapabilitySet {
        let mut set = CapabilitySet::DAC_OVERRIDE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::FOWNER
            | CapabilitySet::LEASE;
        set.set(CapabilitySet::IPC_LOCK, self.lock);
        set.set(CapabilitySet::SYS_RESOURCE, self.flush);
        set.set(CapabilitySet::NET_BIND_SERVICE, self.port);
        set
    }
}

/// No program that this process becomes gets more than a start needs.
pub(super) fn bound(needs: &Needs) {
    let kept = needs.start();
    for capability in CapabilitySet::all().difference(kept).iter() {
        // Without CAP_SETPCAP it stays as it is, which no_new_privs makes up
        // for; a kernel may not know all of them.
        if remove_capability_from_bounding_set(capability).is_err() {
            continue;
        }
    }
}

/// Leaves this thread what its kind needs.
///
/// # Errors
/// What capset(2) says.
pub(super) fn reduce(kind: Kind, needs: &Needs) -> rustix::io::Result<()> {
    let kept = needs.of(kind);
    let CapabilitySets {
        effective,
        permitted,
        inheritable,
    } = capabilities(None)?;
    let keeper = kind == Kind::Keeper;
    if !keeper {
        // Kernels before 4.3 have none.
        let _ = clear_ambient_capability_set();
    }
    let inheritable = if keeper {
        inheritable & kept
    } else {
        CapabilitySet::empty()
    };
    set_capabilities(
        None,
        CapabilitySets {
            effective: effective & kept,
            permitted: permitted & kept,
            inheritable,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_nothing_that_its_mode_does_not_need() {
        let none = Needs::default();
        for kind in Kind::ALL {
            if kind != Kind::Keeper {
                assert_eq!(none.of(kind), CapabilitySet::empty(), "{kind:?}");
            }
        }
        let all = Needs {
            lease: true,
            cached: true,
            claim: true,
            lock: true,
            flush: true,
            port: true,
        };
        let lock = CapabilitySet::IPC_LOCK;
        assert_eq!(all.of(Kind::Worker), lock);
        assert_eq!(
            all.of(Kind::Guard),
            lock | CapabilitySet::LEASE | CapabilitySet::DAC_OVERRIDE
        );
        for kind in Kind::ALL {
            assert!(all.start().contains(all.of(kind)), "{kind:?}");
        }
    }
}
