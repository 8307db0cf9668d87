//! UNIX sockets: bound to a path, or inherited.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::sys;

/// Why there is no socket to use; each says what to do. `option` is the one
/// that names the socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("{option} {path}: another process uses this socket: stop it, or give another path")]
    Live {
        /// The option.
        option: &'static str,
        /// The socket.
        path: PathBuf,
    },
    /// A file that is not ours to replace.
    #[error("{option} {path}: this is no socket: remove it, or give another path")]
    Occupied {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// One that this process may neither use nor remove.
    #[error(
        "{option} {path}: a socket of another user is in the way: {source}: give a path in a folder of your own"
    )]
    Foreign {
        /// The option.
        option: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The host refuses.
    #[error(
        "{option} {path}: cannot listen: {source}: {remedy}",
        remedy = match source.raw_os_error() {
            Some(libc::EMFILE) => "raise the limit on open files (LimitNOFILE=, ulimit -n)",
            Some(libc::ENAMETOOLONG) => "a socket's path has less than 108 bytes: give a shorter one",
            _ if source.kind() == io::ErrorKind::InvalidInput => {
                "a socket's path has less than 108 bytes: give a shorter one"
            }
            _ => "check that its directory exists and can be written",
        }
    )]
    Bind {
        /// The option.
        option: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The number is no open UNIX socket.
    #[error("{option} {fd}: {source}: pass an open UNIX stream socket under this number")]
    Inherited {
        /// The option.
        option: &'static str,
        /// The descriptor.
        fd: RawFd,
        /// What the host says.
        source: io::Error,
    },
}

/// A socket file that this process has made; removed when dropped, if it is
/// still the same one.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Leaves the file to who listens there next.
    pub(crate) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if same && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Listens at `path`, where only the user that runs this process may connect
/// (mode 0600), whatever the umask. A socket file that no process has bound is
/// replaced. `option` is named in errors.
///
/// # Errors
/// The path is in use, or the host refuses.
pub(crate) fn bind(
    path: &Path,
    option: &'static str,
) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |source| SocketError::Bind {
        option,
        path: path.to_owned(),
        source,
    };
    let in_the_way = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => SocketError::Foreign {
            option,
            path: path.to_owned(),
            source,
        },
        _ => failed(source),
    };
    // Two processes that find the same stale file must not both replace it:
    // the second would take the first one's socket away.
    let _lock = lock_directory(path);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::Occupied {
                option,
                path: path.to_owned(),
            });
        }
        Ok(_) if is_bound(path).map_err(in_the_way)? => {
            return Err(SocketError::Live {
                option,
                path: path.to_owned(),
            });
        }
        Ok(_) => {
            fs::remove_file(path).map_err(in_the_way)?;
            log::info!(
                "{} was left behind by a process that has ended: replaced",
                path.display()
            );
        }
    }
    let before = sys::umask(0o177);
    let listener = UnixListener::bind(path);
    sys::umask(before);
    let listener = listener.map_err(failed)?;
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    Ok((
        listener,
        SocketFile {
            path: path.to_owned(),
            identity: (meta.dev(), meta.ino()),
        },
    ))
}

/// Whether the open descriptor `fd` is a socket that listens at `path`.
pub(crate) fn listens_at(fd: RawFd, path: &Path) -> bool {
    sys::is_listening(fd).is_ok_and(|listening| listening)
        && sys::bound_path(fd).is_some_and(|bound| bound == path)
}

/// Goes on with a listening socket that was inherited as `fd` and bound to
/// `path` by the process before; its file is ours now.
///
/// # Errors
/// As [`inherit`].
pub(crate) fn adopt(
    fd: RawFd,
    path: &Path,
) -> Result<(UnixListener, Option<SocketFile>), SocketError> {
    let failed = |source| SocketError::Inherited {
        option: "LISTEN_FDS",
        fd,
        source,
    };
    let listener = UnixListener::from(sys::inherited(fd).map_err(failed)?);
    let file = fs::symlink_metadata(path).ok().map(|meta| SocketFile {
        path: path.to_owned(),
        identity: (meta.dev(), meta.ino()),
    });
    Ok((listener, file))
}

/// How often the lock on a directory is asked for, and how long between. Only
/// other starting processes should have it, and those for a moment.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

/// Keeps other starting processes away from the directory until dropped.
/// Where locks do not exist, or somebody else has one for reasons of his own,
/// the race is as unlikely as it is everywhere.
fn lock_directory(path: &Path) -> Option<File> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // What is no directory could make an open wait, as a pipe does.
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK)
        .open(directory)
        .ok()?;
    for _ in 0..LOCK_TRIES {
        match sys::flock_exclusive(&open) {
            Ok(()) => return Some(open),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(_) => return None,
        }
    }
    log::warn!(
        "somebody holds a lock on {}: going on without it",
        directory.display()
    );
    None
}

/// Has any process bound this socket file? A connection would count as a
/// front-end. A datagram socket never gets one from a stream socket, but the
/// kernel looks the owner up first: no owner is ECONNREFUSED, an owner of
/// another type is EPROTOTYPE.
fn is_bound(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect(path) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Ok(false),
            Some(libc::EPROTOTYPE) => Ok(true),
            _ => Err(error),
        },
    }
}

/// An inherited socket, by what it can do.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// It accepts connections.
    Listening(UnixListener),
    /// It is a connection.
    Connected(UnixStream),
}

/// Takes over the descriptor `fd`; to be asked for once. `option` is named in
/// errors.
///
/// # Errors
/// It is not open, or no UNIX socket that listens or is connected.
pub(crate) fn inherit(fd: RawFd, option: &'static str) -> Result<Inherited, SocketError> {
    let failed = |source| SocketError::Inherited { option, fd, source };
    let socket = sys::inherited(fd).map_err(failed)?;
    by_state(socket).map_err(failed)
}

fn by_state(socket: OwnedFd) -> io::Result<Inherited> {
    if sys::is_listening(socket.as_raw_fd())? {
        let listener = UnixListener::from(socket);
        // Fails for other families than AF_UNIX.
        listener.local_addr()?;
        Ok(Inherited::Listening(listener))
    } else {
        let stream = UnixStream::from(socket);
        stream.peer_addr()?;
        Ok(Inherited::Connected(stream))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn socket(directory: &tempfile::TempDir) -> PathBuf {
        directory.path().join("s")
    }

    #[test]
    fn a_stale_socket_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = socket(&directory);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (listener, _file) = bind(&path, "--socket-path").unwrap();
        let client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(client);
    }

    #[test]
    fn a_live_socket_is_refused_and_sees_no_connection() {
        let directory = tempfile::tempdir().unwrap();
        let path = socket(&directory);
        let (listener, _file) = bind(&path, "--socket-path").unwrap();
        let error = bind(&path, "--socket-path").unwrap_err();
        assert!(matches!(error, SocketError::Live { .. }), "{error}");
        listener.set_nonblocking(true).unwrap();
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_of_another_type_is_refused_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let path = socket(&directory);
        let _other = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(
            bind(&path, "--socket-path").unwrap_err(),
            SocketError::Live { .. }
        ));
    }

    #[test]
    fn other_files_are_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = socket(&directory);
        fs::write(&path, "precious").unwrap();
        let error = bind(&path, "--control-path").unwrap_err();
        assert!(matches!(error, SocketError::Occupied { .. }), "{error}");
        assert!(error.to_string().starts_with("--control-path /"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none/s");
        let error = bind(&path, "--socket-path").unwrap_err().to_string();
        assert!(error.contains("none/s: cannot listen"), "{error}");
    }

    #[test]
    fn the_file_goes_with_its_guard_but_a_successor_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = socket(&directory);
        let (_listener, file) = bind(&path, "--socket-path").unwrap();
        drop(file);
        assert!(!path.exists());

        let (_listener, file) = bind(&path, "--socket-path").unwrap();
        fs::rename(&path, directory.path().join("old")).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_is_closed_to_others_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let path = socket(&directory);
        let (_listener, _file) = bind(&path, "--control-path").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn vu_45_inherited_sockets_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket(&directory)).unwrap();
        assert!(matches!(
            by_state(listener.into()).unwrap(),
            Inherited::Listening(_)
        ));
        let (one, _two) = UnixStream::pair().unwrap();
        assert!(matches!(
            by_state(one.into()).unwrap(),
            Inherited::Connected(_)
        ));
    }

    #[test]
    fn vu_45_other_descriptors_are_refused() {
        by_state(File::open("/dev/null").unwrap().into()).unwrap_err();
        by_state(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into()).unwrap_err();
        by_state(UnixDatagram::unbound().unwrap().into()).unwrap_err();
        let error = inherit(RawFd::MAX, "--fd").unwrap_err().to_string();
        assert!(
            error.starts_with("--fd 2147483647: Bad file descriptor"),
            "{error}"
        );
    }
}
