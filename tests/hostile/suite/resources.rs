//! What a process holds: descriptors, threads, maps and memory.

use std::collections::BTreeMap;
use std::fs;

/// How many there are of each kind.
pub type Counts = BTreeMap<String, usize>;

/// What has to be the same whoever came and went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: Counts,
    /// Its own threads.
    pub threads: Counts,
    /// Files that are mapped.
    pub mapped: Counts,
}

/// What may grow a little, as whoever manages memory likes it.
#[derive(Debug, Clone, Copy)]
pub struct Grown {
    /// Mappings of any kind.
    pub maps: usize,
    /// VmRSS and VmData, in KiB.
    pub resident: u64,
    pub data: u64,
}

fn count(names: impl Iterator<Item = String>) -> Counts {
    let mut counts = Counts::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// The names in a folder of /proc that are still there when asked.
fn each(folder: &str, read: impl Fn(std::path::PathBuf) -> Option<String>) -> Counts {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    count(entries.filter_map(|entry| read(entry.path())))
}

/// What it holds now.
pub fn held(pid: u32) -> Held {
    let kind = |path| {
        let name = fs::read_link(path).ok()?.to_string_lossy().into_owned();
        // The numbers of sockets and pipes differ.
        let kind = name.split_once(":[").map(|(kind, _)| kind.to_owned());
        Some(kind.unwrap_or(name))
    };
    let thread = |path: std::path::PathBuf| {
        let name = fs::read_to_string(path.join("comm")).ok()?;
        // The kernel's helpers of io_uring come and go.
        (!name.starts_with("iou-")).then(|| name.trim().to_owned())
    };
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let files = maps.lines().filter_map(|line| {
        let name = line.splitn(6, ' ').nth(5)?.trim();
        let file = name.starts_with('/') || name.starts_with("anon_inode");
        (file && !name.contains(".so")).then(|| name.to_owned())
    });
    Held {
        descriptors: each(&format!("/proc/{pid}/fd"), kind),
        threads: each(&format!("/proc/{pid}/task"), thread),
        mapped: count(files),
    }
}

/// What it has come to.
pub fn grown(pid: u32) -> Grown {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    Grown {
        maps: maps.lines().count(),
        resident: field("VmRSS:"),
        data: field("VmData:"),
    }
}

/// What differs, for people.
pub fn difference(before: &Held, now: &Held) -> String {
    let parts = [
        ("descriptors", &before.descriptors, &now.descriptors),
        ("threads", &before.threads, &now.threads),
        ("maps", &before.mapped, &now.mapped),
    ];
    let mut lines = Vec::new();
    for (what, before, now) in parts {
        let names: std::collections::BTreeSet<_> = before.keys().chain(now.keys()).collect();
        for name in names {
            let of = |counts: &Counts| counts.get(name).copied().unwrap_or(0);
            if of(before) != of(now) {
                lines.push(format!("{what}: {name}: {} to {}", of(before), of(now)));
            }
        }
    }
    lines.join(", ")
}
