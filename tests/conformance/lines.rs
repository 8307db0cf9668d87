//! What the log and a start that fails say; docs/troubleshooting.md explains
//! these lines.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use front_end::{Like, Wanted, limit};

use crate::command_line::run;
use crate::disk::{Attached, Disk, IMAGE, binary, content, scratch, serve};

/// A start that fails says this.
fn assert_refused(arguments: &[&str], said: &str) {
    let output = run(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    assert!(error.contains(said), "{arguments:?}: {error}");
}

#[test]
fn images_that_do_not_look_raw_are_told_and_served_as_they_are() {
    let files = scratch();
    let image = files.path().join("image");
    for (format, at, magic, remedy) in [
        ("qcow2", 0, &b"QFI\xfb"[..], "qemu-img convert"),
        ("VMDK", 0, b"KDMV", "qemu-img convert"),
        ("VHD", 0, b"conectix", "qemu-img convert"),
        ("VDI", 64, b"\x7f\x10\xda\xbe", "qemu-img convert"),
        ("gzip", 0, b"\x1f\x8b\x08", "gunzip"),
        ("xz", 0, b"\xfd7zXZ\0", "unxz"),
        ("zstd", 0, b"\x28\xb5\x2f\xfd", "unzstd"),
    ] {
        let mut bytes = content(0, IMAGE);
        bytes[at..at + magic.len()].copy_from_slice(magic);
        fs::write(&image, &bytes).unwrap();
        let socket = files.path().join(format);
        let daemon = serve(&socket, &image, &[]);
        let looks = format!("looks like a {format} file, and is served as a raw disk");
        let line = daemon.wait_stderr(|line| line.contains(&looks)).unwrap();
        assert!(line.contains(remedy), "{line}");
        let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
        assert_eq!(front.read(0, 512), bytes[..512]);
    }
}

#[test]
fn what_is_no_disk_and_no_socket_is_refused_with_its_remedy() {
    let files = scratch();
    let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    let (image, short, live, text) = (path("image"), path("short"), path("live"), path("text"));
    fs::write(&image, content(0, IMAGE)).unwrap();
    fs::write(&short, []).unwrap();
    fs::write(&text, "no socket").unwrap();
    let _listener = UnixListener::bind(&live).unwrap();
    let folder = files.path().to_str().unwrap();
    let socket = path("socket");
    for (at, file, said) in [
        (&socket, folder, "neither a regular file nor a block device"),
        (&socket, &short, "shorter than one block of 512 bytes"),
        (&live, &image, "another process uses this socket"),
        (&text, &image, "this is no socket: remove it"),
    ] {
        assert_refused(&["--socket-path", at, "--blk-file", file], said);
    }
    let cpu = ["--cpus", "1023"];
    let start = ["--socket-path", &socket, "--blk-file", &image];
    assert_refused(&[&start[..], &cpu].concat(), "may not use CPU 1023");
}

#[test]
fn a_socket_that_a_dead_process_has_left_is_replaced() {
    let files = scratch();
    let (socket, image) = (files.path().join("socket"), files.path().join("image"));
    fs::write(&image, content(0, IMAGE)).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let daemon = serve(&socket, &image, &[]);
    daemon
        .wait_stderr(|line| line.contains("was left behind by a process that has ended"))
        .unwrap();
    let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
    assert_eq!(front.read(5, 512), content(5 * 512, 512));
}

/// Holds a lock of flock(2) on a folder as long as its standard input is open.
fn locked(how: &str, folder: &OsStr) -> Child {
    let mut child = Command::new("flock")
        .arg(how)
        .arg(folder)
        .args(["sh", "-c", "echo locked; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 7];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    child
}

#[test]
fn a_folder_that_somebody_has_locked_holds_no_start_up() {
    let files = scratch();
    let image = files.path().join("image");
    fs::write(&image, content(0, IMAGE)).unwrap();
    for how in ["-x", "-s"] {
        let socket = files.path().join(how);
        let mut holder = locked(how, files.path().as_os_str());
        let daemon = serve(&socket, &image, &[]);
        daemon
            .wait_stderr(|line| line.contains("somebody holds a lock on"))
            .unwrap();
        let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
        assert_eq!(front.read(5, 512), content(5 * 512, 512));
        drop(holder.stdin.take());
        assert!(holder.wait().unwrap().success());
    }
}

#[test]
fn changes_of_the_size_are_told_and_wrong_sizes_refused() {
    let disk = Disk::start(&[]);
    let longer = IMAGE + 4096;
    let refused = Command::new(rig::extentctl!())
        .arg("--control-path")
        .arg(&disk.control)
        .args(["resize", "513"])
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("is not a positive multiple of 512"), "{said}");
    disk.resize(longer);
    let told = format!("resized to {longer} bytes");
    disk.daemon
        .wait_stderr(|line| line.contains(&told))
        .unwrap();
    let image = fs::File::options().write(true).open(&disk.image).unwrap();
    image.set_len(longer as u64 + 4096).unwrap();
    disk.daemon.signal(libc::SIGHUP).unwrap();
    disk.daemon
        .wait_stderr(|line| line.contains("the image's size has changed from"))
        .unwrap();
}

#[test]
fn who_talks_nonsense_is_disconnected_and_the_next_is_served() {
    let disk = Disk::start(&[]);
    let mut stranger = UnixStream::connect(&disk.socket).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    disk.daemon
        .wait_stderr(|line| line.contains("is disconnected: it sent something that is no message"))
        .unwrap();
    let mut front = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    assert_eq!(front.read(5, 512), content(5 * 512, 512));
}

#[test]
fn a_ring_starts_and_says_so_as_soon_as_another_process_lets_go_of_the_image() {
    let disk = Disk::start(&[]);
    let first = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let files = scratch();
    let socket = files.path().join("socket");
    let daemon = serve(&socket, &disk.image, &[]);
    let mut second = Attached::new(&socket, Like::Qemu, Wanted::default());
    daemon
        .wait_stderr(|line| line.contains("no ring is started yet"))
        .unwrap();
    drop(first);
    daemon
        .wait_stderr(|line| line.contains("the image is free now; its rings start"))
        .unwrap();
    assert_eq!(second.read(5, 512), content(5 * 512, 512));
}

#[test]
fn names_of_any_bytes_are_served_told_and_handed_over() {
    for name in [
        &b"bad\xff\xfename"[..],
        b"two\nlines",
        b"quo\"te\\back",
        b"spa ce",
    ] {
        let files = scratch();
        let image = files.path().join(OsStr::from_bytes(name));
        let (socket, control) = (files.path().join("s"), files.path().join("c"));
        fs::write(&image, content(0, IMAGE)).unwrap();
        let daemon = serve(
            &socket,
            &image,
            &["--control-path", control.to_str().unwrap()],
        );
        let info = || {
            let asked = Command::new(rig::extentctl!())
                .arg("--control-path")
                .arg(&control)
                .args(["info", "--json"])
                .output()
                .unwrap();
            assert!(asked.status.success(), "{asked:?}");
            let answer: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
            answer["disk"]["image"].as_str().unwrap().to_owned()
        };
        assert_eq!(info(), image.to_string_lossy());
        daemon.signal(libc::SIGUSR2).unwrap();
        daemon
            .wait_stderr(|line| line.contains("taken over after"))
            .unwrap();
        let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
        assert_eq!(front.read(5, 512), content(5 * 512, 512));
        assert_eq!(info(), image.to_string_lossy());
    }
}

#[test]
fn in_a_root_folder_without_proc_and_dev_an_image_is_served() {
    let root = scratch();
    let place = |path: &str| root.path().join(path.trim_start_matches('/'));
    let copy = |from: &str, to: &str| {
        fs::create_dir_all(place(to).parent().unwrap()).unwrap();
        fs::copy(from, place(to)).unwrap();
    };
    let binary = binary();
    let libraries = Command::new("ldd").arg(&binary).output().unwrap().stdout;
    let libraries = String::from_utf8(libraries).unwrap();
    for library in libraries
        .split_whitespace()
        .filter(|it| it.starts_with('/'))
    {
        copy(library, library);
    }
    copy(binary.to_str().unwrap(), "/extentd");
    fs::write(place("image"), content(0, IMAGE)).unwrap();
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "chroot"])
        .arg(root.path())
        .args(["/extentd", "--socket-path", "/s", "--blk-file", "/image"])
        .spawn()
        .unwrap();
    let start = Instant::now();
    while UnixStream::connect(place("s")).is_err() {
        assert!(start.elapsed() < limit(), "it does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut front = Attached::new(&place("s"), Like::Qemu, Wanted::default());
    assert_eq!(front.read(5, 512), content(5 * 512, 512));
    drop(front);
    let pid = child.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}
