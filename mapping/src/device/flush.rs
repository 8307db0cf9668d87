//! Whether a sync of a file reaches the medium.
//!
//! An ext4 that is mounted with `nobarrier` writes what it has, and leaves it in the disk's cache. It can be
//! remounted so at any time, by `fsconfig(2)` without any event. And one with fast commits may find that another
//! commit has done its work, and send no flush of its own. So this is asked after each sync that counts.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::sys::{self, major, minor};

/// More than ext4 has to say of its options.
const ROOM: usize = 4096;

/// Tells of one file system whether syncs of its files reach the medium.
#[derive(Debug)]
pub struct SyncReach(Option<Ext4>);

/// What an ext4 says of itself in /proc/fs/ext4.
#[derive(Debug)]
struct Ext4 {
    options: Option<File>,
    commits: Option<File>,
}

impl SyncReach {
    /// For the file system of `file`.
    ///
    /// # Errors
    /// It cannot be asked what it is.
    pub fn of(file: &File) -> io::Result<SyncReach> {
        if sys::filesystem(file)? != sys::EXT4_MAGIC {
            return Ok(SyncReach(None));
        }
        let folder = ext4_folder(file.metadata()?.dev());
        let open = |name| File::open(folder.as_deref()?.join(name)).ok();
        Ok(SyncReach(Some(Ext4 {
            options: open("options"),
            commits: open("fc_info"),
        })))
    }

    /// A file system of which it is believed that they do.
    #[must_use]
    pub fn believed() -> SyncReach {
        SyncReach(None)
    }

    /// A sync that has ended has reached the medium; false also where that cannot be told. Reads some lines of
    /// /proc on ext4, which waits for nobody and allocates nothing here.
    #[must_use]
    pub fn reaches_disk(&self) -> bool {
        let Some(Ext4 { options, commits }) = &self.0 else {
            return true;
        };
        let mut room = [0; ROOM];
        // Kernels without fast commits have no such file.
        let fast = commits
            .as_ref()
            .is_some_and(|file| !has_line(file, &mut room, |line| line == "0 commits"));
        let barriers = options
            .as_ref()
            .is_some_and(|file| has_line(file, &mut room, |line| line == "barrier"));
        barriers && !fast
    }
}

fn has_line(file: &File, room: &mut [u8; ROOM], wanted: impl Fn(&str) -> bool) -> bool {
    let Ok(bytes) = file.read_at(room, 0) else {
        return false;
    };
    let text = room
        .get(..bytes)
        .and_then(|text| std::str::from_utf8(text).ok());
    text.is_some_and(|text| text.lines().any(|line| wanted(line.trim())))
}

/// The folder in which an ext4 on this device tells of itself.
pub(crate) fn ext4_folder(device: u64) -> Option<PathBuf> {
    let (major, minor) = (major(device), minor(device));
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(Path::new("/proc/fs/ext4").join(link.file_name()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> Option<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Some(file)
    }

    fn reaches(options: Option<File>, commits: Option<File>) -> bool {
        SyncReach(Some(Ext4 { options, commits })).reaches_disk()
    }

    #[test]
    fn only_what_is_said_to_reach_the_disk_does() {
        let quiet = || file("fc stats:\n0 commits\n0 ineligible\n");
        assert!(reaches(file("rw\nbarrier\ndelalloc\n"), None));
        assert!(reaches(file("rw\nbarrier\ndelalloc\n"), quiet()));
        assert!(!reaches(file("rw\nnobarrier\ndelalloc\n"), quiet()));
        assert!(!reaches(
            file("rw\nbarrier\n"),
            file("fc stats:\n7 commits\n")
        ));
        assert!(!reaches(file(""), None), "nothing is said");
        assert!(!reaches(None, None), "there is no /proc");
    }

    #[test]
    fn other_file_systems_are_believed() {
        let memory = tempfile::tempfile_in("/dev/shm").unwrap();
        assert!(SyncReach::of(&memory).unwrap().reaches_disk());
    }
}
