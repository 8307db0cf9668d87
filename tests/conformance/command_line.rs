//! The process: sockets that it inherits, what it says when it cannot start,
//! how it ends, and who else may use the image.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use front_end::codes::status;
use front_end::{Connection, Like, Session, Wanted, limit};

use crate::disk::{Attached, DATA, Disk, IMAGE, assert_ok, binary, content, scratch, serve};

/// Runs the process to its end.
pub fn run(arguments: &[&str]) -> Output {
    // If it starts where it should not, the test must not hang.
    Command::new("timeout")
        .arg("20")
        .arg(binary())
        .args(arguments)
        .env_remove("LISTEN_FDS")
        // The log may have more to tell.
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Reads from a front-end on a connection that the process has already.
fn assert_serves(stream: UnixStream) {
    let session = Session::over(
        Connection::new(stream).unwrap(),
        Like::Qemu,
        Wanted::default(),
    );
    let mut front = Attached::over(session.unwrap());
    assert_eq!(front.read(5, 512), content(5 * 512, 512));
}

fn exit_status(mut child: Child) -> Option<i32> {
    child.wait().unwrap().code()
}

/// As a child that dies with this process, its socket as standard input.
fn with_socket(socket: OwnedFd, script: &str, image: &Path) -> Child {
    front_end::set_limit(std::time::Duration::from_secs(20));
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "sh", "-c", script])
        .arg("sh")
        .arg(binary())
        .arg(image)
        .stdin(socket)
        .spawn()
        .unwrap()
}

#[test]
fn vu_45_a_listening_socket_is_inherited() {
    let files = scratch();
    let (path, image) = (files.path().join("socket"), files.path().join("image"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    for script in [
        "exec \"$1\" --fd 0 --blk-file \"$2\"",
        // As a service manager does it.
        "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$1\" --blk-file \"$2\"",
    ] {
        let listener = UnixListener::bind(&path).unwrap();
        // Already there before the process is.
        let early = UnixStream::connect(&path).unwrap();
        let child = with_socket(listener.into(), script, &image);
        assert_serves(early);
        for _ in 0..3 {
            assert_serves(UnixStream::connect(&path).unwrap());
        }
        // What it becomes inherits it as well.
        let mut served = UnixStream::connect(&path).unwrap();
        // Once it is answered it has been accepted, and its successor will not be the one to do so.
        let connection = Connection::new(served.try_clone().unwrap()).unwrap();
        let session = Session::over(connection, Like::Qemu, Wanted::default()).unwrap();
        signal(&child, "USR2");
        assert_eq!(served.read(&mut [0; 1]).unwrap(), 0);
        drop(session);
        assert_serves(UnixStream::connect(&path).unwrap());
        signal(&child, "TERM");
        assert_eq!(exit_status(child), Some(0));
        // Not its own, so it stays.
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn vu_45_a_connected_socket_is_inherited_and_is_the_only_one() {
    let files = scratch();
    let image = files.path().join("image");
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let script = "exec \"$1\" --fd 0 --blk-file \"$2\"";
    let child = with_socket(theirs.into(), script, &image);
    assert_serves(ours);
    assert_eq!(exit_status(child), Some(0));
}

fn signal(child: &Child, name: &str) {
    let killed = Command::new("kill")
        .args(["-s", name, &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
}

#[test]
fn vu_46_a_start_that_fails_says_why_in_one_line() {
    let files = scratch();
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let (image, none, short, text) = (path("image"), path("none"), path("short"), path("text"));
    let (socket, live) = (path("socket"), path("live"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    std::fs::write(&short, []).unwrap();
    std::fs::write(&text, "no socket").unwrap();
    let _listener = UnixListener::bind(&live).unwrap();
    let deep = format!("{none}/socket");
    let long = format!("{}/{}", path(""), "x".repeat(120));
    let long_name = path(&"x".repeat(300));
    let folder = files.path().to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["--socket-path", &socket, "--blk-file", &none],
            1,
            "--blk-file",
        ),
        (
            &["--socket-path", &socket, "--blk-file", folder],
            1,
            "--blk-file",
        ),
        (
            &["--socket-path", &socket, "--blk-file", &short],
            1,
            "--blk-file",
        ),
        (
            &["--socket-path", &socket, "--blk-file", "/dev/null"],
            1,
            "--blk-file",
        ),
        (
            &["--socket-path", &live, "--blk-file", &image],
            1,
            "--socket-path",
        ),
        (
            &["--socket-path", &text, "--blk-file", &image],
            1,
            "--socket-path",
        ),
        (
            &["--socket-path", &deep, "--blk-file", &image],
            1,
            "--socket-path",
        ),
        (
            &["--socket-path", &long, "--blk-file", &image],
            1,
            "--socket-path",
        ),
        (&["--fd", "77", "--blk-file", &image], 1, "--fd"),
        // What it opens itself gets this number, and is not taken for it.
        (
            &["--fd", "3", "--blk-file", &image],
            1,
            "--fd 3: Bad file descriptor",
        ),
        (&["--fd", "0", "--blk-file", &image], 1, "--fd"),
        (
            &[
                "--control-path",
                &text,
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
            ],
            1,
            "--control-path",
        ),
        (&["--blk-file", &image], 2, "--socket-path"),
        (&["--socket-path", &socket], 2, "--blk-file"),
        (
            &["--socket-path", &socket, "--fd", "3", "--blk-file", &image],
            2,
            "--fd",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--num-queues",
                "0",
            ],
            2,
            "--num-queues",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--queue-size",
                "100",
            ],
            2,
            "--queue-size",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--num-queues",
                "1",
                "--threads",
                "2",
            ],
            2,
            "--threads",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--num-queues",
                "-1",
            ],
            2,
            "--num-queues <N>': give a number, 1 to 256",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--threads",
                "many",
            ],
            2,
            "--threads <N>': give a number, 1 to 256",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--cpus",
                "-1",
            ],
            2,
            "--cpus <LIST>': '-1' names no CPU",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--io-path",
                "raw",
            ],
            2,
            "--io-path <WAY>' [possible values: auto",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--num-queue",
                "2",
            ],
            2,
            "a similar argument exists: '--num-queues'",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--control-path",
                &socket,
            ],
            2,
            "give extentctl a path of its own",
        ),
        (
            &["--fd", "2", "--blk-file", &image],
            2,
            "--fd <N>': the log goes there",
        ),
        (
            &["--socket-path", &long_name, "--blk-file", &image],
            1,
            "a socket's path has less than 108 bytes",
        ),
        (
            &["--socket-path", &socket, "--blk-file", &long_name],
            1,
            "check the name",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--metrics-listen",
                "192.0.2.1:9",
            ],
            1,
            "--metrics-listen 192.0.2.1:9: cannot listen",
        ),
        (
            &[
                "--socket-path",
                &socket,
                "--blk-file",
                &image,
                "--metrics-listen",
                &format!("unix:{socket}"),
            ],
            2,
            "give metrics a path of their own",
        ),
        (
            &["--socket-path", &socket, "--blk-file", &image, "--nonsense"],
            2,
            "--nonsense",
        ),
    ];
    for (arguments, code, option) in cases {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {said}");
        assert!(said.contains(option), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        assert!(said.starts_with("extentd: "), "{said}");
    }
    // Nothing was touched or left behind.
    assert!(!Path::new(&socket).exists());
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "no socket");
    assert!(std::fs::read(&image).unwrap() == content(0, IMAGE));
}

#[test]
fn vu_45_capabilities_are_json_of_the_schema() {
    let output = run(&["--print-capabilities"]);
    assert!(output.status.success());
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["type"], "block");
    assert_eq!(
        printed["features"],
        serde_json::json!(["read-only", "blk-file"])
    );
}

#[test]
fn vu_46_the_process_stays_in_the_foreground() {
    let disk = Disk::start(&[]);
    // It is still the child that was started, in our session.
    let stat = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<String> = text
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        (fields[1].clone(), fields[3].clone())
    };
    let (parent, session) = stat(&disk.daemon.pid().to_string());
    assert_eq!(parent, std::process::id().to_string());
    assert_eq!(session, stat("self").1);
    assert!(disk.daemon.terminate().unwrap().success());
}

#[test]
fn two_processes_never_have_the_image_at_a_time() {
    let disk = Disk::start(&[]);
    let mut first = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    first.write(1, &[1; 512]);
    let files = scratch();
    let socket = files.path().join("socket");
    let daemon = serve(&socket, &disk.image, &[]);
    let mut second = Attached::new(&socket, Like::Qemu, Wanted::default());
    daemon
        .wait_stderr(|line| line.contains("is in use by another process"))
        .unwrap();
    let data = [front_end::Buffer::writable(DATA, 512)];
    assert!(second.driver.submit(front_end::Op::Read, 1, &data, 0));
    second.driver.publish().unwrap();
    second.driver.ring().kick().unwrap();
    second.session.connection.get_features().unwrap();
    assert_eq!(second.driver.ring().device_index(), 0);
    first.write(1, &[2; 512]);
    // The first guest goes, and the second has it without being asked again.
    drop(first);
    assert_ok(second.driver.wait(limit()).unwrap(), 513);
    assert_eq!(second.memory.read(DATA, 512).unwrap(), [2; 512]);
}

#[test]
fn without_the_lock_two_processes_may_have_the_image() {
    let disk = Disk::start(&["--lock", "off"]);
    let mut first = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let files = scratch();
    let socket = files.path().join("socket");
    let _daemon = serve(&socket, &disk.image, &["--lock", "off"]);
    let mut second = Attached::new(&socket, Like::Qemu, Wanted::default());
    first.write(1, &[1; 512]);
    assert_eq!(second.read(1, 512), [1; 512]);
}

/// What QEMU's tools say of the image.
fn qemu_img(image: &Path) -> Output {
    Command::new("qemu-img")
        .args(["resize", "-f", "raw"])
        .arg(image)
        .arg(IMAGE.to_string())
        .output()
        .unwrap()
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-storage-daemon")
        .arg("--version")
        .output();
    if found.is_err() {
        println!("SKIP: no qemu-storage-daemon");
    }
    found.is_ok()
}

#[test]
fn tools_of_qemu_leave_an_image_alone_that_a_guest_uses() {
    if !has_qemu() {
        return;
    }
    let disk = Disk::start(&[]);
    // No guest, no lock.
    assert!(qemu_img(&disk.image).status.success());
    let front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let refused = qemu_img(&disk.image);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("lock"), "{said}");
    // A guest that is paused goes on with what it has cached.
    front.session.stop(1).unwrap();
    assert!(!qemu_img(&disk.image).status.success());
    drop(front);
    disk.daemon
        .wait_stderr(|line| line.contains("the front-end has gone"))
        .unwrap();
    assert!(qemu_img(&disk.image).status.success());
}

#[test]
fn an_image_that_qemu_uses_is_left_alone() {
    if !has_qemu() {
        return;
    }
    let disk = Disk::start(&[]);
    let files = scratch();
    let (pid, other) = (files.path().join("pid"), files.path().join("other"));
    let mut qemu = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-storage-daemon"])
        .arg("--blockdev")
        .arg(format!(
            "driver=file,node-name=f,filename={}",
            disk.image.display()
        ))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on",
            other.display()
        ))
        .arg("--pidfile")
        .arg(&pid)
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while !pid.exists() {
        assert!(start.elapsed() < limit(), "it does not start");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    disk.daemon
        .wait_stderr(|line| line.contains("is in use by another process"))
        .unwrap();
    let data = [front_end::Buffer::writable(DATA, 512)];
    assert!(front.driver.submit(front_end::Op::Read, 1, &data, 0));
    front.driver.publish().unwrap();
    front.session.connection.get_features().unwrap();
    assert_eq!(front.driver.ring().device_index(), 0);
    signal(&qemu, "TERM");
    qemu.wait().unwrap();
    let done = front.driver.wait(limit()).unwrap();
    assert_eq!(done.status, status::OK);
}
