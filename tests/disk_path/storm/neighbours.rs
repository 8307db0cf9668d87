//! Other files of the file system: they come and go, so that blocks which the
//! image has lost become theirs, and each is looked at before it goes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rig::file_systems::Mounted;
use rig::files::{fallocate, read_direct, try_write_direct};
use rig::model::{FOREIGN, SECTOR, Value, content, holds};
use rig::random::Random;

/// Bytes of all that are there at most.
const MOST: usize = 48 << 20;
/// What a file is made longer or shorter by: a multiple of every block and
/// cluster here.
const STEP: usize = 64 << 10;

/// A file, with what it should hold.
struct Neighbour {
    path: PathBuf,
    value: Value,
    /// Which sector of its value each sector holds; `None` for zeros.
    sectors: Vec<Option<usize>>,
}

impl Neighbour {
    /// What is wrong with it.
    fn spoilt(&self) -> Option<String> {
        let name = self.path.display();
        let bytes = read_direct(&self.path);
        if bytes.len() != self.sectors.len() * SECTOR {
            return Some(format!("{name} has another length"));
        }
        let wrong = |(sector, bytes): &(&Option<usize>, &[u8])| match **sector {
            Some(sector) => !holds(self.value, sector, bytes),
            None => !holds(0, 0, bytes),
        };
        let count = |wrong: usize| format!("{name} has {wrong} wrong sectors");
        let sectors = self.sectors.iter().zip(bytes.chunks_exact(SECTOR));
        Some(sectors.filter(wrong).count())
            .filter(|&wrong| wrong > 0)
            .map(count)
    }
}

/// All of them.
#[derive(Default)]
pub struct Neighbours {
    all: Vec<Neighbour>,
    made: u32,
    /// How many were looked at.
    pub checked: usize,
    /// What was wrong.
    pub spoilt: Vec<String>,
}

impl Neighbours {
    /// One of them comes, goes or changes.
    pub fn stir(&mut self, host: &Mounted, random: &mut Random) -> io::Result<()> {
        let bytes: usize = self.all.iter().map(|one| one.sectors.len() * SECTOR).sum();
        match random.below(8) {
            0 if !self.all.is_empty() => self.collapse(random),
            1 if !self.all.is_empty() => self.insert(random),
            _ if bytes < MOST => self.make(host, random).inspect_err(|_| {
                // There was no room, so some is made.
                for _ in 0..self.all.len() / 4 {
                    self.remove(random);
                }
            }),
            _ => {
                for _ in 0..1 + random.below(self.all.len()) {
                    self.remove(random);
                }
                Ok(())
            }
        }
    }

    /// A new file, with blocks of its own on the disk.
    pub fn make(&mut self, host: &Mounted, random: &mut Random) -> io::Result<()> {
        let bytes = STEP << random.below(6);
        let direct = random.below(2) == 0;
        let name = format!("neighbour-{}", self.made);
        self.write(&host.path(&name), 0..bytes / SECTOR, direct)
    }

    /// A new file with these sectors of a new value.
    fn write(
        &mut self,
        path: &Path,
        sectors: std::ops::Range<usize>,
        direct: bool,
    ) -> io::Result<()> {
        let value = FOREIGN + self.made;
        self.made += 1;
        let bytes = content(value, sectors.clone());
        let written = (|| {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .custom_flags(if direct { libc::O_DIRECT } else { 0 })
                .open(path)?;
            if direct {
                try_write_direct(&file, &bytes, 0)?;
            } else {
                file.write_all_at(&bytes, 0)?;
            }
            file.sync_all()
        })();
        if written.is_err() {
            // It may never have come to be.
            let _ = std::fs::remove_file(path);
            return written;
        }
        self.all.push(Neighbour {
            path: path.to_owned(),
            value,
            sectors: sectors.map(Some).collect(),
        });
        Ok(())
    }

    /// One of them, with its length in steps.
    fn any(&mut self, random: &mut Random) -> io::Result<(&mut Neighbour, File, usize)> {
        let one = random.below(self.all.len());
        let one = &mut self.all[one];
        let file = OpenOptions::new().write(true).open(&one.path)?;
        let steps = one.sectors.len() * SECTOR / STEP;
        Ok((one, file, steps))
    }

    fn collapse(&mut self, random: &mut Random) -> io::Result<()> {
        let (one, file, steps) = self.any(random)?;
        if steps < 2 {
            return Ok(());
        }
        let at = random.below(steps - 1) * STEP;
        let mode = libc::FALLOC_FL_COLLAPSE_RANGE;
        fallocate(&file, mode, at as u64, STEP as u64)?;
        one.sectors.drain(at / SECTOR..(at + STEP) / SECTOR);
        Ok(())
    }

    fn insert(&mut self, random: &mut Random) -> io::Result<()> {
        let (one, file, steps) = self.any(random)?;
        let at = random.below(steps) * STEP;
        let mode = libc::FALLOC_FL_INSERT_RANGE;
        fallocate(&file, mode, at as u64, STEP as u64)?;
        let zeros = std::iter::repeat_n(None, STEP / SECTOR);
        one.sectors.splice(at / SECTOR..at / SECTOR, zeros);
        Ok(())
    }

    /// Looks at one, and removes it.
    fn remove(&mut self, random: &mut Random) {
        if self.all.is_empty() {
            return;
        }
        let one = random.below(self.all.len());
        let one = self.all.swap_remove(one);
        self.checked += 1;
        self.spoilt.extend(one.spoilt());
        std::fs::remove_file(&one.path).unwrap();
    }

    /// Looks at all.
    pub fn check(&mut self) {
        self.checked += self.all.len();
        let spoilt = self.all.iter().filter_map(Neighbour::spoilt);
        self.spoilt.extend(spoilt);
    }
}
