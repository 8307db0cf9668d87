//! The command line of `extentd-nbd`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Parser;
use extentd::options::config::LogLevel;
use extentd::options::usage;
use extentd::process::serve_nbd::{NbdConfig, NbdSocket};

const EXAMPLES: &str = "\
Examples:
  extentd-nbd --socket-path /run/extentd/monday.nbd --file /images/vm1.snapshots/monday
  nbdinfo --map nbd+unix:///?socket=/run/extentd/monday.nbd
  nbdcopy nbd+unix:///?socket=/run/extentd/monday.nbd monday.img
  qemu-img convert -O qcow2 nbd+unix:///?socket=/run/extentd/monday.nbd monday.qcow2

The export is named as the file, and has no name as well. With --since OLDER the ranges that may differ from it are told as qemu:dirty-bitmap:NAME, where NAME is the file name of OLDER.

Exit status: 0 after SIGTERM or SIGINT; 1 when something fails; 2 for a wrong command line. What went wrong is one line on standard error.";

/// Serves a snapshot, read-only, by the NBD protocol on a UNIX socket.
#[derive(Debug, Parser)]
#[command(name = "extentd-nbd", version, after_long_help = EXAMPLES)]
pub struct Args {
    /// Listen here; only the same user and root may connect
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    socket_path: Option<PathBuf>,

    /// Use the listening socket that was inherited under this number. Not needed for one that
    /// systemd hands over
    #[arg(long, value_name = "FD")]
    fd: Option<RawFd>,

    /// The snapshot, or an image that nobody writes
    #[arg(long, value_name = "FILE")]
    file: PathBuf,

    /// Tell where it may differ from this older snapshot; given again, from one more
    #[arg(long, value_name = "OLDER")]
    since: Vec<PathBuf>,

    /// Give up system calls, files and capabilities that are not needed
    #[arg(long, value_name = "on|off", default_value = "on", action = clap::ArgAction::Set,
        value_parser = usage::on_off)]
    sandbox: bool,

    /// How much is logged [default: what RUST_LOG says, else info]
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,
}

impl Args {
    /// What they ask for, beside the sockets that a service manager has handed
    /// over.
    ///
    /// # Errors
    /// There is no socket, or more than one.
    pub fn into_config(self, activated: &[RawFd]) -> Result<NbdConfig, &'static str> {
        let socket = match (self.socket_path, self.fd, activated) {
            (Some(path), _, []) => NbdSocket::Path(path),
            (None, Some(fd), _) => NbdSocket::Inherited(fd, "--fd"),
            (None, None, &[fd]) => NbdSocket::Inherited(fd, "the socket of the unit"),
            (_, _, []) => return Err("give --socket-path or --fd"),
            _ => {
                return Err(
                    "one socket is enough: give no --socket-path beside the one of the unit",
                );
            }
        };
        Ok(NbdConfig {
            socket,
            file: self.file,
            since: self.since,
            sandbox: self.sandbox,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str, activated: &[RawFd]) -> Result<NbdSocket, &'static str> {
        let words = ["extentd-nbd", "--file", "f"].into_iter();
        let words = words.chain(line.split_whitespace());
        let args = Args::try_parse_from(words).unwrap();
        args.into_config(activated).map(|config| config.socket)
    }

    #[test]
    fn there_is_one_socket() {
        assert_eq!(
            config("--socket-path s", &[]),
            Ok(NbdSocket::Path("s".into()))
        );
        assert_eq!(config("--fd 5", &[]), Ok(NbdSocket::Inherited(5, "--fd")));
        assert!(matches!(config("", &[3]), Ok(NbdSocket::Inherited(3, _))));
        assert!(config("", &[]).is_err());
        assert!(config("", &[3, 4]).is_err());
        assert!(config("--socket-path s", &[3]).is_err());
    }
}
