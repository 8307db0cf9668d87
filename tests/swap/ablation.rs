//! What each measure is good for: the same test with it and without it.
//! Without it, because the process was built for tests and told to leave it
//! out.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use extentd::operator::control::Request;
use front_end::codes::status;
use front_end::{Buffer, LIMIT, Like, Op, Session, Wanted};
use rig::attached::{DATA, MEMORY};
use rig::file_systems::EXT4;
use rig::pressure::{Group, major_faults};

use crate::served::{Guest, IMAGE, Served, has_sys_resource, mounted};

/// A program that runs extentd without a measure.
fn without(directory: &Path, measure: &str, binary: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let script = directory.join("without");
    let text = format!(
        "#!/bin/sh\nexport EXTENTD_TEST_WITHOUT={measure}\nexec {} \"$@\"\n",
        binary.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Major faults while a group without memory to spare is driven into reclaim
/// and requests go on.
fn faults_under_pressure(left_out: &str) -> Option<u64> {
    let fs = mounted(EXT4)?;
    fs.create("disk").set_len(IMAGE).unwrap();
    let group = Group::new("extentd-lock")?;
    let directory = tempfile::tempdir().unwrap();
    // A copy, so that the pages of the program are nobody else's.
    let own = directory.path().join("extentd");
    std::fs::copy(rig::extentd!(), &own).unwrap();
    std::fs::File::open(&own).unwrap().sync_all().unwrap();
    // Out of the page cache: who reads them first is charged for them.
    let mut drop_cache = Command::new("dd");
    drop_cache.args([&format!("if={}", own.display()), "iflag=nocache", "count=0"]);
    assert!(drop_cache.stderr(Stdio::null()).status().unwrap().success());
    let binary = without(directory.path(), left_out, &own);
    let runner = group.runner(directory.path(), &binary);
    let served = Served::run(&runner, &fs.path("disk"), &[]);
    let mut guest = Guest::attach(&served);
    served.wait_path("disk");
    guest.load(10_000);
    // Room for what has to be read again: without it nothing would go on.
    group.squeeze(24 << 20);
    let before = major_faults(served.daemon.pid());
    for _ in 0..20 {
        group.reclaim_once();
        guest.load(50);
        // The control thread is the process' memory too.
        served.swap();
    }
    Some(major_faults(served.daemon.pid()) - before)
}

#[test]
fn locked_memory_stays_under_pressure_and_goes_without_the_lock() {
    let (Some(with), Some(without)) = (faults_under_pressure(""), faults_under_pressure("lock"))
    else {
        return;
    };
    println!("major faults: {with} with the lock, {without} without");
    assert_eq!(with, 0);
    assert!(without > 0);
}

/// Whether a process that has used much of its guest's memory outlives that
/// its group has no memory left.
fn outlives(left_out: &str) -> Option<bool> {
    let fs = mounted(EXT4)?;
    fs.create("disk").set_len(IMAGE).unwrap();
    let group = Group::new("extentd-oom")?;
    let directory = tempfile::tempdir().unwrap();
    let binary = without(directory.path(), left_out, &rig::extentd!());
    let runner = group.runner(directory.path(), &binary);
    let served = Served::run(&runner, &fs.path("disk"), &[]);
    let mut guest = Guest::attach(&served);
    for at in (DATA..MEMORY).step_by(65536) {
        let buffer = [Buffer::writable(at, 65536)];
        let done = guest.driver.run(Op::Read, 0, &buffer).unwrap();
        assert_eq!(done.status, status::OK);
    }
    group.squeeze(2 << 20);
    let _hog = group.hog();
    let process = format!("/proc/{}/stat", served.daemon.pid());
    let lives = || std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z "));
    let start = Instant::now();
    // Whoever goes first, several have to go for as long as it lives.
    while lives() && group.kills() < 5 {
        assert!(start.elapsed() < LIMIT, "memory lasts");
        std::thread::sleep(Duration::from_millis(10));
    }
    let lives = lives();
    if lives {
        guest.load(1000);
    }
    Some(lives)
}

#[test]
fn a_protected_process_outlives_a_lack_of_memory_and_another_is_the_first_to_go() {
    let Some(without) = outlives("oom") else {
        return;
    };
    assert!(!without, "the kernel chose something else");
    // Without the privilege the measure cannot be had, and `info` says so.
    assert_eq!(outlives(""), Some(has_sys_resource()));
}

/// The status of writes all over an image on a file system that is full.
fn writes_on_a_full_file_system(left_out: &str) -> Option<Vec<u8>> {
    let fs = mounted(EXT4)?;
    fs.create("disk").set_len(IMAGE).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let binary = without(directory.path(), left_out, &rig::extentd!());
    let report = ["--on-enospc", "report"];
    let served = Served::run(&binary, &fs.path("disk"), &report);
    // Others fill it up.
    let filler = fs.create("filler");
    let bytes = vec![1; 1 << 20];
    let mut at = 0;
    while filler.write_all_at(&bytes, at).is_ok() && filler.sync_data().is_ok() {
        at += bytes.len() as u64;
    }
    let mut guest = Guest::attach(&served);
    let mut statuses = Vec::new();
    for sector in (0..IMAGE / 512).step_by(2048) {
        let buffer = [Buffer::readable(DATA, 65536)];
        statuses.push(guest.driver.run(Op::Write, sector, &buffer).unwrap().status);
    }
    Some(statuses)
}

#[test]
fn a_prepared_image_takes_writes_on_a_full_file_system_and_another_does_not() {
    let (Some(with), Some(without)) = (
        writes_on_a_full_file_system(""),
        writes_on_a_full_file_system("prepare"),
    ) else {
        return;
    };
    assert!(with.iter().all(|&one| one == status::OK), "{with:?}");
    assert!(without.contains(&status::IOERR), "{without:?}");
}

/// Requests that went by the file, among the first ones to each part of the
/// image.
fn by_the_file(left_out: &str) -> Option<u64> {
    let fs = mounted(EXT4)?;
    fs.create("disk").set_len(IMAGE).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let binary = without(directory.path(), left_out, &rig::extentd!());
    let served = Served::run(&binary, &fs.path("disk"), &[]);
    let mut guest = Guest::attach(&served);
    served.wait_path("disk");
    let count = || {
        let info = served.ask(&Request::Info {});
        let operations = &info["disk"]["operations"];
        operations["file_operations"].as_u64().unwrap()
    };
    let before = count();
    guest.load(1000);
    Some(count() - before)
}

#[test]
fn with_a_pinned_map_no_request_goes_to_the_file_system_and_without_it_the_first_ones_do() {
    let (Some(with), Some(without)) = (by_the_file(""), by_the_file("pin")) else {
        return;
    };
    println!("by the file: {with} with the map pinned, {without} without");
    assert_eq!(with, 0);
    assert!(without > 0);
}

/// A process whose log, of which there is a lot, nobody reads.
fn unread(image: &Path, directory: &Path, left_out: &str) -> (Child, PathBuf) {
    let socket = directory.join("socket");
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(rig::extentd!())
        .arg("--swap=best-effort")
        .arg("--blk-file")
        .arg(image)
        .arg("--socket-path")
        .arg(&socket)
        .env("RUST_LOG", "trace")
        .env("EXTENTD_TEST_WITHOUT", left_out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The smallest: visitors that come and go are told of ever more rarely.
    rustix::pipe::fcntl_setpipe_size(child.stderr.as_ref().unwrap(), 4096).unwrap();
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < LIMIT, "it does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    (child, socket)
}

/// The threads of a process that wait for room in a pipe.
fn wait_for_pipe(pid: u32) -> Vec<String> {
    let mut names = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = task.unwrap().path();
        let read = |name| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        if read("wchan").contains("pipe_write") {
            names.push(read("comm").trim().to_owned());
        }
    }
    names
}

#[test]
fn a_log_that_nobody_reads_holds_up_its_own_thread_only_or_else_the_session() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    for (left_out, held_up) in [("", "log"), ("log", "extentd")] {
        let directory = tempfile::tempdir().unwrap();
        let (mut child, socket) = unread(&fs.path("disk"), directory.path(), left_out);
        let pid = child.id();
        // Each session makes a line or two.
        let sessions = std::thread::spawn(move || {
            while Session::open(&socket, Like::Qemu, Wanted::default()).is_ok() {}
        });
        let start = Instant::now();
        while wait_for_pipe(pid).is_empty() {
            assert!(start.elapsed() < LIMIT, "the pipe is never full");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(wait_for_pipe(pid), [held_up]);
        child.kill().unwrap();
        child.wait().unwrap();
        sessions.join().unwrap();
    }
}
