//! What a service manager has handed over at the start: sockets to listen on, and
//! what an earlier process of the same service has left to it.

use std::os::fd::{OwnedFd, RawFd};

use listenfd::ListenFd;

use crate::host::sys;

/// What the names of all begin with that processes leave; a number follows.
pub(crate) const LEFT: &str = "extentd-session-";

/// Descriptors that a process was started with (LISTEN_FDS).
#[derive(Debug, Default)]
pub struct Activation {
    /// Sockets, in their order.
    pub sockets: Vec<RawFd>,
    /// What was left, the latest last, with the name it has there.
    pub(crate) left: Vec<(String, OwnedFd)>,
}

impl Activation {
    /// Takes what the environment tells of; to be called once, and before there is
    /// a second thread.
    #[must_use]
    pub fn from_env() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut handed = ListenFd::from_env();
        let fds = (0..handed.len()).map(|index| handed.take_raw_fd(index).ok().flatten());
        let mut activation = Self::default();
        let mut left = Vec::new();
        for (fd, name) in fds.zip(names.split(':').chain(std::iter::repeat(""))) {
            let Some(fd) = fd else { continue };
            match number(name) {
                None => activation.sockets.push(fd),
                // One that is not open is as good as none.
                Some(number) => left.extend(
                    sys::inherited(fd)
                        .ok()
                        .map(|fd| (number, name.to_owned(), fd)),
                ),
            }
        }
        left.sort_unstable_by_key(|(number, ..)| *number);
        activation.left = left.into_iter().map(|(_, name, fd)| (name, fd)).collect();
        activation
    }
}

/// Of what a process has left.
fn number(name: &str) -> Option<u64> {
    name.strip_prefix(LEFT)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_processes_leave_is_no_socket() {
        assert_eq!(number("extentd-session-17"), Some(17));
        for name in [
            "",
            "unknown",
            "extentd@vm.socket",
            "extentd-session-",
            "extentd-session-x",
        ] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
