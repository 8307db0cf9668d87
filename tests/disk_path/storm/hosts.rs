//! Those who change the file system under the image.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;

use rig::program::run;
use rig::random::Random;

use super::disturber::{Did, Storm};
use crate::disturb;

/// How often the disk becomes larger, and by how much.
const GROWTHS: usize = 8;
const GROWTH: u64 = 8 << 20;

fn done(command: &mut Command) -> Did {
    run(command).map(drop).map_err(io::Error::other)
}

fn remount_with(storm: &Storm, options: &str) -> Did {
    let options = format!("remount,{options}");
    done(
        Command::new("mount")
            .args(["-o", &options])
            .arg(storm.host.root()),
    )
}

/// With options that change nothing for the image, or that are refused.
pub fn remount(storm: &Storm, random: &mut Random) -> Did {
    let all: &[&str] = if storm.host.is_ext4() {
        &[
            "noatime",
            "relatime",
            "commit=1",
            "commit=5",
            "discard",
            "nodiscard",
            "nodelalloc",
            "delalloc",
        ]
    } else {
        &[
            "noatime",
            "relatime",
            "inode32",
            "inode64",
            "discard",
            "nodiscard",
        ]
    };
    if random.below(all.len() + 1) < all.len() {
        return remount_with(storm, all[random.below(all.len())]);
    }
    // Refused: the image is open for writing. While no process serves it, it
    // is done, and undone.
    if remount_with(storm, "ro").is_ok() {
        remount_with(storm, "rw")?;
    }
    Ok(())
}

/// Flushes of the file stop to flush the disk for a while.
pub fn without_barriers(storm: &Storm, _: &mut Random) -> Did {
    remount_with(storm, "nobarrier")?;
    storm.pace.await_requests(200);
    remount_with(storm, "barrier")
}

/// Frozen until dropped.
struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = run(Command::new("fsfreeze").arg("-u").arg(&self.0));
    }
}

/// Stops all changes of the file system for a moment.
pub fn freeze(storm: &Storm, random: &mut Random) -> Did {
    let _nobody_starts = storm.names.write().unwrap();
    done(Command::new("fsfreeze").arg("-f").arg(storm.host.root()))?;
    let _frozen = Frozen(storm.host.root());
    // What goes by the file waits, so there is nothing to wait for.
    let time = 20 + random.below(100) as u64;
    std::thread::sleep(std::time::Duration::from_millis(time));
    Ok(())
}

/// Tells the disk what is free.
pub fn trim(storm: &Storm, _: &mut Random) -> Did {
    done(Command::new("fstrim").arg(storm.host.root()))
}

/// Makes the disk larger, and the file system with it.
pub fn grow(storm: &Storm, _: &mut Random) -> Did {
    if storm.growths.fetch_add(1, Ordering::SeqCst) >= GROWTHS {
        return Ok(());
    }
    let disk = OpenOptions::new().write(true).open(storm.host.backing())?;
    disk.set_len(disk.metadata()?.len() + GROWTH)?;
    done(Command::new("losetup").arg("-c").arg(storm.host.device()))?;
    if storm.host.is_ext4() {
        done(Command::new("resize2fs").arg(storm.host.device()))
    } else {
        done(Command::new("xfs_growfs").arg("-d").arg(storm.host.root()))
    }
}

/// Leaves no free block for a while.
pub fn fill(storm: &Storm, _: &mut Random) -> Did {
    disturb::fill_up(&storm.host, &storm.full, || {
        storm.pace.await_requests(500);
    });
    Ok(())
}
