//! An image is cut past its lease while the guest writes beyond its new end,
//! and others take what was cut off at once: what they write stays.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use front_end::LIMIT;
use rig::file_systems::{EXT4, Made, Mounted, XFS, sync};
use rig::image::Image;
use rig::model::{SECTOR, Value};

use crate::disturb::{Others, Stopper};
use crate::served::{Guest, Served};
use crate::ways::{Site, own};

/// Bytes of the image, and of what is left of it.
const BYTES: usize = 16 << 20;
const LEFT: usize = 8 << 20;
/// Their sectors.
const SECTORS: usize = BYTES / SECTOR;
const END: usize = LEFT / SECTOR;
/// What the guest writes.
const LATER: Value = 2;
/// Bytes of each file of others, and how many there are at most.
const SIZE: usize = 64 << 10;
const FILES: usize = 100;

fn others_keep_what_they_write(made: Made) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let image = Image::written(&host, BYTES);
    // New files find no other room than what is cut off.
    let mut others = Others::default();
    others.occupy(&host, "old");
    let served = Served::start(&image.path, &[], &[]);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..SECTORS);
    let site = Site {
        host: &host,
        image: &image.path,
        served: &served,
    };
    let own = own(&site);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut lane = guest.lane(0);
    std::thread::scope(|scope| {
        let _stopper = Stopper(&stop);
        scope.spawn(|| lane.write_until(&stop, END..SECTORS, LATER, LIMIT, &count));
        rustix::fs::ftruncate(&own, LEFT as u64).unwrap();
        sync(&host);
        for number in 0..FILES {
            let path = host.path(&format!("new-{number}"));
            if others.write(path, SIZE).is_none() {
                break;
            }
        }
        served.wait("the path to be left", |now| {
            !now.on_disk && now.reason.contains("shorter")
        });
    });
    assert!(count.load(Ordering::Relaxed) > 0);
    let spoilt = others.spoilt();
    assert!(spoilt.is_empty(), "{} files: {spoilt:?}", spoilt.len());
}

#[test]
fn others_keep_what_they_write_where_an_image_was_cut_in_use_on_ext4() {
    others_keep_what_they_write(EXT4);
}

#[test]
fn others_keep_what_they_write_where_an_image_was_cut_in_use_on_xfs() {
    others_keep_what_they_write(XFS);
}
