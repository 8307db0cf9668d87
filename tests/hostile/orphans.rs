//! Connections that would not end with their process, as the back-end itself
//! has their other end.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::served::{self, Served};

const WAY: &str = "EXTENTD_HOSTILE_WAY";
const SOCKET: &str = "EXTENTD_HOSTILE_SOCKET";

/// What the child does with its end of the connection.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// It is the back-end channel.
    Channel,
    /// It was sent over the back-end channel, and so was that one's own end.
    WithinChannel,
    /// The state of the disk is to come through it.
    State,
    /// It comes with a message that takes none.
    Surplus,
    /// It comes with half a message.
    Half,
}

const WAYS: [Way; 5] = [
    Way::Channel,
    Way::WithinChannel,
    Way::State,
    Way::Surplus,
    Way::Half,
];

/// Not a test of its own: the front-end that is gone after this.
#[test]
fn child() {
    let (Ok(way), Some(socket)) = (std::env::var(WAY), std::env::var_os(SOCKET)) else {
        return;
    };
    let way = WAYS[way.parse::<usize>().unwrap()];
    let session = served::open(Path::new(&socket));
    let connection = &session.connection;
    let own: RawFd = connection.stream().as_raw_fd();
    match way {
        Way::Channel => connection.set_backend_req_fd(own).unwrap(),
        Way::WithinChannel => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.send_with_fds(&[&b"x"[..]], &[own, ours.as_raw_fd()])
                .unwrap();
            connection.set_backend_req_fd(theirs.as_raw_fd()).unwrap();
        }
        Way::State => {
            // SET_DEVICE_STATE_FD, to load, with all rings stopped.
            let payload = [1_u32, 0].map(u32::to_ne_bytes).concat();
            connection.ask(42, &payload, &[own]).unwrap();
        }
        Way::Surplus => connection.send(1, 0, &[], &[own]).unwrap(),
        Way::Half => connection.send_bytes(&[1, 0, 0], &[own]).unwrap(),
    }
    std::process::exit(0);
}

#[test]
fn an_end_that_was_sent_over_itself_keeps_nobody_out() {
    let served = Served::new(&[]);
    for (number, way) in WAYS.iter().enumerate() {
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "orphans::child"])
            .env(WAY, number.to_string())
            .env(SOCKET, served.daemon.socket())
            .status()
            .unwrap();
        assert!(ended.success(), "{way:?}");
        served.serves_the_next();
    }
    served.said("the process that has connected is gone");
}
