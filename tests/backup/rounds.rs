//! A disk at work, of which backups are made round after round: what is
//! restored is what was there.

use std::path::{Path, PathBuf};
use std::process::Command;

use front_end::codes::{feature, protocol, status};
use front_end::{Daemon, Like, Op, Segment, Wanted};
use rig::attached::{Attached, DATA};
use rig::file_systems::XFS;
use rig::files::{create, pattern, read_direct};
use rig::random::Random;
use serde_json::Value;

use crate::rig::{Served, extentctl, judges, mounted, run, text};

/// Bytes of the disk at first.
const FIRST: u64 = 16 << 20;
/// What is told as changed is a whole number of these.
const BLOCK: usize = 4096;

/// How many rounds there are.
fn count() -> usize {
    let asked = std::env::var("EXTENTD_TEST_BACKUPS").ok();
    asked.map_or(10, |asked| asked.parse().unwrap())
}

struct Disk {
    image: PathBuf,
    snapshots: PathBuf,
    control: PathBuf,
    socket: PathBuf,
    size: u64,
    random: Random,
    seed: u64,
}

impl Disk {
    fn start(&self) -> (Daemon, Attached) {
        let arguments = [
            "--control-path",
            text(&self.control),
            "--snapshot-dir",
            text(&self.snapshots),
        ];
        let daemon = rig::attached::serve(&rig::extentd!(), &self.socket, &self.image, &arguments);
        let wanted = Wanted {
            features: feature::ALL,
            protocol: protocol::ALL,
            queues: 1,
        };
        let guest = Attached::new(&self.socket, Like::Qemu, wanted);
        (daemon, guest)
    }

    /// Some requests of a guest.
    fn work(&mut self, guest: &mut Attached) {
        for _ in 0..60 {
            let length = (1 + self.random.number(16)) * 4096;
            let start = self.random.number((self.size - length) / 4096) * 4096;
            let segment = Segment {
                sector: start / 512,
                sectors: u32::try_from(length / 512).unwrap(),
                flags: 0,
            };
            let op = match self.random.number(6) {
                0 => Op::Discard,
                1 => Op::WriteZeroes,
                _ => {
                    self.seed += 1;
                    let data = pattern(self.seed, start, usize::try_from(length).unwrap());
                    guest.write(start / 512, &data);
                    continue;
                }
            };
            let done = guest.driver.segments(op, DATA, &[segment]).unwrap();
            assert_eq!(done.status, status::OK);
        }
    }

    fn extentctl(&self, words: &[&str]) -> Value {
        let control = ["--json", "--control-path", text(&self.control)];
        extentctl(&[&control, words].concat()).json()
    }
}

/// Blocks that differ and are not told as changed.
fn missed(old: &[u8], new: &[u8], dirty: &[(u64, u64)]) -> usize {
    let block = |bytes: &[u8], at: usize| {
        let part = bytes.get(at..bytes.len().min(at + BLOCK));
        let mut part = part.unwrap_or_default().to_vec();
        // Behind its end a disk counts as zeros.
        part.resize(BLOCK, 0);
        part
    };
    let is_dirty = |at: u64| dirty.iter().any(|&(start, end)| (start..end).contains(&at));
    (0..new.len())
        .step_by(BLOCK)
        .filter(|&at| block(old, at) != block(new, at) && !is_dirty(at as u64))
        .count()
}

/// The ranges that nbdinfo tells of a bitmap.
fn dirty(served: &Served, older: &str) -> Vec<(u64, u64)> {
    let map = format!("--map=qemu:dirty-bitmap:{older}");
    let told = run(Command::new("nbdinfo").args([&map, "--json", &served.uri()])).json();
    let parts = told.as_array().unwrap().iter();
    let set = parts.filter(|part| part["type"] == 1);
    set.map(|part| {
        let start = part["offset"].as_u64().unwrap();
        (start, start + part["length"].as_u64().unwrap())
    })
    .collect()
}

fn has_the_bytes(copy: &Path, bytes: &[u8]) {
    assert!(read_direct(copy) == bytes, "{}", copy.display());
    std::fs::remove_file(copy).unwrap();
}

#[test]
fn full_backups_and_increments_of_a_disk_at_work_restore_each_of_its_states() {
    if !judges(&["nbdinfo", "nbdcopy", "qemu-img", "xfs_fsr"]) {
        return;
    }
    let Some(mounted) = mounted(XFS) else { return };
    let files = rig::scratch::folder("backup");
    let mut disk = Disk {
        image: mounted.path("image"),
        snapshots: mounted.path("snapshots"),
        control: files.path().join("control"),
        socket: files.path().join("socket"),
        size: FIRST,
        random: Random::seeded(3),
        seed: 0,
    };
    std::fs::create_dir(&disk.snapshots).unwrap();
    drop(create(&disk.image, FIRST));
    let backups = files.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let copy = files.path().join("copy");
    let (mut daemon, mut guest) = disk.start();
    let mut before: Option<(String, Vec<u8>)> = None;
    let (mut changed, mut whole) = (0, 0);
    for round in 0..count() {
        disk.work(&mut guest);
        match round % 4 {
            1 => {
                drop(guest);
                daemon.kill().unwrap();
                (daemon, guest) = disk.start();
                disk.work(&mut guest);
            }
            2 => {
                disk.size = FIRST + disk.random.number(16) * 65536;
                disk.extentctl(&["resize", &disk.size.to_string()]);
                disk.work(&mut guest);
            }
            3 => {
                run(Command::new("xfs_fsr").arg(&disk.image)).well();
            }
            _ => {}
        }
        let name = format!("round-{round}");
        disk.extentctl(&["snapshot", &name]);
        // It goes on while the snapshot is copied.
        disk.work(&mut guest);
        let path = disk.snapshots.join(&name);
        let bytes = read_direct(&path);
        let older = before.as_ref().map(|(name, _)| disk.snapshots.join(name));
        let mut words = vec!["backup", text(&path), "--to", text(&backups), "--verify"];
        let mut since: Vec<&Path> = Vec::new();
        if let Some(older) = &older {
            words.extend(["--since", text(older)]);
            since.push(older);
        }
        extentctl(&words).well();
        extentctl(&["restore", text(&backups), text(&copy)]).well();
        has_the_bytes(&copy, &bytes);

        let served = Served::new(&path, &since);
        run(Command::new("nbdcopy").args([&served.uri(), text(&copy)])).well();
        has_the_bytes(&copy, &bytes);
        let compare = [
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &served.uri(),
            text(&path),
        ];
        run(Command::new("qemu-img").args(compare)).well();
        if let Some((name, old)) = &before {
            let dirty = dirty(&served, name);
            assert_eq!(missed(old, &bytes, &dirty), 0, "round {round}");
            changed += dirty.iter().map(|(start, end)| end - start).sum::<u64>();
            whole += bytes.len() as u64;
        }
        served.stop();
        before = Some((name, bytes));
    }
    // Not all of it each time.
    assert!(changed < whole, "{changed} of {whole}");
    println!("{changed} of {whole} bytes were told as changed");
}
