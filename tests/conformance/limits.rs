//! Limits of the process: what fails for them says which one it was.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use front_end::codes::status;
use front_end::{Daemon, Like, Op, Segment, Session, Wanted};

use crate::disk::{Attached, DATA, Disk, assert_ok, binary, content, scratch};

/// Bytes of the image.
const IMAGE: usize = 32768;

#[test]
fn at_the_limit_on_open_files_every_line_names_it_and_the_process_serves_on() {
    let files = scratch();
    let (image, socket) = (files.path().join("image"), files.path().join("socket"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let (mut named, mut served) = (0, 0);
    for most in 10..40 {
        let limited = after(files.path(), &format!("ulimit -n {most}"));
        let mut daemon = match Daemon::start(&limited, &socket, &image, &[]) {
            Ok(daemon) => daemon,
            Err(_) => {
                // It has ended by itself, and does so again, unless a descriptor that is
                // needed for an instant only was closed earlier this time.
                let said = first_words(&limited, &socket, &image);
                assert!(
                    said.contains("LimitNOFILE=, ulimit -n") || said.contains("serving"),
                    "{most}: {said}"
                );
                continue;
            }
        };
        // Until it is served, or told why not: some wait for a descriptor that will not come.
        let front_end = std::thread::spawn({
            let socket = socket.clone();
            move || {
                let mut session = Session::open(&socket, Like::Qemu, Wanted::default())?;
                session.start_one(1 << 20, 64).map(|ring| (session, ring))
            }
        });
        let names_it = |line: &str| line.contains("LimitNOFILE=");
        while !front_end.is_finished() && !daemon.stderr().iter().any(|line| names_it(line)) {
            std::thread::yield_now();
        }
        let ended = front_end
            .is_finished()
            .then(|| front_end.join().unwrap().is_ok());
        if ended == Some(false) {
            // Its connection may end before the line is read.
            daemon.wait_stderr(names_it).unwrap();
        }
        daemon.signal(libc::SIGTERM).unwrap();
        let status = daemon.wait().unwrap();
        // All lines are there once there is an end of them.
        let _ = daemon.wait_stderr(|_| false);
        let said = daemon.stderr();
        // A start may still fail once the socket is there; nothing ends a process that serves.
        let fails = said
            .iter()
            .any(|line| line.contains("cannot create an epoll instance"));
        assert!(status.success() || fails, "{most}: {status}, {said:?}");
        served += usize::from(ended == Some(true));
        for line in said.iter().filter(|line| line.contains("files")) {
            named += 1;
            assert!(line.contains("LimitNOFILE="), "{most}: {line}");
        }
        assert!(
            !said.iter().any(|line| line.contains("os error 24")),
            "{most}: {said:?}"
        );
    }
    assert!(named > 0 && served > 0, "{named} lines, {served} served");
    // With room again all is as ever.
    let _daemon = Daemon::start(&binary(), &socket, &image, &[]).unwrap();
    let mut attached = Attached::new(&socket, Like::Qemu, Wanted::default());
    assert_eq!(attached.read(0, 512), content(0, 512));
}

/// A block of a file system.
const BLOCK: Segment = Segment {
    sector: 8,
    sectors: 8,
    flags: 0,
};

/// A control group that limits tasks; removed when dropped, when its processes
/// have ended.
struct Tasks(PathBuf);

impl Tasks {
    /// `None`, with the reason printed, where there can be none.
    fn new() -> Option<Self> {
        for root in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
            let path = Path::new(root).join(format!("extentd-tasks-{}", std::process::id()));
            if std::fs::create_dir(&path).is_ok() {
                let group = Self(path);
                if group.0.join("pids.max").exists() {
                    return Some(group);
                }
            }
        }
        println!("SKIP: no control group can limit tasks");
        None
    }

    fn limit(&self, most: usize) {
        std::fs::write(self.0.join("pids.max"), most.to_string()).unwrap();
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        while std::fs::remove_dir(&self.0).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
            std::thread::yield_now();
        }
    }
}

/// A program that does something first, and is the process under test then.
fn after(folder: &Path, first: &str) -> PathBuf {
    let program = folder.join("limited");
    let text = format!(
        "#!/bin/sh\n{first} || exit 9\nexec '{}' \"$@\"\n",
        binary().display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// What it says until it serves or ends.
fn first_words(program: &Path, socket: &Path, image: &Path) -> String {
    let mut command = Command::new(program);
    command
        .args(["--threads", "1", "--socket-path"])
        .arg(socket);
    command.arg("--blk-file").arg(image).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(process.stderr.take().unwrap());
    while !said.contains("serving") && lines.read_line(&mut said).unwrap() > 0 {}
    process.kill().unwrap();
    process.wait().unwrap();
    said
}

#[test]
fn at_the_limit_on_tasks_a_start_says_so_and_requests_need_none() {
    let Some(tasks) = Tasks::new() else {
        return;
    };
    let files = scratch();
    let (image, socket) = (files.path().join("image"), files.path().join("socket"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let procs = tasks.0.join("cgroup.procs");
    let limited = after(files.path(), &format!("echo $$ >{}", procs.display()));
    let (mut refused, mut without_threads) = (0, 0);
    for most in 1..12 {
        tasks.limit(most);
        let Ok(daemon) = Daemon::start(&limited, &socket, &image, &["--threads", "1"]) else {
            let said = first_words(&limited, &socket, &image);
            assert!(
                said.contains("the limit on tasks") || said.contains("limits on tasks"),
                "{most}: {said:?}"
            );
            assert!(said.contains("TasksMax=, pids.max"), "{most}: {said:?}");
            refused += 1;
            continue;
        };
        // Each of these is for threads of the kernel, if it has one.
        let mut attached = Attached::new(&socket, Like::Qemu, Wanted::default());
        attached.write(0, &content(7, 512));
        let driver = &mut attached.driver;
        assert_ok(driver.flush().unwrap(), 1);
        assert_ok(driver.segments(Op::Discard, DATA, &[BLOCK]).unwrap(), 1);
        assert_ok(driver.flush().unwrap(), 1);
        assert_eq!(attached.read(0, 512), content(7, 512));
        assert_eq!(attached.read(8, 512), [0; 512]);
        drop(attached);
        let said = daemon.stderr();
        without_threads += usize::from(
            said.iter()
                .any(|line| line.contains("the kernel has no thread for requests that wait")),
        );
        assert!(daemon.terminate().unwrap().success(), "{most}: {said:?}");
    }
    assert!(
        refused > 0 && without_threads > 0,
        "{refused} refused, {without_threads} without threads"
    );
}

#[test]
fn a_write_beyond_the_limit_on_lengths_fails_alone_and_names_it() {
    let files = scratch();
    let (image, socket) = (files.path().join("image"), files.path().join("socket"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    // In blocks of 512 bytes.
    let limited = after(files.path(), "ulimit -f 16");
    let daemon = Daemon::start(&limited, &socket, &image, &[]).unwrap();
    let line = daemon
        .wait_stderr(|line| line.contains("the limit on the length of files is 8192"))
        .unwrap();
    assert!(line.contains("LimitFSIZE=, ulimit -f"), "{line}");
    let mut attached = Attached::new(&socket, Like::Qemu, Wanted::default());
    attached.write(0, &content(7, 512));
    attached.memory.write(DATA, &content(7, 512)).unwrap();
    let done = attached.driver.write(32, DATA, 512).unwrap();
    assert_eq!(done.status, status::IOERR);
    let line = daemon
        .wait_stderr(|line| line.contains("the limit on the length of files is reached"))
        .unwrap();
    assert!(line.contains("LimitFSIZE=, ulimit -f"), "{line}");
    assert_eq!(attached.read(0, 512), content(7, 512));
    assert_eq!(attached.read(32, 512), content(32 * 512, 512));
    drop(attached);
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn limits_that_the_process_may_raise_are_raised() {
    let files = scratch();
    let (image, socket) = (files.path().join("image"), files.path().join("socket"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let limited = after(files.path(), "ulimit -S -f 16 && ulimit -S -n 40");
    let daemon = Daemon::start(&limited, &socket, &image, &[]).unwrap();
    let mut attached = Attached::new(&socket, Like::Qemu, Wanted::default());
    attached.write(32, &content(7, 512));
    assert_eq!(attached.read(32, 512), content(7, 512));
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    for name in ["Max file size", "Max open files"] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let values: Vec<_> = line.unwrap().split_whitespace().collect();
        assert_eq!(values[0], values[1], "{name}");
    }
    assert!(!daemon.stderr().iter().any(|line| line.contains("limit")));
    drop(attached);
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn a_start_without_memory_names_the_limit() {
    let files = scratch();
    let (image, socket) = (files.path().join("image"), files.path().join("socket"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let (mut most, mut named, mut begun) = (200, 0, false);
    loop {
        let limited = after(files.path(), &format!("ulimit -d {most}"));
        let said = first_words(&limited, &socket, &image);
        assert!(!said.contains("memory allocation"), "{most}: {said}");
        if said.contains("serving") {
            break;
        }
        // At first the shell or the loader has too little: it is not the program yet.
        begun |= said.starts_with("extentd: ");
        if begun {
            assert!(said.contains("LimitDATA=, LimitAS="), "{most}: {said}");
            named += 1;
        }
        most += most / 20;
    }
    assert!(named >= 10, "{named} starts named it");
}

#[test]
fn last_words_that_nobody_reads_are_not_waited_for() {
    let Some(tasks) = Tasks::new() else {
        return;
    };
    let files = scratch();
    let image = files.path().join("image");
    let procs = tasks.0.join("cgroup.procs");
    let limited = after(files.path(), &format!("echo $$ >{}", procs.display()));
    // Room for no other thread than the first one, and none in the pipe.
    tasks.limit(1);
    let (_unread, mut pipe) = std::io::pipe().unwrap();
    let room = rustix::pipe::fcntl_getpipe_size(&pipe).unwrap();
    pipe.write_all(&vec![b'x'; room]).unwrap();
    let mut command = Command::new(&limited);
    command
        .arg("--socket-path")
        .arg(files.path().join("socket"));
    command.arg("--blk-file").arg(&image).stderr(pipe);
    let mut process = command.spawn().unwrap();
    let start = std::time::Instant::now();
    while process.try_wait().unwrap().is_none() {
        if start.elapsed() > front_end::limit() {
            process.kill().unwrap();
            panic!("it waits for whoever reads its log");
        }
        std::thread::yield_now();
    }
}

#[test]
fn stray_signals_end_no_disk() {
    let disk = Disk::start(&[]);
    let mut attached = Attached::new(&disk.socket, Like::Qemu, Wanted::default());
    let stray = [
        libc::SIGUSR1,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGPIPE,
        libc::SIGXFSZ,
    ];
    for signal in stray {
        disk.daemon.signal(signal).unwrap();
    }
    disk.daemon.signal(libc::SIGXCPU).unwrap();
    disk.daemon
        .wait_stderr(|line| line.contains("the limit on CPU time is near (LimitCPU=, ulimit -t)"))
        .unwrap();
    assert_eq!(attached.read(1, 512), content(512, 512));
    drop(attached);
    assert!(disk.daemon.terminate().unwrap().success());
}
