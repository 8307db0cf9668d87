//! Limits of the process (setrlimit(2)) that stand in the way of a disk.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is said where there is no memory, in the words of a service manager
/// and of a shell.
pub(crate) const NO_MEMORY: &str = "there is no memory left: raise the limit on it (LimitDATA=, LimitAS=, ulimit -d, ulimit -v; sysctl vm.overcommit_memory)";

/// Raises the limits that would only make requests or front-ends fail, as far
/// as the process may: on the length of files, and on open files.
pub(crate) fn raise() {
    for resource in [Resource::Fsize, Resource::Nofile] {
        let Rlimit { current, maximum } = getrlimit(resource);
        if current == maximum {
            continue;
        }
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        if let Err(error) = setrlimit(resource, raised) {
            log::warn!("{resource:?}: the limit cannot be raised: {error}");
        }
    }
}

/// How long a file may become, in bytes; `None` without a limit.
pub(crate) fn file_length() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}
