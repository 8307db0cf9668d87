//! Backups in folders and pipes: what is restored of them, and what is refused.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rig::file_systems::{BTRFS, EXT4, Made, Mounted, XFS};
use rig::files::read_direct;

use crate::rig::{bytes, change, extentctl, image, mounted, snapshot, text};

/// Bytes of a head, and of what is before the data of a record.
const HEAD: usize = 396;
const RECORD: usize = 56;

/// Three snapshots, and a folder with their chain.
struct Chain {
    mounted: Mounted,
    snapshots: [PathBuf; 3],
    folder: PathBuf,
}

impl Chain {
    fn new(made: Made) -> Option<Self> {
        let mounted = mounted(made)?;
        image(&mounted);
        let one = snapshot(&mounted, "one");
        change(&mounted, 2);
        let two = snapshot(&mounted, "two");
        let image = std::fs::File::options()
            .write(true)
            .open(mounted.path("image"))
            .unwrap();
        // Shorter, and longer again: what was there is zeros.
        image.set_len(6 << 20).unwrap();
        image.set_len((9 << 20) + 512).unwrap();
        image.sync_all().unwrap();
        change(&mounted, 3);
        let three = snapshot(&mounted, "three");
        let folder = mounted.path("backups");
        std::fs::create_dir(&folder).unwrap();
        let this = Self {
            mounted,
            snapshots: [one, two, three],
            folder,
        };
        this.backup(0, None);
        this.backup(1, Some(0));
        this.backup(2, Some(1));
        Some(this)
    }

    fn backup(&self, which: usize, since: Option<usize>) {
        let mut words = vec!["--json", "backup", text(&self.snapshots[which]), "--verify"];
        words.extend(["--to", text(&self.folder)]);
        if let Some(since) = since {
            words.extend(["--since", text(&self.snapshots[since])]);
        }
        let made = extentctl(&words).json();
        assert_eq!(made["base"].is_string(), since.is_some());
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn files(&self) -> [PathBuf; 3] {
        ["one.full", "two.since-one", "three.since-two"]
            .map(|name| self.file(&format!("{name}.backup")))
    }

    fn image(&self) -> PathBuf {
        self.mounted.path("restored")
    }

    /// What `restore` makes of these.
    fn restored(&self, from: &[&Path]) -> Vec<u8> {
        let mut words = vec!["restore"];
        words.extend(from.iter().map(|path| text(path)));
        let image = self.image();
        words.push(text(&image));
        extentctl(&words).well();
        let restored = read_direct(&image);
        std::fs::remove_file(image).unwrap();
        restored
    }

    /// It is refused, and nothing is left.
    fn refused(&self, from: &[&Path]) -> String {
        let mut words = vec!["restore"];
        words.extend(from.iter().map(|path| text(path)));
        let image = self.image();
        words.push(text(&image));
        let said = extentctl(&words).refusal();
        self.nothing_is_left();
        said
    }

    fn nothing_is_left(&self) {
        assert!(!self.image().exists());
        assert!(!self.mounted.path(".restored.part").exists());
    }
}

#[test]
fn a_full_backup_and_increments_give_each_snapshot_back() {
    for made in [XFS, BTRFS] {
        let Some(chain) = Chain::new(made) else {
            return;
        };
        let files = chain.files();
        for (file, snapshot) in files.iter().zip(&chain.snapshots) {
            assert!(chain.restored(&[file]) == read_direct(snapshot));
        }
        let last = read_direct(&chain.snapshots[2]);
        assert!(chain.restored(&[&chain.folder]) == last);
        // Bases that lie elsewhere are given.
        let elsewhere = chain.mounted.path("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        let moved = elsewhere.join("three");
        std::fs::copy(&files[2], &moved).unwrap();
        assert!(chain.restored(&[&files[1], &moved]) == last);
        let said = chain.refused(&[&moved]);
        assert!(said.contains("is not there: give that file too"), "{said}");
        // An increment has what has changed, and no more.
        let size = |file: &Path| std::fs::metadata(file).unwrap().size();
        assert!(size(&files[0]) > 2 << 20 && size(&files[1]) < 100 << 10);
        // Sparse, as the snapshot is.
        extentctl(&["restore", text(&files[0]), text(&chain.image())]).well();
        assert!(std::fs::metadata(chain.image()).unwrap().blocks() * 512 < 4 << 20);
        let mode = std::fs::metadata(chain.image()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let said = extentctl(&["restore", text(&files[0]), text(&chain.image())]).refusal();
        assert!(said.contains("there is such a file already"), "{said}");
    }
}

#[test]
fn a_pipe_carries_them_one_after_the_other() {
    let Some(chain) = Chain::new(XFS) else { return };
    let [one, two, _] = &chain.snapshots;
    let mut stream = extentctl(&["backup", text(one), "--to", "-"]).well();
    let end_of_first = stream.len();
    let increment = ["backup", text(two), "--since", text(one), "--to", "-"];
    let increment = extentctl(&increment);
    assert!(
        increment.error.contains("an increment of two"),
        "{}",
        increment.error
    );
    stream.extend(increment.well());
    let restore = |stream: &[u8]| {
        let mut child = Command::new(rig::extentctl!())
            .args(["restore", "-", text(&chain.image())])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who refuses may not read to the end.
        let _ = child.stdin.take().unwrap().write_all(stream);
        let output = child.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(restore(&stream).0, Some(0));
    assert!(bytes(&chain.image()) == bytes(two));
    std::fs::remove_file(chain.image()).unwrap();
    for (cut, says) in [
        (0, "there is no backup in it"),
        (HEAD - 1, "ends within its head"),
        (HEAD + 10, "it was cut off"),
        (end_of_first - 1, "it was cut off"),
        (end_of_first + 1, "ends within its head"),
        (stream.len() - 1, "it was cut off"),
    ] {
        let (status, said) = restore(&stream[..cut]);
        assert_eq!(status, Some(1), "{cut}");
        assert!(
            said.contains(says) && said.lines().count() == 1,
            "{cut}: {said}"
        );
        chain.nothing_is_left();
    }
    let (_, said) = restore(&stream[end_of_first..]);
    assert!(
        said.contains("its base, the backup of an older snapshot"),
        "{said}"
    );
    let twice = [&stream[..end_of_first], &stream[..end_of_first]].concat();
    let (_, said) = restore(&twice);
    assert!(
        said.contains("give the increments in their order"),
        "{said}"
    );
    chain.nothing_is_left();
}

#[test]
fn damaged_and_foreign_files_are_refused_in_one_line() {
    let Some(chain) = Chain::new(XFS) else { return };
    let [full, increment, last] = chain.files();
    let good = bytes(&full);
    let bad = chain.file("bad.backup");
    let mut cases: Vec<(Vec<u8>, &str)> = Vec::new();
    for (at, says) in [
        (0, "this is no backup"),
        (16, "version 129 of backups is not known here"),
        (30, "its head is damaged"),
        (HEAD + 3, "of no kind"),
        (HEAD + RECORD + 5, "the sum of a record is wrong"),
        (good.len() - 1, "its sum is wrong at the end"),
    ] {
        let mut changed = good.clone();
        changed[at] ^= 0x80;
        cases.push((changed, says));
    }
    // The first record is beyond the end of the disk.
    let mut beyond = good.clone();
    beyond[HEAD + 15] = 0x7f;
    cases.push((beyond, "not within the disk"));
    cases.push(([&good[..], b"more"].concat(), "something is behind its end"));
    cases.push((Vec::new(), "it is empty"));
    for (bytes, says) in cases {
        std::fs::write(&bad, &bytes).unwrap();
        let said = chain.refused(&[&bad]);
        assert!(said.contains(says), "{says}: {said}");
    }
    std::fs::remove_file(&bad).unwrap();
    // The middle of the chain is gone.
    let away = chain.mounted.path("away");
    std::fs::rename(&increment, &away).unwrap();
    let said = chain.refused(&[&last]);
    assert!(said.contains("its base, the backup of two"), "{said}");
    let said = chain.refused(&[&chain.folder]);
    assert!(
        said.contains("end in several snapshots (one, three)"),
        "{said}"
    );
    let empty = chain.mounted.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let said = chain.refused(&[&empty]);
    assert!(said.contains("there is no backup"), "{said}");
}

#[test]
fn a_backup_that_cannot_be_is_refused_and_leaves_nothing() {
    let Some(chain) = Chain::new(XFS) else { return };
    let one = text(&chain.snapshots[0]);
    let folder = text(&chain.folder);
    let missing = chain.mounted.path("missing");
    let before = std::fs::read_dir(&chain.folder).unwrap().count();
    for (words, says) in [
        (vec!["--to", folder], "there is such a file already"),
        (
            vec!["--to", folder, "--since", one],
            "it is the snapshot itself",
        ),
        (
            vec!["--to", folder, "--since", text(&missing)],
            "No such file",
        ),
        (vec!["--to", text(&missing)], "cannot make it"),
        (vec!["--to", "-", "--verify"], "a pipe cannot be read again"),
    ] {
        let said = extentctl(&[&["backup", one], &words[..]].concat()).refusal();
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(std::fs::read_dir(&chain.folder).unwrap().count(), before);
    // Room for less than the backup, and than the image.
    let small = Made {
        megabytes: 2,
        ..EXT4
    };
    let Some(full) = mounted(small) else { return };
    let said = extentctl(&["backup", one, "--to", text(&full.root())]).refusal();
    assert!(said.contains("make room"), "{said}");
    let from = chain.file("one.full.backup");
    let said = extentctl(&["restore", text(&from), text(&full.path("image"))]).refusal();
    assert!(said.contains("make room"), "{said}");
    let left: Vec<_> = std::fs::read_dir(full.root()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let out = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let done = Command::new(rig::extentctl!())
        .args(["backup", one, "--to", "-"])
        .stdout(out)
        .status();
    assert_eq!(done.unwrap().code(), Some(1));
}

#[test]
fn a_kill_in_the_middle_leaves_nothing_that_looks_whole() {
    let Some(chain) = Chain::new(XFS) else { return };
    let all = bytes(&chain.files()[0]);
    let restoring = || {
        Command::new(rig::extentctl!())
            .args(["restore", "-", text(&chain.image())])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = restoring();
    let mut input = child.stdin.take().unwrap();
    // All that is sent but for the last of a pipe was taken.
    input.write_all(&all[..1 << 20]).unwrap();
    assert!(chain.mounted.path(".restored.part").exists());
    // Nobody else makes the same file meanwhile.
    let mut other = restoring();
    drop(other.stdin.take());
    let mut said = String::new();
    other
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("another process is writing it"), "{said}");
    assert_eq!(other.wait().unwrap().code(), Some(1));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!chain.image().exists());
    // A backup whose process is killed ends too early for who reads it.
    let mut child = Command::new(rig::extentctl!())
        .args(["backup", text(&chain.snapshots[0]), "--to", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut half = vec![0; 1 << 20];
    out.read_exact(&mut half).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    out.read_to_end(&mut half).unwrap();
    assert!(half.len() < all.len());
    let cut = chain.file("cut.backup");
    std::fs::write(&cut, &half).unwrap();
    let said = extentctl(&["restore", text(&cut), text(&chain.image())]).refusal();
    assert!(said.contains("it was cut off"), "{said}");
    // What was left is no obstacle.
    assert!(chain.restored(&[&chain.files()[2]]) == read_direct(&chain.snapshots[2]));
    chain.nothing_is_left();
}
