//! What the threads that serve requests do: no allocation, no fault, no other
//! system call, and no waiting for whoever reads the log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use front_end::LIMIT;
use rig::file_systems::{EXT4, XFS};

use crate::served::{Guest, IMAGE, Served, mounted};

fn allocations(served: &Served) -> u64 {
    served.swap()["worker_allocations"].as_u64().unwrap()
}

#[test]
fn a_million_requests_allocate_nothing_and_fault_nowhere() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let mut guest = Guest::attach(&served);
    served.wait_path("disk");
    // The pages of guest memory that are used are mapped at their first use.
    guest.load(10_000);
    let worker = served.thread("worker-0");
    let before = (served.faults(worker), allocations(&served));
    guest.load(1_000_000);
    let after = (served.faults(worker), allocations(&served));
    assert_eq!(after, before, "faults and allocations of the worker");
    assert!(served.holds("no_major_faults"));
    assert!(served.holds("no_allocations"));
}

/// The system calls of a thread while it serves requests, by name.
fn calls(served: &Served, guest: &mut Guest, thread: u32) -> Option<BTreeMap<String, u64>> {
    let strace = Command::new("strace")
        .args(["-qq", "-p", &thread.to_string()])
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut strace) = strace else {
        println!("SKIP: there is no strace");
        return None;
    };
    let status = format!("/proc/{}/task/{thread}/status", served.daemon.pid());
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(&status).unwrap();
        let tracer = text
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        if tracer.unwrap().trim() != "0" {
            break;
        }
        assert!(start.elapsed() < LIMIT, "strace does not attach");
        std::thread::sleep(Duration::from_millis(5));
    }
    let stderr = strace.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut calls = BTreeMap::new();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if let Some((name, rest)) = line.split_once('(')
                && !name.contains(' ')
            {
                // What is written is the count of an eventfd.
                let name = if name == "write" && rest.contains(", 8)") {
                    "write of 8 bytes"
                } else {
                    name
                };
                *calls.entry(name.to_owned()).or_insert(0) += 1;
            }
        }
        calls
    });
    guest.load(3_000);
    // It detaches and ends.
    let pid = strace.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", "INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    strace.wait().unwrap();
    let calls = reader.join().unwrap();
    println!("{calls:?}");
    Some(calls)
}

fn only_two_calls(served: &Served, guest: &mut Guest) {
    let worker = served.thread("worker-0");
    let Some(calls) = calls(served, guest, worker) else {
        return;
    };
    assert!(calls["io_uring_enter"] > 0);
    for name in calls.keys() {
        // A read takes the count of an eventfd that woke the worker; a worker that looks for
        // work offers its CPU to others, which waits for nothing.
        let may = ["io_uring_enter", "write of 8 bytes", "read", "sched_yield"];
        assert!(may.contains(&name.as_str()), "{name} in {calls:?}");
    }
}

#[test]
fn requests_take_no_system_call_but_io_uring_and_eventfds() {
    for made in [EXT4, XFS] {
        let Some(fs) = mounted(made) else { return };
        fs.create("disk").set_len(IMAGE).unwrap();
        let served = Served::start(&fs.path("disk"), &[]);
        let mut guest = Guest::attach(&served);
        served.wait_path("disk");
        guest.load(1000);
        only_two_calls(&served, &mut guest);
    }
}

/// A process whose standard error, a pipe of `PIPE` bytes, nobody reads.
fn unread(image: &Path, control: &Path, socket: &Path) -> std::process::Child {
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(rig::extentd!())
        .args(["--swap=best-effort", "--blk-file"])
        .arg(image)
        .arg("--control-path")
        .arg(control)
        .arg("--socket-path")
        .arg(socket)
        .env("RUST_LOG", "trace")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Lines of a kind are limited in number: they fill a small pipe, but no usual one.
    let room = rustix::pipe::fcntl_setpipe_size(child.stderr.as_ref().unwrap(), PIPE).unwrap();
    assert_eq!(room, PIPE);
    child
}

/// Bytes that the pipe takes.
const PIPE: usize = 8 << 10;

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    use front_end::{Like, Session, Wanted};

    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (control, socket) = (directory.path().join("c"), directory.path().join("s"));
    let mut child = unread(&fs.path("disk"), &control, &socket);
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(5));
    }
    // Each session makes several lines.
    for _ in 0..1000 {
        Session::open(&socket, Like::Qemu, Wanted::default()).unwrap();
    }
    assert!(
        Command::new("kill")
            .arg(child.id().to_string())
            .status()
            .unwrap()
            .success()
    );
    // It still leaves within a moment, though its last words find no room.
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
    let text = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    // No line is longer than a pipe takes at once or not at all.
    assert!(
        text.len() > PIPE - libc::PIPE_BUF,
        "the pipe was never full: {}",
        text.len()
    );
}
