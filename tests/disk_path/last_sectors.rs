//! Images whose size is no multiple of what direct I/O wishes for: every sector
//! of theirs is served, and the size that a guest sees depends on nothing else.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use front_end::codes::status;
use front_end::{Driver, GuestMemory, Like, Op, Segment, Session, Wanted};

use rig::file_systems::{BTRFS, EXT4, EXT4_1K, Made, Mounted, XFS, XFS_4KN};
use rig::files::{pattern, reflink};
use rig::random::Random;

use crate::served::{Info, Served};

const EXT4_4KN: Made = Made {
    name: "ext4-4kn",
    sector: 4096,
    ..EXT4
};

/// Sectors of an image: 64 blocks of 4096 bytes, and three sectors.
const SECTORS: usize = 64 * 8 + 3;
const BYTES: u64 = SECTORS as u64 * 512;
/// Where requests go: the last blocks.
const FIRST: usize = SECTORS - 3 - 16;
const REQUESTS: usize = 1500;
const MEMORY: u64 = 2 << 20;
const DATA: u64 = 1 << 20;
/// For the segments of discards and zeroes.
const LIST: u64 = DATA - 4096;

struct Guest {
    _session: Session,
    memory: GuestMemory,
    driver: Driver,
    sectors: u64,
}

impl Guest {
    fn attach(served: &Served) -> Guest {
        let mut session = Session::open(&served.socket, Like::Qemu, Wanted::default()).unwrap();
        let config = session.connection.get_config(0, 8).unwrap();
        let (memory, driver) = session.start_one(MEMORY, 64).unwrap();
        Guest {
            _session: session,
            memory,
            driver,
            sectors: u64::from_le_bytes(config.try_into().unwrap()),
        }
    }

    /// Reads until that goes past the file system: windows are loaded again when
    /// nobody changes them.
    fn use_the_disk(&mut self, served: &Served) {
        let known = |info: &Info| info.disk_operations + info.zero_fills;
        let before = known(&served.info());
        served.wait("reads go by the disk", |now| {
            self.read(FIRST, 16, 0);
            known(now) > before
        });
    }

    /// `skew` moves the buffer, so that direct I/O does not take it.
    fn read(&mut self, at: usize, sectors: usize, skew: u64) -> Vec<u8> {
        let bytes = 512 * u32::try_from(sectors).unwrap();
        self.memory
            .write(DATA + skew, &vec![0xa5; bytes as usize])
            .unwrap();
        let done = self.driver.read(at as u64, DATA + skew, bytes).unwrap();
        assert_eq!(done.status, status::OK, "read of {sectors} at {at}");
        self.memory.read(DATA + skew, bytes as usize).unwrap()
    }

    fn write(&mut self, at: usize, bytes: &[u8], skew: u64) {
        self.memory.write(DATA + skew, bytes).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        let done = self.driver.write(at as u64, DATA + skew, length).unwrap();
        assert_eq!(done.status, status::OK, "write of {length} at {at}");
    }

    fn change(&mut self, op: Op, at: usize, sectors: usize, unmap: bool) {
        let segment = Segment {
            sector: at as u64,
            sectors: u32::try_from(sectors).unwrap(),
            flags: u32::from(unmap),
        };
        let done = self.driver.segments(op, LIST, &[segment]).unwrap();
        assert_eq!(done.status, status::OK, "{op:?} of {sectors} at {at}");
    }
}

/// Random requests to the last blocks, compared with a model, the file, and
/// what a second process finds.
fn every_sector_is_served(host: &Mounted, image: &Path, arguments: &[&str]) {
    let name = host.made.name;
    let mut model = std::fs::read(image).unwrap();
    let served = Served::start(image, arguments, &[]);
    let mut guest = Guest::attach(&served);
    assert_eq!(guest.sectors, SECTORS as u64, "{name}");
    let mut random = Random(7);
    let has_path = served.info().reason.starts_with("no guest") || served.info().on_disk;
    if has_path {
        served.wait_disk();
    }
    for turn in 0..REQUESTS {
        if has_path && turn % 50 == 0 {
            guest.use_the_disk(&served);
        }
        let at = FIRST + random.below(SECTORS - FIRST);
        let sectors = 1 + random.below((SECTORS - at).min(11));
        let skew = if random.below(3) == 0 { 48 } else { 0 };
        let range = at * 512..(at + sectors) * 512;
        match random.below(10) {
            0..4 => {
                let bytes = pattern(turn as u64, at as u64, range.len());
                guest.write(at, &bytes, skew);
                model[range].copy_from_slice(&bytes);
            }
            4 => {
                guest.change(Op::WriteZeroes, at, sectors, turn % 2 == 0);
                model[range].fill(0);
            }
            5 => assert_eq!(guest.driver.flush().unwrap().status, status::OK),
            6 => {
                guest.change(Op::Discard, at, sectors, false);
                // It may read as anything.
                let now = guest.read(at, sectors, 0);
                model[range].copy_from_slice(&now);
            }
            _ => assert!(
                guest.read(at, sectors, skew) == model[range],
                "{name}: turn {turn}: {sectors} sectors at {at}"
            ),
        }
    }
    assert_eq!(guest.driver.flush().unwrap().status, status::OK);
    let done = guest.driver.read(SECTORS as u64, DATA, 512).unwrap();
    assert_eq!(done.status, status::IOERR, "{name}: beyond the end");
    drop(guest);
    let info = served.info();
    eprintln!(
        "{name} {arguments:?}: {} raw, {} bounced of {} requests",
        info.disk_operations, info.bounced_operations, info.requests
    );
    assert!(served.daemon.terminate().unwrap().success());
    assert_eq!(image.metadata().unwrap().size(), BYTES, "{name}");
    assert!(std::fs::read(image).unwrap() == model, "{name}: the file");
}

fn image(host: &Mounted, name: &str) -> std::path::PathBuf {
    let path = host.path(name);
    std::fs::write(&path, pattern(1, 0, usize::try_from(BYTES).unwrap())).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    path
}

#[test]
fn every_sector_is_served_whatever_the_file_system_and_the_device() {
    for made in [EXT4, EXT4_1K, EXT4_4KN, XFS, XFS_4KN, BTRFS] {
        let Some(host) = Mounted::new(made) else {
            continue;
        };
        for arguments in [&[][..], &["--io-path", "file"]] {
            every_sector_is_served(&host, &image(&host, "image"), arguments);
        }
    }
}

#[test]
fn a_clone_changes_no_size_and_both_keep_their_last_sectors() {
    let Some(host) = Mounted::new(XFS) else {
        return;
    };
    let (original, clone) = (image(&host, "image"), host.path("clone"));
    reflink(
        &File::open(&original).unwrap(),
        &File::create(&clone).unwrap(),
    )
    .unwrap();
    let before = std::fs::read(&original).unwrap();
    every_sector_is_served(&host, &clone, &[]);
    assert!(
        std::fs::read(&original).unwrap() == before,
        "the other file"
    );
    every_sector_is_served(&host, &original, &[]);
}

#[test]
fn on_blocks_of_4096_bytes_the_disk_path_is_for_images_of_whole_blocks() {
    let Some(host) = Mounted::new(EXT4_4KN) else {
        return;
    };
    let path = image(&host, "image");
    let refused = std::process::Command::new(crate::served::binary())
        .args(["--fd", "0", "--io-path", "disk", "--blk-file"])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("--io-path disk") && said.contains("within a block of 4096"),
        "{said}"
    );
    let served = Served::start(&path, &[], &[]);
    assert!(served.info().reason.contains("within a block of 4096"));
}

#[test]
fn the_rest_of_a_last_sector_reads_as_zeros_and_is_there_once_it_can_be_written() {
    for made in [EXT4, XFS, XFS_4KN] {
        let Some(host) = Mounted::new(made) else {
            continue;
        };
        let path = image(&host, "image");
        let ragged = BYTES - 100;
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(ragged)
            .unwrap();
        let mut model = std::fs::read(&path).unwrap();
        model.resize(usize::try_from(BYTES).unwrap(), 0);
        let served = Served::start(&path, &["--read-only"], &[]);
        let mut guest = Guest::attach(&served);
        assert_eq!(guest.sectors, SECTORS as u64);
        for sectors in 1..=20 {
            for skew in [0, 48] {
                let at = SECTORS - sectors;
                assert!(
                    guest.read(at, sectors, skew) == model[512 * at..],
                    "{}: {sectors} sectors, {skew}",
                    made.name
                );
            }
        }
        drop(guest);
        drop(served);
        assert_eq!(path.metadata().unwrap().size(), ragged, "only read");
        let served = Served::start(&path, &[], &[]);
        assert_eq!(path.metadata().unwrap().size(), ragged, "nobody uses it");
        let mut guest = Guest::attach(&served);
        let told = |line: &str| line.contains("ends within a sector");
        served.daemon.wait_stderr(told).unwrap();
        assert!(guest.read(FIRST, SECTORS - FIRST, 0) == model[512 * FIRST..]);
        guest.write(SECTORS - 1, &[0x77; 512], 0);
        assert_eq!(guest.driver.flush().unwrap().status, status::OK);
        drop(guest);
        drop(served);
        model[512 * (SECTORS - 1)..].fill(0x77);
        assert!(std::fs::read(&path).unwrap() == model, "{}", made.name);
    }
}
