//! A mount option takes the file system's flushes away while the disk path is
//! in use: whoever is told that a FLUSH has ended must have had one all the
//! same. And other attributes that do not allow the path any more.

use std::process::Command;

use front_end::codes::{feature, status};
use rig::file_systems::{EXT4, Made, Mounted, sync};
use rig::image::Image;
use rig::model::{SECTOR, Value};
use rig::program::run;
use rustix::fs::CWD;
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};

use crate::served::{Guest, Served};

/// Bytes of the image that are written, and of all of it.
const WRITTEN: usize = 16 << 20;
const BYTES: usize = 64 << 20;
/// What the guest writes.
const LATER: Value = 2;
/// How many writes, each of which is to be stable.
pub const WRITES: usize = 10;

/// Flushes of the disk since it exists.
pub fn flushes(host: &Mounted) -> usize {
    let name = host.device().rsplit('/').next().unwrap();
    let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    text.split_whitespace().nth(15).unwrap().parse().unwrap()
}

/// Sets an option of a mount.
type Remount = fn(&Mounted, &str);

/// As mount(8) does.
fn remount(host: &Mounted, option: &str) {
    let options = format!("remount,{option}");
    run(Command::new("mount")
        .args(["-o", &options])
        .arg(host.root()))
    .unwrap();
}

/// By fsconfig(2), of which mountinfo tells nobody.
fn reconfigure(host: &Mounted, option: &str) {
    let mount = fspick(CWD, host.root(), FsPickFlags::FSPICK_CLOEXEC).unwrap();
    fsconfig_set_flag(&mount, option).unwrap();
    fsconfig_reconfigure(&mount).unwrap();
}

/// How a guest has its writes made stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// It flushes.
    Back,
    /// Each is when it ends.
    Through,
}

/// A guest whose image is partly written and on the disk path.
pub struct Flushing {
    guest: Guest,
    pub served: Served,
    cache: Cache,
    /// Where the next first write goes.
    fresh: usize,
    /// Taken down last.
    pub host: Mounted,
}

impl Flushing {
    pub fn start(made: Made, cache: Cache, left_out: &str) -> Option<Flushing> {
        let host = Mounted::new(made)?;
        let image = Image::written(&host, WRITTEN);
        let file = std::fs::OpenOptions::new().write(true).open(&image.path);
        file.unwrap().set_len(BYTES as u64).unwrap();
        sync(&host);
        let served = Served::start_without(&image.path, &[], left_out);
        let features = match cache {
            Cache::Back => feature::ALL,
            Cache::Through => feature::ALL & !(feature::FLUSH | feature::CONFIG_WCE),
        };
        let mut guest = Guest::attach_with(&served, features);
        served.wait_disk();
        guest.load(&served, 0..WRITTEN / SECTOR);
        Some(Flushing {
            host,
            served,
            guest,
            cache,
            fresh: WRITTEN / SECTOR,
        })
    }

    /// Makes writes stable, each on its own; how many had no flush of the
    /// disk.
    pub fn unflushed(&mut self, first_writes: bool) -> usize {
        let mut unflushed = 0;
        for number in 0..WRITES {
            let first = if first_writes {
                self.fresh += 64;
                self.fresh
            } else {
                64 * number
            };
            let before = flushes(&self.host);
            let mut lane = self.guest.lane(0);
            assert_eq!(lane.write(first..first + 8, LATER), status::OK);
            if self.cache == Cache::Back {
                lane.flush();
            }
            unflushed += usize::from(flushes(&self.host) == before);
        }
        unflushed
    }
}

fn every_flush_is_one(cache: Cache, remount: Remount) {
    let Some(mut flushing) = Flushing::start(EXT4, cache, "") else {
        return;
    };
    for round in 0..2 {
        for first_writes in [false, true] {
            assert_eq!(flushing.unflushed(first_writes), 0, "with barriers");
        }
        // From the first one after the command.
        remount(&flushing.host, "nobarrier");
        let first_writes = round == 0;
        assert_eq!(flushing.unflushed(first_writes), 0, "soon afterwards");
        assert_eq!(flushing.unflushed(!first_writes), 0, "soon afterwards");
        flushing.served.wait("the path to be left", |now| {
            !now.on_disk && now.reason.contains("nobarrier")
        });
        assert_eq!(flushing.unflushed(true), 0, "by the file");
        remount(&flushing.host, "barrier");
        flushing.served.wait_disk();
    }
}

#[test]
fn every_flush_is_one_of_the_disk_whatever_the_mount_options_become() {
    every_flush_is_one(Cache::Back, remount);
}

#[test]
fn every_write_is_stable_when_it_ends_whatever_the_mount_options_become() {
    every_flush_is_one(Cache::Through, remount);
}

#[test]
fn every_flush_is_one_of_the_disk_when_nobody_tells_of_mount_options() {
    every_flush_is_one(Cache::Back, reconfigure);
}

#[test]
fn every_write_is_stable_when_nobody_tells_of_mount_options() {
    every_flush_is_one(Cache::Through, reconfigure);
}

#[test]
fn where_mount_options_are_looked_at_on_entry_only_flushes_are_none() {
    if let Some(mut flushing) = Flushing::start(EXT4, Cache::Back, "recheck") {
        assert_eq!(flushing.unflushed(true), 0);
        remount(&flushing.host, "nobarrier");
        assert_eq!(flushing.unflushed(true), WRITES);
        assert!(flushing.served.info().on_disk);
    }
}
