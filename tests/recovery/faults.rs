//! Disks that fail: the right status for the right request, the rest
//! unharmed, counted, and logged ever more rarely.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use front_end::Op;
use front_end::codes::status;
use mapping::{ExtentSource, Fiemap};
use rig::asker::{Asker, LENGTH, REQUESTS, even, sectors};
use rig::file_systems::{EXT4, Mounted, occupy, sync};
use rig::model::{SECTOR, content};
use rig::program::run;
use rustix::fs::FallocateFlags;

/// Half of the requests find no room, round after round; then there is room.
fn half_fails(image: &Path, arguments: &[&str], full: impl FnOnce(), free: impl FnOnce()) {
    let mut asker = Asker::new(&rig::extentd!(), image, arguments);
    let fine = |ended: &[(usize, u8)]| ended.iter().all(|(_, status)| *status == status::OK);
    assert!(fine(&asker.all(Op::Write, even())));
    full();
    let rounds: usize = 8;
    for _ in 0..rounds {
        let ended = asker.all(Op::Write, 0..REQUESTS);
        let failed = ended.iter().filter(|(_, status)| *status == status::IOERR);
        let failed: Vec<_> = failed.map(|(request, _)| *request).collect();
        let odd: Vec<_> = (1..REQUESTS).step_by(2).collect();
        assert_eq!(failed, odd, "{ended:?}");
        assert!(fine(&asker.all(Op::Read, 0..REQUESTS)));
        for request in 0..REQUESTS {
            let value = if request % 2 == 0 { 9 } else { 0 };
            assert!(asker.holds(request, value), "request {request}");
        }
    }
    let failed = rounds * REQUESTS / 2;
    assert_eq!(asker.place.errors(), failed as u64);
    let complaints = asker.complaints();
    assert!((1..=8).contains(&complaints), "{complaints} of {failed}");
    free();
    assert!(fine(&asker.all(Op::Write, 0..REQUESTS)));
    assert!(fine(&asker.all(Op::Read, 0..REQUESTS)));
    assert!((0..REQUESTS).all(|request| asker.holds(request, 9)));
    assert!(asker.daemon.terminate().unwrap().success());
}

/// A disk in a file of a small file system in memory, so that it fails where
/// that has no room.
pub struct Thin {
    folder: tempfile::TempDir,
    pub device: String,
}

impl Thin {
    /// `None`, with the reason printed, where this host cannot.
    pub fn new() -> Option<Thin> {
        let folder = tempfile::tempdir().unwrap();
        let mount = run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "none"])
            .arg(folder.path()));
        if let Err(error) = mount {
            eprintln!("SKIP: no small file system: {error}");
            return None;
        }
        let mut thin = Thin {
            folder,
            device: String::new(),
        };
        let disk = thin.path("disk");
        File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        match run(Command::new("losetup").args(["--find", "--show"]).arg(disk)) {
            Ok(device) => thin.device = device.trim().to_owned(),
            Err(error) => {
                eprintln!("SKIP: no loop device: {error}");
                return None;
            }
        }
        Some(thin)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn filler(&self) -> PathBuf {
        self.path("filler")
    }

    /// It fails where nothing was written.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        let mut zeros = std::io::repeat(0);
        let full = std::io::copy(&mut zeros, &mut filler).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    /// It works everywhere.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            let _ = run(Command::new("losetup").args(["-d", &self.device]));
        }
        let _ = run(Command::new("umount").arg("-l").arg(self.folder.path()));
    }
}

fn a_disk_fails_where_it_has_no_room(arguments: &[&str]) {
    let Some(thin) = Thin::new() else {
        return;
    };
    let device = Path::new(&thin.device);
    half_fails(device, arguments, || thin.fill(), || thin.free());
}

#[test]
fn a_disk_that_fails_in_places_fails_those_requests() {
    a_disk_fails_where_it_has_no_room(&["--on-enospc", "report"]);
}

#[test]
fn a_disk_that_fails_in_places_fails_those_requests_by_file() {
    a_disk_fails_where_it_has_no_room(&["--io-path", "file", "--on-enospc", "report"]);
}

#[test]
fn a_full_file_system_fails_the_writes_that_need_room() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let image = host.path("image");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let fill = || {
        sync(&host);
        drop(occupy(&host, "filler"));
        sync(&host);
    };
    let free = || {
        std::fs::remove_file(host.path("filler")).unwrap();
        sync(&host);
    };
    half_fails(&image, &["--on-enospc", "report"], fill, free);
}

/// Who writes pages out for the map is told that some are lost, and so is the next FLUSH.
#[test]
fn what_the_map_finds_lost_is_told_by_the_next_sync_as_well() {
    let Some(thin) = Thin::new() else {
        return;
    };
    // All that the file system writes for itself has its place in the small one.
    run(Command::new("mkfs.ext4")
        .args([
            "-q",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        ])
        .args(["-O", "^metadata_csum,^has_journal", &thin.device]))
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("mount").arg(&thin.device).arg(folder.path())).unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let file = Arc::new(options.open(folder.path().join("image")).unwrap());
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 << 20).unwrap();
    file.sync_all().unwrap();
    thin.fill();
    file.write_all_at(&[7; 1 << 20], 0).unwrap();
    let source = Fiemap::new(Arc::clone(&file)).exclusive();
    let settled = source.settle(0..2 << 20);
    let synced = file.sync_data();
    drop((source, file));
    thin.free();
    run(Command::new("umount").arg(folder.path())).unwrap();
    settled.unwrap_err();
    synced.unwrap_err();
}

/// The image ends earlier than the disk does: transfers come out short.
#[test]
fn a_short_transfer_fails_its_request_alone() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let image = host.path("image");
    std::fs::write(&image, content(9, 0..(16 << 20) / SECTOR)).unwrap();
    let mut asker = Asker::new(&rig::extentd!(), &image, &["--io-path", "file"]);
    let cut = REQUESTS / 2;
    // In the middle of a request.
    let bytes = sectors(cut).start * SECTOR + LENGTH / 2;
    run(Command::new("truncate")
        .args(["-s", &bytes.to_string()])
        .arg(&image))
    .unwrap();
    for (request, status) in asker.all(Op::Read, 0..REQUESTS) {
        let wanted = if request < cut {
            status::OK
        } else {
            status::IOERR
        };
        assert_eq!(status, wanted, "request {request}");
        assert!(status != status::OK || asker.holds(request, 9));
    }
    assert_eq!(asker.place.errors(), (REQUESTS - cut) as u64);
    assert!(asker.daemon.terminate().unwrap().success());
}
