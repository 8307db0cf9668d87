//! How much room the image's file system has, and how much the guest could
//! still ask of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::Disk;
use crate::host::feed::Feed;
use crate::host::hardening::SMALL_STACK;
use crate::host::sandbox::{self, Kind};
use crate::options::size;
use crate::protocol::events::Event;
use crate::protocol::info::Room;

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// It is low below this part of the file system, where not all that the guest
/// could ask for is there.
const LOW_PART: u64 = 20;
/// It is not low with this many bytes, however large the file system is.
const ENOUGH: u64 = 10 << 30;
/// Nothing is known yet.
const UNKNOWN: u64 = u64::MAX;

/// What was seen last.
#[derive(Debug)]
pub(super) struct Seen {
    free: AtomicU64,
    unallocated: AtomicU64,
    low: AtomicU64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            free: AtomicU64::new(UNKNOWN),
            unallocated: AtomicU64::new(0),
            low: AtomicU64::new(0),
        }
    }
}

impl Seen {
    pub(super) fn now(&self) -> Option<Room> {
        let free_bytes = self.free.load(Ordering::Acquire);
        let unallocated_bytes = self.unallocated.load(Ordering::Relaxed);
        (free_bytes != UNKNOWN).then(|| Room {
            free_bytes,
            unallocated_bytes,
            overcommitted: unallocated_bytes > free_bytes,
            low: self.low.load(Ordering::Relaxed) != 0,
        })
    }

    fn set(&self, room: &Room) {
        self.unallocated
            .store(room.unallocated_bytes, Ordering::Relaxed);
        self.low.store(u64::from(room.low), Ordering::Relaxed);
        self.free.store(room.free_bytes, Ordering::Release);
    }
}

/// What there is; `was_low` when it was looked at before.
fn look(image: &File, was_low: bool) -> io::Result<Room> {
    let file = image.metadata()?;
    let system = rustix::fs::fstatvfs(image)?;
    let block = system.f_frsize;
    let free_bytes = system.f_bavail.saturating_mul(block);
    let all = system.f_blocks.saturating_mul(block);
    let unallocated_bytes = file
        .size()
        .saturating_sub(file.blocks().saturating_mul(512));
    Ok(Room {
        free_bytes,
        unallocated_bytes,
        overcommitted: unallocated_bytes > free_bytes,
        low: is_low(free_bytes, unallocated_bytes, all, was_low),
    })
}

/// Room that was low has to grow by a quarter to be enough again.
fn is_low(free: u64, unallocated: u64, all: u64, was_low: bool) -> bool {
    let limit = (all / LOW_PART).min(ENOUGH);
    let limit = if was_low { limit + limit / 4 } else { limit };
    unallocated > free && free < limit
}

/// Looks at the room of a disk in a file, for as long as there is one, on a
/// thread of its own: a file system may keep it waiting, and nobody waits for
/// it.
///
/// # Errors
/// The host refuses a thread.
pub(crate) fn watch(disk: &Arc<Disk>, feed: Feed<Event>) -> io::Result<()> {
    if disk.block_device || disk.options.read_only {
        return Ok(());
    }
    // Operators see it from the start.
    if let Ok(room) = look(&disk.image, false) {
        disk.room.set(&Room { low: false, ..room });
    }
    let disk = Arc::downgrade(disk);
    thread::Builder::new()
        .name("room".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(move || {
            sandbox::enter(Kind::Lookout);
            follow(&disk, &feed);
        })?;
    Ok(())
}

fn follow(disk: &Weak<Disk>, feed: &Feed<Event>) {
    let mut was_low = false;
    loop {
        // The image alone: a disk that is to be closed is not kept.
        let Some(image) = disk.upgrade().map(|disk| Arc::clone(&disk.image)) else {
            return;
        };
        let looked = look(&image, was_low);
        drop(image);
        match (looked, disk.upgrade()) {
            (_, None) => return,
            (Ok(room), Some(disk)) => {
                disk.room.set(&room);
                if room.low != was_low {
                    tell(&disk, &room, feed);
                }
                was_low = room.low;
            }
            (Err(error), Some(_)) => log::debug!("the room for the image is not known: {error}"),
        }
        thread::sleep(PERIOD);
    }
}

fn tell(disk: &Disk, room: &Room, feed: &Feed<Event>) {
    let (free_bytes, unallocated_bytes) = (room.free_bytes, room.unallocated_bytes);
    if room.low {
        log::warn!(
            "the file system of {} has {} free, and the guest may ask for {} more: make room before it is full",
            disk.path.display(),
            size::display(free_bytes),
            size::display(unallocated_bytes)
        );
        feed.tell(Event::RoomLow {
            free_bytes,
            unallocated_bytes,
        });
    } else {
        log::info!(
            "the file system of {} has {} free: enough for now",
            disk.path.display(),
            size::display(free_bytes)
        );
        feed.tell(Event::RoomEnough { free_bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_low_where_little_is_free_and_more_may_be_asked_for() {
        let gib = 1 << 30;
        assert!(!is_low(5 * gib, 4 * gib, 200 * gib, false), "it suffices");
        assert!(is_low(5 * gib, 6 * gib, 200 * gib, false));
        assert!(!is_low(10 * gib, 60 * gib, 200 * gib, false));
        assert!(is_low(12 * gib, 60 * gib, 200 * gib, true), "not at once");
        assert!(!is_low(13 * gib, 60 * gib, 200 * gib, true));
        assert!(!is_low(11 * gib, 60 * gib, 9000 * gib, false), "10 GiB do");
    }
}
