//! Who waits, and for whom.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use front_end::{Daemon, Like, Session, Wanted};
use serde_json::Value;

use crate::rig::{Rig, extentd};

fn is_me(one: &Value) -> bool {
    one["pid"] == std::process::id() && one["uid"].is_u64() && one["seconds"].is_u64()
}

/// What `info` says of the session, once it is as wanted.
fn session_of(rig: &Rig, wanted: impl Fn(&Value) -> bool) -> Value {
    rig.until(&["info"], |info| wanted(&info["session"]))["session"].clone()
}

#[test]
fn a_second_front_end_is_told_of_in_the_log_and_in_info() {
    let rig = Rig::on_tmpfs(&[]);
    let nobody = session_of(&rig, |_| true);
    assert_eq!(nobody["front_end"], Value::Null);
    let first = Session::open(rig.daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
    let second = UnixStream::connect(rig.daemon.socket()).unwrap();
    let me = format!("pid {}, uid", std::process::id());
    let line = rig
        .daemon
        .wait_stderr(|line| line.contains("another front-end"))
        .unwrap();
    assert_eq!(line.matches(&me).count(), 2, "both are named: {line}");
    let session = session_of(&rig, |one| one["waiting"].as_array().unwrap().len() == 1);
    assert!(
        is_me(&session["front_end"]) && is_me(&session["waiting"][0]),
        "{session}"
    );
    drop(second);
    session_of(&rig, |one| one["waiting"].as_array().unwrap().is_empty());
    drop(first);
    session_of(&rig, |one| one["connected"] == false);
}

#[test]
fn who_connects_again_at_once_waits_for_nobody() {
    let rig = Rig::on_tmpfs(&[]);
    // As libblkio does to ask for properties first.
    for _ in 0..50 {
        let mut session =
            Session::open(rig.daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
        session.start_one(1 << 20, 16).unwrap();
    }
    session_of(&rig, |one| one["connected"] == false);
    let told = rig.daemon.stderr();
    let waited = told.iter().find(|line| line.contains("another front-end"));
    assert_eq!(waited, None);
}

#[test]
fn a_silent_connection_keeps_nobody_out_for_ever() {
    let rig = Rig::on_tmpfs(&[]);
    let mut silent = UnixStream::connect(rig.daemon.socket()).unwrap();
    session_of(&rig, |one| one["connected"] == true);
    // Alone it may be silent.
    silent
        .set_read_timeout(Some(Duration::from_secs(6)))
        .unwrap();
    let early = silent.read(&mut [0]).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::WouldBlock);
    // The next one has its answers.
    let session = Session::open(rig.daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
    session.connection.get_features().unwrap();
    silent.set_read_timeout(None).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "it was ended");
    let line = rig
        .daemon
        .wait_stderr(|line| line.contains("it has sent nothing"))
        .unwrap();
    assert!(line.contains("waits"), "{line}");
}

#[test]
fn who_waits_for_a_busy_image_is_told_since_when() {
    let rig = Rig::on_tmpfs(&[]);
    let mut first = Session::open(rig.daemon.socket(), Like::Qemu, Wanted::default()).unwrap();
    first.start_one(1 << 20, 16).unwrap();
    let files = tempfile::tempdir().unwrap();
    let [socket, control] = ["socket", "control"].map(|name| files.path().join(name));
    let arguments = ["--control-path", control.to_str().unwrap()];
    let other = Daemon::start(&extentd(), &socket, &rig.image, &arguments).unwrap();
    let mut second = Session::open(other.socket(), Like::Qemu, Wanted::default()).unwrap();
    second.start_one(1 << 20, 16).unwrap();
    let info = Command::new(env!("CARGO_BIN_EXE_extentctl"))
        .arg("--control-path")
        .arg(&control)
        .args(["--json", "info"])
        .output()
        .unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    let session = &info["session"];
    assert_eq!(session["waits_for_image"], true);
    let awaited = &session["image_awaited"];
    assert!(awaited["seconds"].is_u64(), "{session}");
    let reason = awaited["reason"].as_str().unwrap();
    assert!(reason.contains("in use by another process"), "{reason}");
}
