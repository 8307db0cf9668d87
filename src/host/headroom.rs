//! How much more memory this process may take before the host or one of its
//! control groups runs short. Files are opened once, so that it can be asked
//! for where none can be opened any more.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

/// Files of a memory control group, by version.
struct Names {
    root: &'static str,
    /// What the group's line in /proc/self/cgroup has between the colons.
    controller: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// Words of memory.stat that are usage which is given back when needed.
    cache: [&'static str; 2],
}

const VERSIONS: [Names; 2] = [
    Names {
        root: "/sys/fs/cgroup",
        controller: "",
        limit: "memory.max",
        usage: "memory.current",
        cache: ["inactive_file", "active_file"],
    },
    Names {
        root: "/sys/fs/cgroup/memory",
        controller: "memory",
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        cache: ["total_inactive_file", "total_active_file"],
    },
];

/// Bytes that are read of a file.
const MOST: u64 = 1 << 16;

/// The host's memory and the groups that this process is in.
#[derive(Debug)]
pub(crate) struct Headroom {
    host: File,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    limit: File,
    usage: File,
    statistics: File,
    cache: [&'static str; 2],
}

impl Headroom {
    /// Finds what limits this process now; it is not moved to other groups
    /// later, as far as this knows.
    ///
    /// # Errors
    /// /proc cannot be read. Groups that cannot are left out.
    pub(crate) fn find() -> io::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Ok(Self {
            host: File::open("/proc/meminfo")?,
            groups: VERSIONS
                .iter()
                .flat_map(|names| Group::all(names, &own))
                .collect(),
        })
    }

    /// Bytes of memory that may still be taken without anybody's being swapped
    /// out or killed, as the kernel estimates.
    ///
    /// # Errors
    /// /proc cannot be read. A group that cannot any more is left out.
    pub(crate) fn bytes(&mut self) -> io::Result<u64> {
        let table = again(&mut self.host)?;
        let kilobytes = value(&table, "MemAvailable:").ok_or(io::ErrorKind::InvalidData)?;
        let groups = self.groups.iter_mut().filter_map(Group::headroom);
        let host = kilobytes.saturating_mul(1024);
        Ok(groups.fold(host, u64::min))
    }
}

impl Group {
    /// The group itself and those that it lies in.
    fn all(names: &'static Names, own: &str) -> Vec<Self> {
        let path = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers
                .split(',')
                .any(|one| one == names.controller)
                .then_some(path)
        });
        let Some(path) = path else {
            return Vec::new();
        };
        let inside = Path::new(path.trim_start_matches('/'));
        inside
            .ancestors()
            .filter_map(|inside| Self::open(names, Path::new(names.root).join(inside)))
            .collect()
    }

    fn open(names: &Names, folder: PathBuf) -> Option<Self> {
        Some(Self {
            limit: File::open(folder.join(names.limit)).ok()?,
            usage: File::open(folder.join(names.usage)).ok()?,
            statistics: File::open(folder.join("memory.stat")).ok()?,
            cache: names.cache,
        })
    }

    /// `None` without a limit.
    fn headroom(&mut self) -> Option<u64> {
        let limit: u64 = again(&mut self.limit).ok()?.trim().parse().ok()?;
        let usage: u64 = again(&mut self.usage).ok()?.trim().parse().ok()?;
        let statistics = again(&mut self.statistics).ok()?;
        let cache = self
            .cache
            .iter()
            .filter_map(|word| value(&statistics, word));
        Some(limit.saturating_sub(usage.saturating_sub(cache.sum())))
    }
}

/// A file of the kernel's as it is now.
fn again(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    // By way of a limit: its size, which is unknown, is not asked for.
    file.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// The number behind a word that begins a line.
fn value(table: &str, word: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(word)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_some_memory_left_and_not_more_than_it_has() {
        let table = fs::read_to_string("/proc/meminfo").unwrap();
        let total = value(&table, "MemTotal:").unwrap() * 1024;
        let mut headroom = Headroom::find().unwrap();
        for _ in 0..2 {
            let bytes = headroom.bytes().unwrap();
            assert!(bytes > 0 && bytes <= total, "{bytes} of {total}");
        }
    }

    #[test]
    fn words_are_whole_and_begin_a_line() {
        let table = "active_file 5\ninactive_file 7\nMemAvailable:   12 kB\n";
        assert_eq!(value(table, "inactive_file"), Some(7));
        assert_eq!(value(table, "active_file"), Some(5));
        assert_eq!(value(table, "MemAvailable:"), Some(12));
        assert_eq!(value(table, "file"), None);
    }
}
