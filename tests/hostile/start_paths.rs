//! Locks, pipes, links and sockets of others where a start has to go by.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use front_end::{Like, Wanted};
use rig::attached::{Attached, serve};
use rig::small_image::{IMAGE, content};

use crate::fuse::Deaf;

/// A start that must end by itself.
fn start(socket: &Path, image: &Path) -> Output {
    starting(&rig::extentd!(), socket, image).output().unwrap()
}

fn starting(program: &Path, socket: &Path, image: &Path) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["-k", "1", "60"])
        .arg(program)
        .arg("--socket-path")
        .arg(socket)
        .arg("--blk-file")
        .arg(image);
    command
}

fn assert_refused(output: &Output, said: &str) {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    // Lines before it may tell of the image.
    let last = error.lines().last().unwrap();
    assert!(last.contains(said), "{error}");
}

fn fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[test]
fn pipes_and_links_at_the_paths_are_told_and_wait_for_nobody() {
    let files = rig::scratch::folder("hostile");
    let path = |name: &str| files.path().join(name);
    fs::write(path("image"), content(0, IMAGE)).unwrap();
    fifo(&path("pipe"));
    symlink(path("nothing"), path("dangling")).unwrap();
    symlink(path("loop"), path("loop")).unwrap();
    let image = path("image");
    assert_refused(&start(&path("pipe/s"), &image), "cannot listen");
    for there in ["pipe", "dangling", "loop", "image"] {
        let said = "this is no socket: remove it, or give another path";
        assert_refused(&start(&path(there), &image), said);
        assert!(path(there).symlink_metadata().is_ok(), "it is still there");
    }
    for no_image in ["pipe", "dangling", "loop"] {
        let output = start(&path("s"), &path(no_image));
        assert_refused(&output, "--blk-file ");
        assert!(!path("s").exists());
    }
}

#[test]
fn a_file_system_that_does_not_answer_is_told_and_waited_for_no_longer() {
    let Some(deaf) = Deaf::new() else { return };
    let files = rig::scratch::folder("hostile");
    let path = |name: &str| files.path().join(name);
    fs::write(path("image"), content(0, IMAGE)).unwrap();
    let dead = deaf.path();
    let options = [
        "--blk-file",
        "--socket-path",
        "--control-path",
        "--metrics-listen",
        "--limit-group",
        "--snapshot-dir",
        "--config",
    ];
    let starts = options.map(|option| {
        let mut image = path("image");
        let mut socket = path(option);
        let mut more = None;
        match option {
            "--blk-file" => image = dead.clone(),
            "--socket-path" => socket = dead.clone(),
            "--metrics-listen" => more = Some(format!("unix:{}", dead.display())),
            _ => more = Some(dead.display().to_string()),
        }
        let mut command = starting(&rig::extentd!(), &socket, &image);
        if let Some(value) = more {
            command.args([option, &value]);
        }
        command.stderr(Stdio::piped()).spawn().unwrap()
    });
    for (option, start) in options.iter().zip(starts) {
        let output = start.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let wrong = if *option == "--config" { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(wrong), "{option}: {error}");
        let name = format!("{option} {}: ", dead.display());
        let last = error.lines().last().unwrap();
        assert!(
            last.contains(&format!("{name}its file system has not answered")),
            "{error}"
        );
        // Before there is a log nothing is told meanwhile.
        let told = error.contains(&format!("{name}waiting for its file system"));
        assert_eq!(told, *option != "--config", "{error}");
    }
}

#[test]
fn a_lock_on_the_folder_delays_no_restart_and_no_hand_over_for_long() {
    let files = rig::scratch::folder("hostile");
    let path = |name: &str| files.path().join(name);
    fs::write(path("image"), content(0, IMAGE)).unwrap();
    let folder = fs::File::open(files.path()).unwrap();
    rustix::fs::flock(
        &folder,
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    )
    .unwrap();
    let (socket, image) = (path("socket"), path("image"));
    let control = path("control");
    let control = ["--control-path", control.to_str().unwrap()];
    let read = || {
        let mut guest = Attached::new(&socket, Like::Qemu, Wanted::default());
        assert_eq!(guest.read(5, 512), content(5 * 512, 512));
    };
    let daemon = serve(&rig::extentd!(), &socket, &image, &control);
    read();
    daemon.kill().unwrap();
    // What was killed has left its sockets.
    let daemon = serve(&rig::extentd!(), &socket, &image, &control);
    daemon
        .wait_stderr(|line| line.contains("somebody holds a lock on"))
        .unwrap();
    read();
    daemon.signal(libc::SIGUSR2).unwrap();
    daemon
        .wait_stderr(|line| line.contains("taken over after"))
        .unwrap();
    read();
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn a_socket_of_another_user_in_a_shared_folder_is_told_and_left_alone() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: only root can become another user");
        return;
    }
    let files = rig::scratch::folder("hostile");
    let path = |name: &str| files.path().join(name);
    fs::set_permissions(files.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(path("shared")).unwrap();
    fs::set_permissions(path("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(path("image"), content(0, IMAGE)).unwrap();
    fs::set_permissions(path("image"), fs::Permissions::from_mode(0o666)).unwrap();
    let program = path("extentd");
    fs::copy(rig::extentd!(), &program).unwrap();
    let socket = path("shared/s");
    for mode in [0o755, 0o777] {
        for live in [false, true] {
            let listener = UnixListener::bind(&socket).unwrap();
            fs::set_permissions(&socket, fs::Permissions::from_mode(mode)).unwrap();
            let kept = live.then_some(listener);
            let output = starting(&program, &socket, &path("image"))
                .uid(65534)
                .gid(65534)
                .current_dir("/")
                .output()
                .unwrap();
            let said = if live && mode == 0o777 {
                "another process uses this socket"
            } else {
                "a socket of another user is in the way"
            };
            assert_refused(&output, said);
            drop(kept);
            fs::remove_file(&socket).unwrap();
        }
    }
}
