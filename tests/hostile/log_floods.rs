//! What others do in a loop fills no log, hides no operator's lines, and a log
//! that nobody reads holds nobody up.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use front_end::{Daemon, Like, Wanted, limit};
use rig::attached::Attached;
use rig::small_image::{IMAGE, content};

use crate::looked_after::LookedAfter;

/// Times that something is done in a loop.
const ROUNDS: usize = 1500;

fn assert_limited(one: &LookedAfter, bytes: usize) {
    let mut line = one.greeted();
    let call = rig::operator::call("io-path", "{\"path\":\"file\"}");
    line.say(format!("{call}\n").as_bytes()).unwrap();
    line.hear();
    // An operator's own line is not lost in the flood.
    one.daemon
        .wait_stderr(|line| line.contains("asks: io-path file"))
        .unwrap();
    let told = one
        .daemon
        .wait_stderr(|line| line.contains("lines of the log were left out"))
        .unwrap();
    assert!(told.starts_with("extentd: warning: "), "{told}");
    let size: usize = one.daemon.stderr().iter().map(|line| line.len() + 1).sum();
    assert!(size < bytes, "{size} bytes");
    one.assert_all_served();
}

#[test]
fn connects_in_a_loop_do_not_fill_the_log() {
    for (level, bytes) in [("info", 300 << 10), ("debug", 600 << 10)] {
        let one = LookedAfter::start(&[("RUST_LOG", level)]);
        for _ in 0..ROUNDS {
            drop(UnixStream::connect(one.daemon.socket()).unwrap());
        }
        assert_limited(&one, bytes);
    }
}

#[test]
fn refusals_in_a_loop_do_not_fill_the_log() {
    let one = LookedAfter::start(&[]);
    for _ in 0..ROUNDS {
        use std::io::Write;
        let mut stream = UnixStream::connect(one.daemon.socket()).unwrap();
        let _ = stream.write_all(&[0xff; 64]);
    }
    assert_limited(&one, 300 << 10);
}

/// A pipe that is full; its end for reading has to be kept.
pub fn full_pipe() -> (std::io::PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b"x").is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (reader, Stdio::from(writer))
}

#[test]
fn a_log_that_is_full_from_the_start_holds_no_start_service_or_stop_up() {
    let files = rig::scratch::folder("hostile");
    let (socket, image) = (files.path().join("socket"), files.path().join("image"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let (_reader, stderr) = full_pipe();
    let details = [("RUST_LOG", "trace")];
    let daemon =
        Daemon::start_to(&rig::extentd!(), &socket, &image, &[], &details, stderr).unwrap();
    for _ in 0..20 {
        let mut guest = Attached::new(&socket, Like::Qemu, Wanted::default());
        assert_eq!(guest.read(5, 512), content(5 * 512, 512));
    }
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn a_start_that_fails_ends_though_nobody_reads_why() {
    let wrong = [
        &["--blk-file", "/none", "--socket-path", "/none/s"][..],
        &["--socket-path", "/none/s"],
        &["--what"],
    ];
    for arguments in wrong {
        let (_reader, stderr) = full_pipe();
        let mut child = Command::new(rig::extentd!())
            .args(arguments)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let start = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > limit() {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{arguments:?} waits for who reads its standard error");
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
