//! The properties of a swap-grade process, each as the kernel tells it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;

use mapping::path::{Agreement, Survey};
use mapping::{Fiemap, sharing};
use vhost_backend::Device;

use crate::disk::Disk;
use crate::host::allocations::{self, Counts};
use crate::host::hardening;
use crate::protocol::info::Property;

/// `PF_MEMALLOC_NOIO`, which makes a thread an I/O flusher, among the flags of
/// /proc/PID/stat.
const FLUSHER: u64 = 0x0008_0000;

impl Property {
    pub(super) fn new(held: bool, detail: impl Into<String>) -> Self {
        Self {
            held,
            detail: detail.into(),
        }
    }

    pub(super) fn unknown(error: &io::Error) -> Self {
        Self::new(false, format!("cannot be read: {error}"))
    }
}

/// What must not rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) major_faults: u64,
    pub(super) allocations: Counts,
}

impl Counters {
    pub(super) fn now() -> io::Result<Self> {
        Ok(Self {
            major_faults: major_faults()?,
            allocations: allocations::counts(),
        })
    }
}

/// What is open is a block device, as the kernel says now.
fn is_block_device(disk: &Disk) -> bool {
    let open = disk.image().metadata();
    open.is_ok_and(|stat| stat.file_type().is_block_device())
}

pub(super) fn extents_written(disk: &Disk) -> Property {
    if is_block_device(disk) {
        return Property::new(true, "a block device has no extents");
    }
    let source = Fiemap::new(disk.image().clone());
    match Survey::of(&source) {
        Ok(survey) => Property::new(survey.unfit() == 0, survey.to_string()),
        Err(error) => Property::unknown(&error),
    }
}

/// On XFS no write goes elsewhere because of what was shared before.
pub(super) fn cow_fork_empty(disk: &Disk) -> Property {
    if is_block_device(disk) {
        return Property::new(true, "a block device has no extents");
    }
    match sharing::can_share(disk.image()) {
        Ok(true) => {}
        Ok(false) => return Property::new(true, "files do not share blocks here"),
        Err(error) => return Property::unknown(&error),
    }
    let unshared = disk.disk_path().is_ok_and(mapping::DiskPath::is_fixed);
    match Survey::of(&Fiemap::new(disk.image().clone())) {
        Ok(survey) => Property::new(
            unshared && survey.shared + survey.set_aside == 0,
            format!(
                "{} bytes shared, {} set aside for copies on write, {}",
                survey.shared,
                survey.set_aside,
                if unshared {
                    "unshared when the lease was taken"
                } else {
                    "not unshared under a lease"
                }
            ),
        ),
        Err(error) => Property::unknown(&error),
    }
}

/// All of the map is what the file system says now.
pub(super) fn map_true(disk: &Disk) -> Property {
    let path = match disk.disk_path() {
        Ok(path) if path.situation().on_disk => path,
        Ok(path) => return Property::new(false, path.situation().reason),
        Err(reason) => return Property::new(is_block_device(disk), reason),
    };
    match path.agreement() {
        Ok(Agreement {
            differs: Some(at), ..
        }) => Property::new(
            false,
            format!("byte {at} of the image is not where the map says"),
        ),
        Ok(found) => Property::new(
            true,
            format!(
                "{} bytes compared with FIEMAP, {} not loaded or changing",
                found.known, found.unknown
            ),
        ),
        Err(error) => Property::unknown(&error),
    }
}

pub(super) fn map_pinned(disk: &Disk) -> Property {
    if is_block_device(disk) {
        return Property::new(true, "a block device needs no map");
    }
    let path = match disk.disk_path() {
        Ok(path) => path,
        Err(reason) => return Property::new(false, reason),
    };
    let stats = path.stats();
    let windows = stats.size.div_ceil(path.map().config().window);
    let whole = stats.resident_windows == windows && stats.pinned_bytes == stats.resident_bytes;
    Property::new(
        whole && stats.enabled,
        format!(
            "{} of {windows} windows in memory, {} of {} bytes pinned",
            stats.resident_windows, stats.pinned_bytes, stats.resident_bytes
        ),
    )
}

pub(super) fn lease_held(disk: &Disk) -> Property {
    if is_block_device(disk) {
        return match disk.is_exclusive() {
            Ok(true) => Property::new(true, "the block device is open exclusively"),
            Ok(false) => Property::new(
                false,
                "others may use the block device: it is open exclusively only while a guest uses it, and never with --lock off or --read-only",
            ),
            Err(error) => Property::unknown(&error),
        };
    }
    match disk.disk_path() {
        Ok(path) => Property::new(
            path.lease_is_held() && path.situation().on_disk,
            path.situation().reason,
        ),
        Err(reason) => Property::new(false, reason),
    }
}

pub(super) fn no_discard(disk: &Disk) -> Property {
    let info = disk.info();
    let frees = info.write_zeroes.is_some_and(|zeroes| zeroes.may_unmap);
    Property::new(
        info.discard.is_none() && !frees,
        "what is offered frees no block",
    )
}

pub(super) fn oom_protected() -> Property {
    match hardening::oom_score_adj() {
        Ok(score) => Property::new(score == -1000, format!("oom_score_adj is {score}")),
        Err(error) => Property::unknown(&error),
    }
}

/// The fields of /proc/.../stat behind the name, which may hold anything.
fn stat_fields(path: &std::path::Path) -> io::Result<Vec<u64>> {
    let text = fs::read_to_string(path)?;
    let fields = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
    Ok(fields
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect())
}

pub(super) fn major_faults() -> io::Result<u64> {
    let fields = stat_fields("/proc/self/stat".as_ref())?;
    fields
        .get(9)
        .copied()
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

pub(super) fn io_flusher() -> io::Result<Property> {
    let (mut all, mut flushers) = (0, 0);
    for thread in fs::read_dir("/proc/self/task")? {
        let Ok(fields) = stat_fields(&thread?.path().join("stat")) else {
            // A thread that has just ended.
            continue;
        };
        all += 1;
        if fields.get(6).is_some_and(|flags| flags & FLUSHER != 0) {
            flushers += 1;
        }
    }
    Ok(Property::new(
        all == flushers,
        format!("{flushers} of {all} threads"),
    ))
}

pub(super) fn memory_locked() -> io::Result<Property> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let status = fs::read_to_string("/proc/self/status")?;
    let locked = status
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))
        .unwrap_or("0 kB")
        .trim();
    let loose = loose_mappings(&smaps);
    Ok(match loose.first() {
        None => Property::new(true, format!("VmLck {locked}, all but guest memory")),
        Some(first) => Property::new(
            false,
            format!(
                "VmLck {locked}; {} mappings are not, as {first}",
                loose.len()
            ),
        ),
    })
}

/// Mappings that are neither locked, nor a guest's memory, nor of a kind that
/// is in memory anyway.
fn loose_mappings(smaps: &str) -> Vec<&str> {
    let mut loose = Vec::new();
    let mut header = "";
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            header = line;
        } else if first == "VmFlags:" {
            let has = |flag| line.split_whitespace().any(|one| one == flag);
            // As vhost-backend marks guest memory, and how the kernel marks
            // memory of its own (rings, the vdso).
            let guest = has("dc") && has("dd");
            let kernel = ["io", "pf", "mm", "de"].into_iter().any(has) || header.contains("[v");
            if !has("lo") && !guest && !kernel {
                loose.push(header);
            }
        }
    }
    loose
}

/// Data are the same by the file and by the device.
pub(super) fn paths_agree(disk: &Disk) -> Property {
    let path = match disk.disk_path() {
        Ok(path) if path.situation().on_disk => path,
        Ok(path) => return Property::new(false, path.situation().reason),
        Err(reason) => return Property::new(is_block_device(disk), reason),
    };
    match path.compare() {
        Ok(proof) => Property::new(true, format!("{} blocks compared", proof.blocks)),
        Err(refusal) => Property::new(false, refusal.to_string()),
    }
}

pub(super) fn counters_flat(before: io::Result<Counters>) -> Property {
    match (before, Counters::now()) {
        (Ok(before), Ok(after)) => Property::new(
            before.major_faults == after.major_faults
                && before.allocations.in_requests == after.allocations.in_requests,
            format!(
                "{} major faults, {} allocations in requests during the test",
                after.major_faults - before.major_faults,
                after.allocations.in_requests - before.allocations.in_requests
            ),
        ),
        (Err(error), _) | (_, Err(error)) => Property::unknown(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_that_are_not_locked_are_found() {
        let smaps = "\
1000-2000 r-xp 00000000 fe:00 1 /usr/bin/extentd
Rss:                   4 kB
VmFlags: rd ex mr mw me lo
3000-4000 rw-s 00000000 00:01 2 /memfd:guest (deleted)
VmFlags: rd wr sh mr mw me ms dc dd
5000-6000 rw-s 00000000 00:0f 3 anon_inode:[io_uring]
VmFlags: rd wr sh mr mw me ms dc de mm
7000-8000 rw-p 00000000 00:00 0 [heap]
Size:                  4 kB
VmFlags: rd wr mr mw me ac
9000-a000 r-xp 00000000 00:00 0 [vdso]
VmFlags: rd ex mr mw me de
";
        assert_eq!(
            loose_mappings(smaps),
            ["7000-8000 rw-p 00000000 00:00 0 [heap]"]
        );
        assert!(loose_mappings(&smaps.replace("ac\n", "lo\n")).is_empty());
    }

    #[test]
    fn this_thread_is_no_flusher_unless_the_kernel_says_so() {
        let property = io_flusher().unwrap();
        assert!(!property.held, "{}", property.detail);
        assert!(property.detail.starts_with("0 of "), "{}", property.detail);
    }
}
