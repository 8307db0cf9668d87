//! A front-end whose memory is sparse and large, where all of it is to be
//! pinned.

use std::os::fd::AsRawFd;

use front_end::{Daemon, Like, Place, Wanted};
use rig::attached::{Attached, MEMORY};
use rig::operator;
use rig::pressure::Group;
use rig::scratch::folder;
use rig::small_image::{IMAGE, content};
use rustix::fs::MemfdFlags;

use crate::regions::{add_region, memfd};

/// More than any host has for this process' group.
const SPARSE: u64 = 8 << 30;
/// What the group has left: less than that, and more than what is kept.
const LEFT: u64 = 400 << 20;

#[test]
fn sparse_memory_does_not_decide_how_much_is_pinned() {
    let Some(group) = Group::new("pinned") else {
        return;
    };
    let files = folder("pinned");
    let path = |name: &str| files.path().join(name);
    let (image, control) = (path("image"), path("control"));
    std::fs::write(&image, content(0, IMAGE)).unwrap();
    let runner = group.runner(files.path(), &rig::extentd!());
    let arguments = [
        "--pin-guest-memory",
        "--control-path",
        control.to_str().unwrap(),
    ];
    let daemon = Daemon::start_with(&runner, &path("socket"), &image, &arguments, &[]).unwrap();
    group.squeeze(LEFT);

    let pinned = |info: &serde_json::Value| {
        info["disk"]["pinned_guest_memory"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let mut front = Attached::new(daemon.socket(), Like::Qemu, Wanted::default());
    operator::wait_info(&control, "pinned memory", |info| {
        pinned(info).contains("incompatible with")
    });
    let place = Place {
        guest: MEMORY * 4,
        user: 0x1000_0000_0000,
        size: SPARSE,
    };
    let file = memfd(SPARSE, MemfdFlags::CLOEXEC);
    assert_eq!(add_region(&front, place, file.as_raw_fd()), 0);
    operator::wait_info(&control, "a refusal", |info| {
        let said = pinned(info);
        said.starts_with("no: ") && said.contains("prealloc=on")
    });
    let said = "--pin-guest-memory: guest memory cannot be pinned: ";
    daemon.wait_stderr(|line| line.contains(said)).unwrap();
    // It went on until too little was left, and no further.
    let taken = file.metadata().unwrap();
    let taken = std::os::unix::fs::MetadataExt::blocks(&taken) * 512;
    assert!(taken > 0 && taken < LEFT, "{taken} bytes");
    assert_eq!(front.read(8, 4096), content(4096, 4096));
    drop(front);
    drop(file);
    let mut next = Attached::new(daemon.socket(), Like::Qemu, Wanted::default());
    assert_eq!(next.read(8, 4096), content(4096, 4096));
}
