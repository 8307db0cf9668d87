//! A block device as image: who has it, from the first ring's start to the
//! last one's end, and what others may do with it meanwhile.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use front_end::codes::{feature, status};
use front_end::{Buffer, Daemon, LIMIT, Like, Op, Wanted};
use rig::attached::{Attached, DATA, serve};
use rig::devices::{Loop, Slow, sectors_written};
use rig::program::run;

/// Bytes of a write in flight, and how many there are.
const LENGTH: u32 = 128 << 10;
const WRITES: u64 = 16;
/// Bytes that the slow disk writes in a second.
const SPEED: u64 = 1 << 20;

/// As whoever wants a device for himself does: mkfs, mount, the device mapper.
fn claim(device: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(device)
}

fn is_busy(device: &Path) -> bool {
    match claim(device) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
            true
        }
    }
}

/// A second process there, with other sockets.
fn another(lo: &Loop, name: &str, arguments: &[&str]) -> Daemon {
    serve(&rig::extentd!(), &lo.file(name), lo.path(), arguments)
}

fn attach(daemon: &Daemon) -> Attached {
    Attached::new(daemon.socket(), Like::Qemu, Wanted::default())
}

fn wait(daemon: &Daemon, words: &str) -> String {
    daemon.wait_stderr(|line| line.contains(words)).unwrap()
}

#[test]
fn a_second_process_on_a_device_starts_and_has_it_when_the_first_guest_goes() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let source = another(&lo, "source", &[]);
    let destination = another(&lo, "destination", &[]);
    assert!(!is_busy(lo.path()), "no guest uses it");
    let mut first = attach(&source);
    first.write(1, &[1; 512]);
    assert!(is_busy(lo.path()));
    let mut second = attach(&destination);
    let line = wait(&destination, "is in use by another process");
    assert!(
        line.contains(&format!("pid {} extentd", source.pid())),
        "{line}"
    );
    // A guest that is paused keeps it.
    first.session.stop(1).unwrap();
    assert!(is_busy(lo.path()));
    drop(first);
    wait(&destination, "the image is free now");
    assert_eq!(second.read(1, 512), [1; 512]);
    assert!(is_busy(lo.path()));
    drop(second);
    assert!(destination.terminate().unwrap().success());
    assert!(!is_busy(lo.path()));
    assert!(source.terminate().unwrap().success());
}

#[test]
fn a_device_passes_when_the_rings_of_a_guest_that_moves_stop() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let source = another(&lo, "source", &[]);
    let mut first = attach(&source);
    first.write(1, &[1; 512]);
    let destination = another(&lo, "destination", &[]);
    let mut second = attach(&destination);
    wait(&destination, "is in use by another process");
    let features = first.session.features | feature::LOG_ALL;
    first.session.connection.set_features(features).unwrap();
    first.session.stop(1).unwrap();
    // The source's front-end and its process are still there.
    wait(&destination, "the image is free now");
    assert_eq!(second.read(1, 512), [1; 512]);
    second.write(2, &[2; 512]);
    drop(first);
    assert!(source.terminate().unwrap().success());
    assert!(is_busy(lo.path()));
    second.write(3, &[3; 512]);
}

#[test]
fn readers_share_a_device_and_a_writer_waits_for_them() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let readers = ["one", "other"].map(|name| another(&lo, name, &["--read-only"]));
    let mut guests = readers.each_ref().map(attach);
    for guest in &mut guests {
        assert_eq!(guest.read(0, 512), [0; 512]);
    }
    let writer = another(&lo, "writer", &[]);
    let mut guest = attach(&writer);
    wait(&writer, "is in use by another process");
    drop(guests);
    wait(&writer, "the image is free now");
    guest.write(0, &[1; 512]);
}

/// A folder with a device mounted; unmounted when dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(device: &Path) -> Mount {
        run(Command::new("mkfs.ext4").arg("-q").arg(device)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        run(Command::new("mount").arg(device).arg(folder.path())).unwrap();
        Mount(folder)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.0.path()));
    }
}

#[test]
fn a_mounted_device_is_told_at_the_start_and_waited_for() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let mount = Mount::new(lo.path());
    let daemon = another(&lo, "socket", &[]);
    let where_it_is = format!("is in use (mounted at {})", mount.0.path().display());
    let line = wait(&daemon, "no ring will start before this has changed");
    assert!(line.contains(&where_it_is), "{line}");
    let mut guest = attach(&daemon);
    let line = wait(&daemon, "no ring is started yet");
    assert!(line.contains(&where_it_is), "{line}");
    let reader = another(&lo, "reader", &["--read-only"]);
    let line = wait(&reader, "what the guest reads may change under it");
    assert!(line.contains(&where_it_is), "{line}");
    assert!(reader.terminate().unwrap().success());
    drop(mount);
    wait(&daemon, "the image is free now");
    guest.write(1, &[1; 512]);
    let refused = run(Command::new("mount").arg(lo.path()).arg("/mnt")).unwrap_err();
    assert!(
        refused.contains("busy") || refused.contains("already mounted"),
        "{refused}"
    );
}

/// A device that the host swaps on, until this is dropped.
struct SwapSpace<'a>(&'a Path);

impl SwapSpace<'_> {
    fn new(device: &Path) -> SwapSpace<'_> {
        run(Command::new("mkswap").arg("-q").arg(device)).unwrap();
        // Last in the row, so that nothing lands there.
        run(Command::new("swapon").args(["-p", "0"]).arg(device)).unwrap();
        SwapSpace(device)
    }
}

impl Drop for SwapSpace<'_> {
    fn drop(&mut self) {
        if let Err(reason) = run(Command::new("swapoff").arg(self.0)) {
            eprintln!("{} stays: {reason}", self.0.display());
        }
    }
}

#[test]
fn a_device_that_the_host_swaps_on_is_told_and_waited_for() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let swap = SwapSpace::new(lo.path());
    let daemon = another(&lo, "socket", &[]);
    let line = wait(&daemon, "no ring will start before this has changed");
    assert!(line.contains("is in use (swap space)"), "{line}");
    let mut guest = attach(&daemon);
    wait(&daemon, "no ring is started yet");
    drop(swap);
    wait(&daemon, "the image is free now");
    guest.write(1, &[1; 512]);
    assert!(run(Command::new("swapon").arg(lo.path())).is_err());
}

#[test]
fn a_device_that_others_use_is_served_with_lock_off() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let _mine = claim(lo.path()).unwrap();
    let daemon = another(&lo, "socket", &["--lock", "off"]);
    attach(&daemon).write(1, &[1; 512]);
    assert!(!daemon.stderr().iter().any(|line| line.contains("in use")));
}

#[test]
fn a_new_binary_has_the_device_whatever_its_name_leads_to() {
    let (Some(lo), Some(other)) = (Loop::new(16, 512), Loop::new(16, 512)) else {
        return;
    };
    let name = lo.file("name");
    std::os::unix::fs::symlink(lo.path(), &name).unwrap();
    let daemon = serve(&rig::extentd!(), &lo.file("socket"), &name, &[]);
    let mut guest = attach(&daemon);
    guest.write(1, &[1; 512]);
    std::fs::remove_file(&name).unwrap();
    std::os::unix::fs::symlink(other.path(), &name).unwrap();
    daemon.signal(libc::SIGUSR2).unwrap();
    wait(&daemon, "is another file by now");
    wait(&daemon, "taken over after");
    drop(guest);
    assert!(!is_busy(lo.path()));
    let mut guest = attach(&daemon);
    assert_eq!(guest.read(1, 512), [1; 512]);
    assert!(is_busy(lo.path()) && !is_busy(other.path()));
    assert!(daemon.terminate().unwrap().success());
}

/// A guest whose writes to a slow device are in flight, and its process.
fn slow_writes(lo: &Loop, slow: &Slow, variables: &[(&str, &str)]) -> (Daemon, Attached, u64) {
    let socket = lo.file("first");
    let binary = rig::extentd!();
    let daemon = Daemon::start_with(&binary, &socket, lo.path(), &[], variables).unwrap();
    let mut guest = attach(&daemon);
    guest.write(0, &[1; 512]);
    slow.add(daemon.pid());
    slow.limit(SPEED);
    let before = sectors_written(lo.path());
    guest.memory.write(DATA, &vec![7; LENGTH as usize]).unwrap();
    for number in 0..WRITES {
        let buffer = Buffer::readable(DATA, LENGTH);
        let sector = number * u64::from(LENGTH) / 512;
        assert!(guest.driver.submit(Op::Write, sector, &[buffer], number));
    }
    guest.driver.publish().unwrap();
    // The first one was let through: all of them were given to the kernel.
    let done = guest.driver.wait(LIMIT).unwrap();
    assert_eq!(done.status, status::OK);
    (daemon, guest, before)
}

/// How many sectors were still to be written when a device could be claimed
/// after a kill.
fn claimed_early(lo: &Loop, variables: &[(&str, &str)]) -> Option<u64> {
    let slow = Slow::new(lo.path())?;
    let (mut daemon, _guest, before) = slow_writes(lo, &slow, variables);
    assert!(is_busy(lo.path()));
    daemon.signal(libc::SIGKILL).unwrap();
    let start = Instant::now();
    let mine = loop {
        if let Ok(mine) = claim(lo.path()) {
            break mine;
        }
        assert!(start.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(2));
    };
    let written = sectors_written(lo.path()) - before;
    eprintln!("claimed {:?} after the kill", start.elapsed());
    drop(mine);
    slow.limit(0);
    daemon.wait().unwrap();
    Some((WRITES * u64::from(LENGTH) / 512).saturating_sub(written))
}

#[test]
fn after_a_kill_a_device_is_free_only_when_its_writes_have_ended() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let Some(left) = claimed_early(&lo, &[]) else {
        return;
    };
    assert_eq!(left, 0);
}

#[test]
fn without_the_claim_in_the_rings_a_device_is_free_too_early() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let variables = [("EXTENTD_TEST_WITHOUT", "keeper")];
    let Some(left) = claimed_early(&lo, &variables) else {
        return;
    };
    assert!(left > 0);
}

#[test]
fn after_a_kill_the_next_process_waits_for_the_writes_to_a_device() {
    let Some(lo) = Loop::new(16, 512) else { return };
    let Some(slow) = Slow::new(lo.path()) else {
        return;
    };
    let (mut daemon, first, _) = slow_writes(&lo, &slow, &[]);
    daemon.signal(libc::SIGKILL).unwrap();
    drop(first);
    let next = another(&lo, "next", &[]);
    let mut guest = attach(&next);
    wait(&next, "no ring is started yet");
    wait(&next, "the image is free now");
    for number in 0..WRITES {
        let sector = number * u64::from(LENGTH) / 512;
        assert_eq!(guest.read(sector, LENGTH), vec![7; LENGTH as usize]);
    }
    daemon.wait().unwrap();
}
