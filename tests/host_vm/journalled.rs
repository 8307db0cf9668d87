//! Data that go through the journal from now on: an attribute of the image that only a process
//! with `CAP_SYS_RESOURCE` may set.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use front_end::Op;
use rig::asker::{Asker, REQUESTS};
use rig::operator::wait_info;
use rig::program::run;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::inside::{self, Stage};
use crate::mapped::IMAGE;

#[test]
fn the_disk_path_is_left_for_data_in_the_journal() {
    inside::play(&["journals data"]);
}

/// Waits until requests take the path `wanted`, for a reason that says so.
fn path_is(asker: &Asker, wanted: &str, reason: &str) {
    wait_info(&asker.place.control, wanted, |info| {
        let said = info["disk"]["path_reason"].as_str().unwrap_or_default();
        info["disk"]["path"] == wanted && said.contains(reason)
    });
}

pub fn journals_data(stage: &Stage) {
    let (device, folder) = (&stage.devices[0], Path::new("/mnt/journalled"));
    run(Command::new("mkfs.ext4").args(["-q", "-F", device])).unwrap();
    std::fs::create_dir(folder).unwrap();
    run(Command::new("mount").arg(device).arg(folder)).unwrap();
    let image = folder.join("image");
    std::fs::write(&image, vec![0; IMAGE]).unwrap();
    File::open(&image).unwrap().sync_all().unwrap();

    let mut asker = Asker::new(&rig::extentd!(), &image, &[]);
    path_is(&asker, "disk", "");
    asker.all(Op::Write, 0..REQUESTS);
    for journal in [true, false] {
        let reader = File::open(&image).unwrap();
        let mut flags = ioctl_getflags(&reader).unwrap();
        flags.set(IFlags::JOURNALING, journal);
        ioctl_setflags(&reader, flags).unwrap();
        drop(reader);
        if journal {
            path_is(&asker, "file", "journal");
        } else {
            path_is(&asker, "disk", "");
        }
        asker.all(Op::Read, 0..REQUESTS);
        assert!((0..REQUESTS).all(|request| asker.holds(request, 9)));
    }
    assert!(asker.daemon.terminate().unwrap().success());
    run(Command::new("umount").arg(folder)).unwrap();
}
