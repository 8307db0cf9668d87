//! Those who change the image's names and attributes.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rig::program::run;
use rig::random::Random;

use super::disturber::{Did, Storm};
use super::ioctls::{Attributes, set_attributes};

/// `FS_XFLAG_NODUMP`, which nobody here minds.
const NODUMP: u64 = 0x80;
/// `FS_XFLAG_COWEXTSIZE`
const COW_EXTENT_SIZE: u64 = 0x1_0000;

/// Another name for a while: a process that starts meanwhile finds nothing.
pub fn rename(storm: &Storm, _: &mut Random) -> Did {
    let _nobody_starts = storm.names.write().unwrap();
    let away = storm.host.path("renamed");
    std::fs::rename(&storm.image, &away)?;
    storm.pace.await_requests(50);
    std::fs::rename(away, &storm.image)
}

/// One more name, by which it is opened, and which goes again.
pub fn link(storm: &Storm, _: &mut Random) -> Did {
    let link = storm.host.path("link");
    std::fs::hard_link(&storm.image, &link)?;
    let opened = File::open(&link).map(drop);
    std::fs::remove_file(link)?;
    opened
}

/// Attributes that do not matter, by a tool that waits for the lease, or by
/// one that does not.
pub fn change_flags(storm: &Storm, random: &mut Random) -> Did {
    let flag = ["+A", "-A", "+d", "-d"][random.below(4)];
    let mut tool = match random.below(2) {
        0 => Command::new("chattr"),
        _ => Command::new("xfs_io"),
    };
    if tool.get_program() == "chattr" {
        tool.arg(flag);
    } else {
        tool.args(["-r", "-c", &format!("chattr {flag}")]);
    }
    run(tool.arg(&storm.image))
        .map(drop)
        .map_err(io::Error::other)
}

/// The same by name alone, which asks for no lease.
pub fn set_flags(storm: &Storm, random: &mut Random) -> Did {
    let mut attributes = Attributes::default();
    if random.below(2) == 0 {
        attributes.flags |= NODUMP;
    }
    if !storm.host.is_ext4() && random.below(2) == 0 {
        attributes.flags |= COW_EXTENT_SIZE;
        attributes.cow_extent_size = 64 << 10;
    }
    set_attributes(&storm.image, attributes)
}

/// How much the file system is to allocate at once.
pub fn set_extent_size(storm: &Storm, random: &mut Random) -> Did {
    let hint = ["extsize", "cowextsize"][random.below(2)];
    let size = ["0", "64k", "128k"][random.below(3)];
    run(Command::new("xfs_io")
        .args(["-c", &format!("{hint} {size}")])
        .arg(&storm.image))
    .map(drop)
    .map_err(io::Error::other)
}

/// Permissions and times.
pub fn touch(storm: &Storm, random: &mut Random) -> Did {
    let mode = [0o600, 0o640, 0o644][random.below(3)];
    std::fs::set_permissions(&storm.image, Permissions::from_mode(mode))
}
