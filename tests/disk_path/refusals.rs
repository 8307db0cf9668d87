//! File systems that do not allow the disk path: who demands it is told why,
//! who leaves it open is served by the file.

use std::path::Path;
use std::process::Command;

use rig::file_systems::{BTRFS, EXT4_JOURNAL, Made, Mounted};

use crate::served::{Guest, Served, binary};

/// Bytes of the image.
const BYTES: usize = 4 << 20;

/// The disk path is refused to an image of this name, for a reason.
pub fn is_refused(image: &Path, reason: &str) {
    std::fs::write(image, vec![7; BYTES]).unwrap();
    let output = Command::new(binary())
        .args(["--io-path", "disk", "--socket-path", "/dev/null/none"])
        .arg("--blk-file")
        .arg(image)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = text.lines().last().unwrap();
    assert!(
        line.contains("--io-path disk") && line.contains(reason),
        "{text}"
    );

    let served = Served::start(image, &[], &[]);
    let mut guest = Guest::attach(&served);
    let before = served.info();
    assert!(
        !before.on_disk && before.reason.contains(reason),
        "{before:?}"
    );
    let done = guest.drivers[0].read(8, 4 << 20, 4096).unwrap();
    assert_eq!((done.status, done.length), (0, 4097));
    assert_eq!(guest.memory.read(4 << 20, 4096).unwrap(), [7; 4096]);
    let info = served.info();
    assert_eq!((info.disk_operations, info.entries), (0, 0));
}

fn is_refused_on(made: Made, reason: &str) {
    if let Some(host) = Mounted::new(made) {
        is_refused(&host.path("image"), reason);
    }
}

#[test]
fn the_disk_path_is_refused_on_btrfs() {
    is_refused_on(BTRFS, "not ext4 or XFS");
}

#[test]
fn the_disk_path_is_refused_where_data_goes_through_the_journal() {
    is_refused_on(EXT4_JOURNAL, "data=journal");
}

#[test]
fn the_disk_path_is_refused_on_tmpfs() {
    let parent = Path::new("/dev/shm");
    if !parent.is_dir() {
        eprintln!("SKIP: no tmpfs in /dev/shm");
        return;
    }
    let folder = tempfile::tempdir_in(parent).unwrap();
    is_refused(&folder.path().join("image"), "tmpfs");
}
