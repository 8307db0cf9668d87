//! The way past the file system: the map of the image's extents, the device
//! under it, and the lease that makes using them safe.
//!
//! The path is *live* while file writes hold their ranges of the map, and *in
//! use* while the map is enabled, which it is only under the lease. A thread
//! of its own, the guard, moves it between these states;
//! workers only look extents up.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mapping::device::{self, BackingDevice, Refusal};
use mapping::flush::SyncReach;
use mapping::lease::{self, Lease, LeaseError, Mode};
use mapping::{Config, ExtentSource, Fiemap, Filler, Map, Stats, sharing};

use self::planner::{RawAlign, Room};
use self::survey::Survey;
use crate::engine::limits::Limits;
use crate::engine::manner::Manner;
use crate::host::switches;
use crate::host::sys;
use crate::options::config::Swap;

mod agreement;
pub(crate) mod close_watch;
mod entry;
pub(crate) mod guard;
mod length;
pub(crate) mod lookout;
pub(crate) mod planner;
pub(crate) mod raw;
pub mod survey;

pub(crate) use self::agreement::Agreement;

/// The shortest break time with which the path is used: a worker notices
/// within a second that somebody asks for the image, whatever the guard does,
/// and what it has in flight has the rest to end.
pub(crate) const SHORTEST_BREAK: Duration = Duration::from_secs(5);
/// How long the guard may take for a turn before it counts as late.
const LATE: Duration = Duration::from_secs(5);

/// Why the path is not in use.
pub(crate) const NO_GUEST: &str = "no guest uses the disk";

/// Why the disk path cannot be taken now.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    /// The image or its file system does not allow it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Somebody else has the image.
    #[error("{0}")]
    Lease(#[from] LeaseError),
    /// The map cannot be made.
    #[error("{0}")]
    Map(#[from] mapping::Error),
    /// The lease was broken before the path was entered.
    #[error("somebody else has asked for the image")]
    Asked,
    /// The host refuses a descriptor or a thread.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// The kernel would let others in before raw I/O has ended.
    #[error(
        "/proc/sys/fs/lease-break-time is {0} s: others would get the image before requests in flight have ended; make it {min} or more",
        min = SHORTEST_BREAK.as_secs()
    )]
    BreakTime(u64),
    /// Somebody has cut the image.
    #[error("the image is shorter than the disk: make it as long as it was, or send SIGHUP")]
    Short,
    /// The map and the file system disagree.
    #[error("byte {0} of the image is not where the map says")]
    Differs(u64),
    /// What is not written, or not the image's own, cannot be swapped on.
    #[error("part of the image is not swap-grade ({0})")]
    Unfit(Survey),
    /// The image is too long for the memory that its map may take.
    #[error(
        "the map of an image of this size may need {0} bytes for its table alone, of the {1} of --map-budget: give more"
    )]
    Table(u64, u64),
    /// Raw I/O on this device would be slower than the file.
    #[error(
        "the device takes no I/O without waiting (no NOWAIT) and is too slow to be waited for ({0} us a read)"
    )]
    Punts(u128),
}

/// Where requests go, and why, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Situation {
    /// The disk path is in use.
    pub on_disk: bool,
    /// One sentence.
    pub reason: String,
    /// How often the disk path was entered.
    pub entries: u64,
}

/// How the guard is doing, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct GuardState {
    /// When it last looked at the lease; it does at least every second while
    /// the path is in use, and need not otherwise.
    pub turned_ms_ago: u64,
    /// The path is in use and it has not looked for 5 s. Workers look too.
    pub late: bool,
}

/// The disk path of one image.
#[derive(Debug)]
pub(crate) struct DiskPath {
    image: Arc<File>,
    device: BackingDevice,
    map: Map,
    filler: Filler<Fiemap>,
    lease: Lease,
    /// File writes hold their ranges.
    live: AtomicBool,
    entries: AtomicU64,
    /// The image has at least as many bytes, if nobody else has cut it.
    length: AtomicU64,
    /// How often a lease was taken.
    leases: AtomicU64,
    /// When the guard last turned, in nanoseconds since the host was booted.
    turned: AtomicU64,
    situation: Mutex<(bool, String)>,
    /// How raw I/O is done.
    manner: Manner,
    limits: Limits,
    /// It may move what is written by the file, whatever its extents say.
    moves: bool,
    /// The file system lets files share extents.
    shares: bool,
    /// Swap-grade mode: the whole map is pinned while the path is in use.
    swap: Option<Swap>,
    /// Every extent is written and the image's own, so that no write of ours
    /// changes the map. Believed only while the path is live.
    fixed: AtomicBool,
}

impl DiskPath {
    /// Finds the device under the image and prepares an empty map; the path is
    /// not in use. `budget` bytes of extents are kept at most, and besides
    /// `pin_reserve` bytes of pinned ones. The device is polled for the ends of
    /// raw I/O only if it `may_poll`.
    ///
    /// # Errors
    /// The disk path is impossible for this image.
    pub(crate) fn new(
        image: &Arc<File>,
        read_only: bool,
        grain: u64,
        budget: u64,
        pin_reserve: u64,
        swap: Option<Swap>,
        may_poll: bool,
    ) -> Result<DiskPath, Obstacle> {
        let device = BackingDevice::find(image)?;
        let manner = Manner::of(device.file(), device.logical_block(), may_poll)?
            .map_err(|punts| Obstacle::Punts(punts.0.as_micros()))?;
        let limits = Limits::of(device.file())?;
        let size = image.metadata()?.len();
        let source = Fiemap::new(Arc::clone(image))
            .align(device.logical_block())
            .exclusive();
        let mut config = Config {
            budget,
            pin_reserve,
            grain,
            ..Config::default()
        };
        if swap.is_some() {
            config = config.reserve_whole(size, source.count(0..size)?);
        }
        // It is not evicted, and takes memory only where it is used.
        let table = config.table_bytes(size);
        if table > budget / 4 * 3 {
            return Err(Obstacle::Table(table, budget));
        }
        config.budget = budget - table;
        let map = Map::new(size, config)?;
        let filler = Filler::spawn(&map, Arc::new(source))?;
        // Where files can share blocks, whoever may read the image can have its
        // blocks replaced (FIDEDUPERANGE).
        let shares = sharing::can_share(image)?;
        let mode = if read_only && (!shares || switches::left_out("writelease")) {
            Mode::ReadOnly
        } else {
            Mode::Exclusive
        };
        let lease = Lease::new(Arc::clone(image), mode)?;
        if let Some(delay) = switches::lease_delay() {
            lease.retry_after(delay);
        }
        let reason = match device::admit(image) {
            Ok(()) => NO_GUEST.to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        Ok(DiskPath {
            image: Arc::clone(image),
            device,
            map,
            filler,
            lease,
            live: AtomicBool::new(false),
            entries: AtomicU64::new(0),
            length: AtomicU64::new(size),
            leases: AtomicU64::new(0),
            turned: AtomicU64::new(sys::boot_time_ns()),
            situation: Mutex::new((false, reason)),
            manner,
            limits,
            moves: shares && !switches::left_out("cow"),
            shares,
            swap,
            fixed: AtomicBool::new(false),
        })
    }

    /// The map.
    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    /// The map's helper, for advice.
    pub(crate) fn filler(&self) -> &Filler<Fiemap> {
        &self.filler
    }

    /// The device under the image.
    pub(crate) fn device(&self) -> &BackingDevice {
        &self.device
    }

    /// What raw I/O takes. Writes are whole blocks of the device's own page
    /// cache, so that nothing there ever holds half of what was written.
    pub(crate) fn align(&self) -> RawAlign {
        let read = u64::from(self.device.logical_block());
        RawAlign {
            read,
            write: read.max(u64::from(self.device.page_block())),
        }
    }

    /// What the device takes in one piece.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// In swap-grade mode no request goes through the file system, over
    /// however many extents it reaches.
    pub(crate) fn room(&self) -> Room {
        if self.is_fixed() {
            Room::Part
        } else {
            Room::Whole
        }
    }

    /// A file write may have to put shared data elsewhere.
    pub(crate) fn shares_extents(&self) -> bool {
        self.shares
    }

    /// How raw I/O is best done.
    pub(crate) fn manner(&self) -> Manner {
        self.manner
    }

    /// File writes must hold their ranges. To be asked by an online reader of
    /// the map; who was told "no" is waited for by [`enter`](Self::enter).
    pub(crate) fn is_live(&self) -> bool {
        self.live.load(Ordering::SeqCst)
    }

    /// No write changes the map, so that none has to hold its range. Means
    /// something only while the path is live.
    pub(crate) fn is_fixed(&self) -> bool {
        self.fixed.load(Ordering::SeqCst)
    }

    /// No write has to hold its range. On file systems that share each does:
    /// what is set aside there cannot be looked at.
    pub(crate) fn needs_no_holds(&self) -> bool {
        self.is_fixed() && !self.moves
    }

    /// How often the path was entered.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::SeqCst)
    }

    /// How often a lease was taken: tells a worker that has found one lost
    /// that there is another. It is counted before the map is enabled.
    pub(crate) fn leases(&self) -> u64 {
        self.leases.load(Ordering::SeqCst)
    }

    /// Nobody has cut the image, which is possible without breaking the lease:
    /// through an overlay, or by a client of an NFS server on this host.
    pub(crate) fn is_whole(&self) -> bool {
        let length = self.length.load(Ordering::SeqCst);
        self.image.metadata().is_ok_and(|stat| stat.len() >= length)
    }

    /// The kernel says that the lease is ours and nobody asks for it.
    pub(crate) fn lease_is_held(&self) -> bool {
        if switches::unguarded() {
            return true;
        }
        self.lease.is_held()
    }

    /// Becomes readable when somebody wants the image.
    pub(crate) fn lease_event(&self) -> BorrowedFd<'_> {
        self.lease.event()
    }

    /// Resets [`lease_event`](Self::lease_event); whether the lease is gone or
    /// wanted.
    pub(crate) fn lease_is_broken(&self) -> bool {
        if switches::unguarded() {
            return false;
        }
        self.lease.broken()
    }

    /// When a refused or lost lease is worth asking for again.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.lease.retry_at()
    }

    /// Where requests go, and why.
    pub(crate) fn situation(&self) -> Situation {
        let state = self
            .situation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Situation {
            on_disk: state.0,
            reason: state.1.clone(),
            entries: self.entries(),
        }
    }

    /// The map's counters.
    pub(crate) fn stats(&self) -> Stats {
        self.map.stats()
    }

    /// The path is not in use, for this reason. Called by the guard only.
    pub(crate) fn stay_away(&self, reason: &str) {
        self.set_situation(false, reason);
    }

    fn set_situation(&self, on_disk: bool, reason: &str) {
        let new = (on_disk, reason.to_owned());
        let mut state = self
            .situation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *state == new {
            return;
        }
        *state = new;
        drop(state);
        let way = if on_disk { "disk" } else { "file" };
        log::info!("requests go by the {way}: {reason}");
    }

    /// The guard turns. Called by the guard only.
    pub(crate) fn turn(&self) {
        self.turned.store(sys::boot_time_ns(), Ordering::Relaxed);
    }

    /// How the guard is doing.
    pub(crate) fn guard_state(&self) -> GuardState {
        let turned = Duration::from_nanos(self.turned.load(Ordering::Relaxed));
        let since = Duration::from_nanos(sys::boot_time_ns()).saturating_sub(turned);
        GuardState {
            turned_ms_ago: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            late: self.is_live() && since > LATE,
        }
    }

    /// Whether what was true when the path was entered still is, but for the
    /// lease: break time, mount options, attributes. May wait for /proc.
    ///
    /// # Errors
    /// What is not.
    pub(crate) fn check_conditions(&self) -> Result<(), Obstacle> {
        device::admit(&self.image)?;
        if !self.is_whole() {
            return Err(Obstacle::Short);
        }
        if let Some(time) = lease::break_time()?.filter(|time| *time < SHORTEST_BREAK) {
            return Err(Obstacle::BreakTime(time.as_secs()));
        }
        Ok(())
    }

    /// Tells a worker whether a sync of the file reaches the disk.
    ///
    /// # Errors
    /// The file system cannot be asked.
    pub(crate) fn sync_reach(&self) -> io::Result<SyncReach> {
        if switches::left_out("recheck") {
            return Ok(SyncReach::believed());
        }
        SyncReach::of(&self.image)
    }
}
