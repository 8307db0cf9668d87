//! What all threads of a disk path share: the map of the file's extents, the device under it, the lease that makes
//! using them safe, and the state.
//!
//! The path is *live* while file writes hold their ranges of the map, and *in use* while the map is enabled, which it
//! is only under the lease. The [guard](super::guard) moves it between these states; workers only look extents up.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ablation;
use super::away::{Away, Obstacle};
use super::change::{Change, Observer};
use super::options::{Options, Swap};
use super::planner::{RawAlign, Room};
use super::situation::{GuardState, SHORTEST_BREAK, Situation};
use crate::device::{self, BackingDevice};
use crate::flush::SyncReach;
use crate::lease::{self, Lease, Mode};
use crate::sys;
use crate::{Config, ExtentSource, Fiemap, Filler, Map, sharing};

/// How long the guard may take for a turn before it counts as late.
const LATE: Duration = Duration::from_secs(5);

/// The shared part of one path.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) image: Arc<File>,
    /// The file is open for writing.
    pub(super) writable: bool,
    pub(super) device: BackingDevice,
    pub(super) map: Map,
    pub(super) filler: Filler<Fiemap>,
    pub(super) lease: Lease,
    /// File writes hold their ranges.
    pub(super) live: AtomicBool,
    pub(super) entries: AtomicU64,
    /// The image has at least as many bytes, if nobody else has cut it.
    pub(super) length: AtomicU64,
    /// A worker has gone whose raw I/O may be in flight: nobody learns when
    /// it has ended.
    pub(super) abandoned: AtomicBool,
    /// How often a lease was taken.
    pub(super) leases: AtomicU64,
    /// When the guard last turned, in nanoseconds since the host was booted.
    turned: AtomicU64,
    situation: Mutex<(bool, String)>,
    /// It may move what is written by the file, whatever its extents say.
    pub(super) moves: bool,
    /// The file system lets files share extents.
    shares: bool,
    /// Swap-grade mode: the whole map is pinned while the path is in use.
    pub(super) swap: Option<Swap>,
    /// Who is told of changes.
    pub(super) observer: Observer,
    /// How reasons are worded.
    tell: fn(&Away<'_>) -> String,
    /// Every extent is written and the image's own, so that no write of ours
    /// changes the map. Believed only while the path is live.
    pub(super) fixed: AtomicBool,
}

impl Core {
    /// Prepares an empty map of a file on `device`; the path is not in use.
    ///
    /// # Errors
    /// The disk path is impossible for this file.
    pub(super) fn new(
        image: &Arc<File>,
        device: BackingDevice,
        options: &Options,
    ) -> Result<Core, Obstacle> {
        let flags = sys::open_flags(image)?;
        if flags & libc::O_DIRECT == 0 {
            return Err(Obstacle::Buffered);
        }
        let swap = options.swap;
        let size = image.metadata()?.len();
        let source = Fiemap::new(Arc::clone(image))
            .align(device.logical_block())
            .exclusive();
        let mut config = Config {
            budget: options.budget,
            pin_reserve: options.pin_reserve,
            grain: options.grain,
            ..Config::default()
        };
        if let Some(quiet) = ablation::quiet() {
            config.quiet = quiet;
        }
        if swap.is_some() {
            config = config.reserve_whole(size, source.count(0..size)?);
        }
        // It is not evicted, and takes memory only where it is used.
        let table = config.table_bytes(size);
        if table > options.budget / 4 * 3 {
            return Err(Obstacle::Table(table, options.budget));
        }
        config.budget = options.budget - table;
        let map = Map::new(size, config)?;
        let filler = Filler::spawn(&map, Arc::new(source))?;
        // Where files can share blocks, whoever may read the image can have its
        // blocks replaced (FIDEDUPERANGE).
        let shares = sharing::can_share(image)?;
        let mode = if options.read_only && (!shares || ablation::left_out("writelease")) {
            Mode::ReadOnly
        } else {
            Mode::Exclusive
        };
        let lease = Lease::new(Arc::clone(image), mode)?;
        if let Some(delay) = ablation::lease_delay() {
            lease.retry_after(delay);
        }
        let reason = match device::admit(image) {
            Ok(()) => (options.tell)(&Away::Unwanted),
            Err(refusal) => (options.tell)(&Away::Obstacle(&refusal.into())),
        };
        Ok(Core {
            image: Arc::clone(image),
            writable: flags & libc::O_ACCMODE != libc::O_RDONLY,
            device,
            map,
            filler,
            lease,
            live: AtomicBool::new(false),
            entries: AtomicU64::new(0),
            length: AtomicU64::new(size),
            abandoned: AtomicBool::new(false),
            leases: AtomicU64::new(0),
            turned: AtomicU64::new(sys::boot_time_ns()),
            situation: Mutex::new((false, reason)),
            moves: shares && !ablation::left_out("cow"),
            shares,
            swap,
            observer: Observer::default(),
            tell: options.tell,
            fixed: AtomicBool::new(false),
        })
    }

    /// The map.
    #[inline]
    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    /// The map's helper, for advice.
    pub(super) fn filler(&self) -> &Filler<Fiemap> {
        &self.filler
    }

    /// The device under the image.
    pub(super) fn device(&self) -> &BackingDevice {
        &self.device
    }

    /// What raw I/O takes. Writes are whole blocks of the device's own page
    /// cache, so that nothing there ever holds half of what was written.
    #[inline]
    pub(super) fn align(&self) -> RawAlign {
        let read = u64::from(self.device.logical_block());
        RawAlign {
            read,
            write: read.max(u64::from(self.device.page_block())),
        }
    }

    /// In swap-grade mode no request goes through the file system, over
    /// however many extents it reaches.
    #[inline]
    pub(super) fn room(&self) -> Room {
        if self.is_fixed() {
            Room::Part
        } else {
            Room::Whole
        }
    }

    /// A file write may have to put shared data elsewhere.
    pub(super) fn shares_extents(&self) -> bool {
        self.shares
    }

    /// File writes must hold their ranges. To be asked by an online reader of
    /// the map; who was told "no" is waited for by [`enter`](Self::enter).
    #[inline]
    pub(super) fn is_live(&self) -> bool {
        self.live.load(Ordering::SeqCst)
    }

    /// No write changes the map, so that none has to hold its range. Means
    /// something only while the path is live.
    #[inline]
    pub(super) fn is_fixed(&self) -> bool {
        self.fixed.load(Ordering::SeqCst)
    }

    /// No write has to hold its range. On file systems that share each does:
    /// what is set aside there cannot be looked at.
    #[inline]
    pub(super) fn needs_no_holds(&self) -> bool {
        self.is_fixed() && !self.moves
    }

    /// How often the path was entered.
    pub(super) fn entries(&self) -> u64 {
        self.entries.load(Ordering::SeqCst)
    }

    /// How often a lease was taken: tells a worker that has found one lost
    /// that there is another. It is counted before the map is enabled.
    #[inline]
    pub(super) fn leases(&self) -> u64 {
        self.leases.load(Ordering::SeqCst)
    }

    /// Nobody has cut the image, which is possible without breaking the lease:
    /// through an overlay, or by a client of an NFS server on this host.
    pub(super) fn is_whole(&self) -> bool {
        let length = self.length.load(Ordering::SeqCst);
        self.image.metadata().is_ok_and(|stat| stat.len() >= length)
    }

    /// The kernel says that the lease is ours and nobody asks for it.
    pub(super) fn lease_is_held(&self) -> bool {
        if ablation::unguarded() {
            return true;
        }
        self.lease.is_held()
    }

    /// Raw I/O may be in flight for ever, as far as anybody here learns: the
    /// lease is left to the kernel, which keeps it until that has ended.
    pub(super) fn abandon(&self) {
        self.lease.keep();
        self.abandoned.store(true, Ordering::SeqCst);
    }

    /// Becomes readable when somebody wants the image.
    pub(super) fn lease_event(&self) -> BorrowedFd<'_> {
        self.lease.event()
    }

    /// Resets [`lease_event`](Self::lease_event); whether the lease is gone or
    /// wanted.
    pub(super) fn lease_is_broken(&self) -> bool {
        if ablation::unguarded() {
            return false;
        }
        self.lease.broken()
    }

    /// When a refused or lost lease is worth asking for again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.lease.retry_at()
    }

    /// Where requests go, and why.
    pub(super) fn situation(&self) -> Situation {
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

    /// The path is not in use, for this reason. Called by the guard only.
    pub(super) fn stay_away(&self, away: &Away<'_>) {
        self.set_situation(false, &(self.tell)(away));
    }

    pub(super) fn is_in_use(&self) {
        self.set_situation(true, "the image is exclusively ours");
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
        self.observer.tell(Change::Situation(&self.situation()));
    }

    /// The guard turns. Called by the guard only.
    pub(super) fn turn(&self) {
        self.turned.store(sys::boot_time_ns(), Ordering::Relaxed);
    }

    /// How the guard is doing.
    pub(super) fn guard_state(&self) -> GuardState {
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
    pub(super) fn check_conditions(&self) -> Result<(), Obstacle> {
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
    pub(super) fn sync_reach(&self) -> io::Result<SyncReach> {
        if ablation::left_out("recheck") {
            return Ok(SyncReach::believed());
        }
        SyncReach::of(&self.image)
    }
}
