//! Who has an image that is in use, as far as this process can see it.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::host::keeper;

/// Processes that are named at most.
const NAMED: usize = 3;

/// An image, of which it is asked who has it when this is shown.
#[derive(Debug)]
pub(super) struct InUse {
    /// As it was given.
    pub path: PathBuf,
    /// Device and number of a file, or of a block device's node.
    pub identity: Identity,
}

/// What an image is known by, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    /// File system and number of a file.
    File(u64, u64),
    /// The number of a block device.
    Device(u64),
}

impl Identity {
    /// Of an open image.
    pub(super) fn of(image: &File) -> std::io::Result<Identity> {
        image.metadata().map(|meta| Self::from(&meta))
    }

    fn is_at(self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|meta| Self::from(&meta) == self)
    }
}

impl From<&fs::Metadata> for Identity {
    fn from(meta: &fs::Metadata) -> Self {
        if meta.file_type().is_block_device() {
            Self::Device(meta.rdev())
        } else {
            Self::File(meta.dev(), meta.ino())
        }
    }
}

impl std::error::Error for InUse {}

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let uses = uses(self.identity);
        if !uses.is_empty() {
            let uses = uses.join(", ");
            return write!(
                f,
                "{path} is in use ({uses}): release it, or give --lock off"
            );
        }
        write!(f, "{}: stop that one, or give --lock off", self.by_whom())
    }
}

impl InUse {
    /// That another process has it, and which.
    pub(super) fn by_whom(&self) -> String {
        let mut line = format!("{} is in use by another process", self.path.display());
        let processes = processes(self);
        if !processes.is_empty() {
            line.push_str(&format!(" ({})", processes.join(", ")));
        }
        line
    }

    /// Says at the start who has a device, as its rings will wait for that.
    pub(super) fn tell_at_start(&self, read_only: bool) {
        if read_only {
            let uses = uses(self.identity);
            if !uses.is_empty() {
                let (path, uses) = (self.path.display(), uses.join(", "));
                log::warn!("{path} is in use ({uses}): what the guest reads may change under it");
            }
            return;
        }
        let level = if self.has_only_our_kind() {
            log::Level::Info
        } else {
            log::Level::Warn
        };
        log::log!(level, "no ring will start before this has changed: {self}");
    }

    /// Those who have it are the same program, as the source of a migration is.
    fn has_only_our_kind(&self) -> bool {
        let own = fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let others = processes(self);
        uses(self.identity).is_empty()
            && !others.is_empty()
            && others.iter().all(|one| one.ends_with(own.trim()))
    }
}

/// What the kernel itself uses a device for.
fn uses(image: Identity) -> Vec<String> {
    let Identity::Device(number) = image else {
        return Vec::new();
    };
    let numbers = with_partitions(number);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut uses: Vec<String> = mounts
        .lines()
        .filter_map(|line| mount_point(line, &numbers))
        .map(|folder| format!("mounted at {folder}"))
        .collect();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swaps = swaps.lines().filter_map(|line| line.split(' ').next());
    if swaps
        .filter(|name| name.starts_with("/dev/"))
        .any(|name| is_one_of(name, &numbers))
    {
        uses.push("swap space".to_owned());
    }
    for number in numbers {
        let holders = fs::read_dir(sys_folder(number).join("holders"));
        for holder in holders.into_iter().flatten().flatten() {
            uses.push(format!("part of {}", holder.file_name().display()));
        }
    }
    uses
}

fn sys_folder(number: u64) -> PathBuf {
    let (major, minor) = (libc::major(number), libc::minor(number));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// A device and its partitions: who has one of them has a part of it.
fn with_partitions(number: u64) -> Vec<u64> {
    let mut numbers = vec![number];
    let entries = fs::read_dir(sys_folder(number)).into_iter().flatten();
    for entry in entries.flatten() {
        if entry.path().join("partition").exists() {
            let text = fs::read_to_string(entry.path().join("dev")).unwrap_or_default();
            numbers.extend(parse_number(text.trim()));
        }
    }
    numbers
}

fn parse_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(libc::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn is_one_of(name: &str, numbers: &[u64]) -> bool {
    let identities = numbers.iter().map(|&number| Identity::Device(number));
    fs::metadata(name).is_ok_and(|meta| identities.into_iter().any(|one| one == (&meta).into()))
}

/// The folder where a line of mountinfo says that one of these is mounted. Some
/// file systems have a number of their own, and name the device behind it.
fn mount_point(line: &str, numbers: &[u64]) -> Option<String> {
    let mut fields = line.split(' ');
    let number = parse_number(fields.nth(2)?)?;
    let folder = fields.nth(1)?;
    let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
    let mounted =
        numbers.contains(&number) || (source.starts_with("/dev/") && is_one_of(source, numbers));
    // As the kernel writes what would end the field.
    mounted.then(|| folder.replace("\\040", " "))
}

/// Other processes that have the image open, with their names, as far as who
/// may look at them sees.
fn processes(image: &InUse) -> Vec<String> {
    let (path, identity) = (image.path.clone(), image.identity);
    keeper::look(move || with_open(&path, identity)).unwrap_or_default()
}

fn with_open(path: &Path, identity: Identity) -> Vec<String> {
    let own = std::process::id();
    let file_name = fs::canonicalize(path).ok();
    let file_name = file_name.as_deref().and_then(Path::file_name);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid: Option<u32> = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|&pid| pid != own) else {
            continue;
        };
        if !has_open(&entry.path(), identity, file_name) {
            continue;
        }
        if found.len() == NAMED {
            break;
        }
        let comm = fs::read(entry.path().join("comm")).unwrap_or_default();
        let comm = String::from_utf8_lossy(&comm);
        // Any program may give itself any name, and terminals show it.
        let comm = comm.trim().replace(char::is_control, "\u{fffd}");
        found.push(format!("pid {pid} {comm}"));
    }
    found
}

/// Only files that are called as the image is looked at: others may be on a
/// file system that does not answer.
fn has_open(process: &Path, image: Identity, file_name: Option<&OsStr>) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
    descriptors.flatten().map(|entry| entry.path()).any(|path| {
        fs::read_link(&path).is_ok_and(|to| match image {
            Identity::Device(_) => to.starts_with("/dev"),
            Identity::File(..) => to.file_name() == file_name,
        }) && image.is_at(&path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_its_number_or_by_its_source() {
        let null = fs::metadata("/dev/null").unwrap();
        assert!(!null.file_type().is_block_device());
        let number = libc::makedev(7, 250);
        let line = "36 35 7:250 / /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/nothing rw";
        assert_eq!(mount_point(line, &[number]).as_deref(), Some("/mnt/a b"));
        assert_eq!(mount_point(line, &[number + 1]), None);
        let other = "36 35 0:50 / /mnt rw - tmpfs tmpfs rw";
        assert_eq!(mount_point(other, &[number]), None);
        assert_eq!(mount_point("nonsense", &[number]), None);
    }

    #[test]
    fn a_process_that_calls_itself_what_terminals_obey_is_named_without_that() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let image = File::create(&path).unwrap();
        let identity = Identity::of(&image).unwrap();
        let in_use = InUse { path, identity };
        let rename = r#"printf 'a\033[2J\377\nb' > /proc/$$/comm; read x"#;
        let mut child = std::process::Command::new("sh")
            .args(["-c", rename])
            .stdin(std::process::Stdio::piped())
            .stdout(image)
            .spawn()
            .unwrap();
        let name = format!("(pid {} a\u{fffd}[2J\u{fffd}\u{fffd}b)", child.id());
        // It has that name a moment after it was started.
        while !in_use.to_string().contains(&name) {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::yield_now();
        }
        assert!(!in_use.to_string().contains(char::is_control));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_has_the_image_open_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let image = File::create(&path).unwrap();
        let identity = Identity::of(&image).unwrap();
        let in_use = InUse { path, identity };
        let alone = in_use.to_string();
        assert!(alone.ends_with("is in use by another process: stop that one, or give --lock off"));
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(image)
            .spawn()
            .unwrap();
        let name = format!("(pid {} cat)", child.id());
        // It has its own name a moment after it was started.
        while !in_use.to_string().contains(&name) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(in_use.to_string(), alone);
    }
}
