//! Kernels that have less of what the sandbox is made of, and a log that nobody
//! reads when it denies something.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use front_end::codes::{feature, protocol};
use front_end::{Daemon, LIMIT, Like, Session, Wanted};
use rig::attached::Attached;
use rig::scratch::folder;
use rig::small_image;
use seccompiler::{SeccompAction, SeccompFilter, TargetArch, apply_filter};

use crate::log_floods::full_pipe;

fn image(files: &Path) -> std::path::PathBuf {
    let image = files.join("image");
    fs::write(&image, small_image::content(0, small_image::IMAGE)).unwrap();
    image
}

fn serves(socket: &Path) {
    let wanted = Wanted {
        features: feature::ALL,
        protocol: protocol::ALL,
        queues: 1,
    };
    let start = std::time::Instant::now();
    let session = loop {
        match Session::open(socket, Like::Qemu, wanted) {
            Ok(session) => break session,
            // It does not listen yet.
            Err(error) => assert!(start.elapsed() < LIMIT, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut attached = Attached::over(session);
    assert_eq!(attached.read(0, 4096), small_image::content(0, 4096));
}

/// Ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn where_the_kernel_has_less_a_line_says_so_and_the_disk_is_served() {
    let files = folder("sandbox");
    let image = image(files.path());
    let socket = files.path().join("socket");
    let absent = [
        libc::SYS_landlock_create_ruleset,
        libc::SYS_seccomp,
        libc::SYS_capset,
    ];
    let rules: BTreeMap<_, _> = absent.into_iter().map(|call| (call, Vec::new())).collect();
    let action = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let architecture = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, architecture);
    let program: Vec<_> = filter.unwrap().try_into().unwrap();
    let mut command = Command::new(rig::extentd!());
    command
        .arg("--socket-path")
        .arg(&socket)
        .arg("--blk-file")
        .arg(&image)
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec only system calls are made, on memory that
    // is there already.
    unsafe {
        command.pre_exec(move || apply_filter(&program).map_err(|_| io::ErrorKind::Other.into()));
    }
    let mut process = Process(command.spawn().unwrap());
    serves(&socket);
    let pid = process.0.id().to_string();
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    let mut said = String::new();
    let mut stderr = process.0.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(process.0.wait().unwrap().success(), "{said}");
    for line in [
        "sandbox: files are not restricted (landlock): this kernel has no landlock",
        "sandbox: system calls are not filtered: ",
        "sandbox: capabilities are kept: ",
    ] {
        assert_eq!(said.matches(line).count(), 1, "{line}: {said}");
    }
}

#[test]
fn a_denial_that_nobody_reads_keeps_nobody_waiting() {
    let files = folder("sandbox");
    let image = image(files.path());
    let socket = files.path().join("socket");
    let (_reader, stderr) = full_pipe();
    let tries = [("EXTENTD_TEST_TRIES", "1")];
    let daemon = Daemon::start_to(&rig::extentd!(), &socket, &image, &[], &tries, stderr).unwrap();
    serves(&socket);
    serves(&socket);
    assert!(daemon.terminate().unwrap().success());
}
