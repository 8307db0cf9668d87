//! The end of the process while a disk does not answer.

use std::process::Command;
use std::time::Duration;

use front_end::{Buffer, Like, Op, Wanted, limit};
use rig::attached::{Attached, DATA, assert_ok, serve};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::program::run;
use rig::scratch::folder;

/// A file system that takes no writes until it is dropped.
struct Frozen<'a>(&'a Mounted);

impl<'a> Frozen<'a> {
    fn new(mounted: &'a Mounted) -> Self {
        run(Command::new("fsfreeze").arg("-f").arg(mounted.root())).unwrap();
        Self(mounted)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = run(Command::new("fsfreeze").arg("-u").arg(self.0.root()));
    }
}

/// What is signalled after the first SIGTERM.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Nothing,
    /// At once, as timeout(1) does it.
    Echo,
    /// At once, and again when it is no echo any more.
    Insist,
}

/// Stops a process with a write that the file system holds up; its status and
/// how the write ended.
fn stop(then: Then) -> Option<(Option<i32>, u16)> {
    let Some(mounted) = Mounted::new(EXT4) else {
        println!("SKIP: no ext4");
        return None;
    };
    let image = mounted.path("image");
    std::fs::write(&image, vec![7; 4 << 20]).unwrap();
    std::fs::File::open(&image).unwrap().sync_all().unwrap();
    let files = folder("durability");
    let socket = files.path().join("socket");
    let mut daemon = serve(&rig::extentd!(), &socket, &image, &["--io-path", "file"]);
    let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
    front.write(0, &[1; 4096]);
    let frozen = Frozen::new(&mounted);
    let data = [Buffer::readable(DATA, 4096)];
    assert!(front.driver.submit(Op::Write, 8, &data, 0));
    front.driver.publish().unwrap();
    // A request after it has been answered, so it has been fetched.
    let data = [Buffer::writable(DATA + 4096, 4096)];
    assert!(front.driver.submit(Op::Read, 0, &data, 1));
    front.driver.publish().unwrap();
    let done = front.driver.wait(limit()).unwrap();
    assert_eq!(done.tag, 1);
    assert_ok(done, 4097);
    daemon.signal(libc::SIGTERM).unwrap();
    let first = |line: &str| line.contains("SIGTERM: stopping");
    daemon.wait_stderr(first).unwrap();
    if then != Then::Nothing {
        daemon.signal(libc::SIGTERM).unwrap();
        let echo = |line: &str| line.contains("stopping already");
        daemon.wait_stderr(echo).unwrap();
    }
    if then == Then::Insist {
        // What follows this late is no echo.
        std::thread::sleep(Duration::from_millis(500));
        daemon.signal(libc::SIGTERM).unwrap();
        let last = |line: &str| line.contains("leaving at once");
        daemon.wait_stderr(last).unwrap();
    }
    assert_eq!(front.driver.ring().device_index(), 2);
    drop(frozen);
    let code = daemon.wait().unwrap().code();
    Some((code, front.driver.ring().device_index()))
}

#[test]
fn vu_46_it_stops_when_what_it_has_accepted_is_answered() {
    if let Some(ended) = stop(Then::Nothing) {
        assert_eq!(ended, (Some(0), 3));
    }
}

#[test]
fn vu_46_asked_twice_it_stops_at_once() {
    if let Some(ended) = stop(Then::Insist) {
        assert_eq!(ended, (Some(1), 2));
    }
}

#[test]
fn vu_46_a_signal_that_comes_twice_at_once_is_one_wish() {
    if let Some(ended) = stop(Then::Echo) {
        assert_eq!(ended, (Some(0), 3));
    }
}

/// With a guest that is still attached, and requests that went either way.
fn unmounts_at_once(made: Made) {
    let Some(mounted) = Mounted::new(made) else {
        return;
    };
    let image = mounted.path("image");
    std::fs::write(&image, vec![7; 4 << 20]).unwrap();
    std::fs::File::open(&image).unwrap().sync_all().unwrap();
    let files = folder("durability");
    let socket = files.path().join("socket");
    for way in ["auto", "file", "auto", "file"] {
        let daemon = serve(&rig::extentd!(), &socket, &image, &["--io-path", way]);
        let mut front = Attached::new(&socket, Like::Qemu, Wanted::default());
        for sector in 0..64 {
            front.write(sector * 8, &[1; 4096]);
        }
        assert!(daemon.terminate().unwrap().success());
        let unmounted = run(Command::new("umount").arg(mounted.root()));
        assert!(unmounted.is_ok(), "{way}: {unmounted:?}");
        let mut mount = Command::new("mount");
        run(mount.arg(mounted.device()).arg(mounted.root())).unwrap();
    }
}

#[test]
fn vu_46_ext4_can_be_unmounted_as_soon_as_the_process_is_gone() {
    unmounts_at_once(EXT4);
}

#[test]
fn vu_46_xfs_can_be_unmounted_as_soon_as_the_process_is_gone() {
    unmounts_at_once(XFS);
}
