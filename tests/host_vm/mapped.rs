//! An image on ext4 on a device of the device mapper, which can be changed under it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use mapping::{ExtentSource, Fiemap, Kind};

use crate::layers::{self, Layer, SECTOR, dmsetup, shell, unmount};

/// Bytes of an image.
pub const IMAGE: usize = 16 << 20;

/// The device, mounted; gone when dropped.
pub struct Mapped {
    name: &'static str,
    under: String,
    sectors: u64,
    _layer: Layer,
}

impl Mapped {
    /// On all of the device `under`.
    pub fn new(name: &'static str, under: &str) -> Self {
        let sectors = layers::sectors(under);
        let layer = Layer::mapped(name, &format!("0 {sectors} linear {under} 0"));
        let device = layer.node();
        let mapped = Self {
            name,
            under: under.to_owned(),
            sectors,
            _layer: layer,
        };
        // Without a journal, whose end would make the file system read-only as soon as a write of
        // it fails.
        shell("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", &device]);
        let folder = mapped.folder();
        std::fs::create_dir(&folder).unwrap();
        shell("mount", &["-t", "ext4", &device, folder.to_str().unwrap()]);
        mapped
    }

    fn folder(&self) -> PathBuf {
        Path::new("/mnt").join(self.name)
    }

    /// An image there that is all zeros, written and durable.
    pub fn image(&self) -> PathBuf {
        let path = self.folder().join("image");
        std::fs::write(&path, vec![0; IMAGE]).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        path
    }

    /// From now on I/O waits. What the file system has to write first waits for nothing.
    pub fn suspend(&self) {
        dmsetup(self.name, &["suspend", "--nolockfs", "--noflush"]);
    }

    /// I/O goes on.
    pub fn resume(&self) {
        dmsetup(self.name, &["resume"]);
    }

    /// Puts another table into place.
    pub fn change(&self, table: &str) {
        dmsetup(self.name, &["reload", "--table", table]);
        self.suspend();
        self.resume();
    }

    /// The table of a device that works.
    pub fn linear(&self) -> String {
        self.table(&format!("linear {} 0", self.under))
    }

    /// The table of one target; its parameters may name the [device under it](Self::under).
    pub fn table(&self, target: &str) -> String {
        format!("0 {} {target}", self.sectors)
    }

    /// The device under it.
    pub fn under(&self) -> &str {
        &self.under
    }

    /// The table of a device that fails where these bytes of a file are.
    pub fn failing(&self, file: &Path, ranges: impl Iterator<Item = Range<u64>>) -> String {
        let source = Fiemap::new(Arc::new(std::fs::File::open(file).unwrap()));
        let mut bad = Vec::new();
        for range in ranges {
            source
                .fill(range.clone(), &mut |extent| {
                    assert_eq!(extent.kind, Kind::Written);
                    let start = range.start.max(extent.start);
                    let at = extent.disk + (start - extent.start);
                    let bytes = range.end.min(extent.end()) - start;
                    bad.push(at / SECTOR..(at + bytes) / SECTOR);
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
        }
        bad.sort_by_key(|range| range.start);
        let (mut lines, mut at) = (Vec::new(), 0);
        let linear = |at: u64, end: u64| format!("{at} {} linear {} {at}", end - at, self.under);
        for Range { start, end } in bad {
            if at < start {
                lines.push(linear(at, start));
            }
            lines.push(format!("{start} {} error", end - start));
            at = end;
        }
        lines.push(linear(at, self.sectors));
        lines.join("\n")
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // A scene that has failed may have left it as it should not be unmounted.
        let _ = Command::new("dmsetup").args(["resume", self.name]).status();
        unmount(&self.folder());
        let _ = std::fs::remove_dir(self.folder());
    }
}
