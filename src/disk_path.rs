//! The way past the file system: the map of the image's extents, the device
//! under it, and the lease that makes using them safe.
//!
//! The path is *live* while file writes hold their ranges of the map, and *in
//! use* while the map is enabled, which it is only under the lease. A thread
//! of its own, the [guard](crate::guard), moves it between these states;
//! workers only look extents up.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mapping::device::{BackingDevice, Proof, Refusal};
use mapping::lease::{Lease, LeaseError, Mode};
use mapping::{Config, ExtentSource, Fence, Fiemap, Filler, Hold, Map, Stats};

use crate::config::Swap;
use crate::engine::manner::Manner;
use crate::hardening;
use crate::planner::RawAlign;
use crate::survey::{self, Survey};
use crate::sys;

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
    /// What is not written, or not the image's own, cannot be swapped on.
    #[error("part of the image is not swap-grade ({0})")]
    Unfit(Survey),
    /// Raw I/O on this device would be slower than the file.
    #[error(
        "the device takes no I/O without waiting (no NOWAIT) and is too slow to be waited for ({0} us a read)"
    )]
    Punts(u128),
}

/// Where requests go, and why, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// The disk path is in use.
    pub on_disk: bool,
    /// One sentence.
    pub reason: String,
    /// How often the disk path was entered.
    pub entries: u64,
}

/// The disk path of one image.
#[derive(Debug)]
pub struct DiskPath {
    image: Arc<File>,
    device: BackingDevice,
    map: Map,
    filler: Filler<Fiemap>,
    lease: Lease,
    /// File writes hold their ranges.
    live: AtomicBool,
    entries: AtomicU64,
    situation: Mutex<(bool, String)>,
    /// How raw I/O is done.
    manner: Manner,
    /// The file system lets files share extents.
    shares: bool,
    /// Swap-grade mode: the whole map is pinned while the path is in use.
    swap: Option<Swap>,
    /// Every extent is written and the image's own, so that no write of ours
    /// changes the map. Believed only while the path is live.
    fixed: AtomicBool,
    /// For the negative control of tests: no lease is taken, and the path is
    /// never left, whatever others do to the image.
    #[cfg(debug_assertions)]
    unguarded: bool,
}

/// How long a range that is being changed is waited for.
const HOLDING: Duration = Duration::from_millis(200);

/// How often the page cache is emptied before it counts as somebody's, and
/// data are compared before they count as different.
const EMPTYING: usize = 20;

/// `XFS_SUPER_MAGIC`
const XFS: i64 = 0x5846_5342;

impl DiskPath {
    /// Finds the device under the image and prepares an empty map; the path is
    /// not in use. `budget` bytes of extents are kept at most, and besides
    /// `pin_reserve` bytes of pinned ones. The device is polled for the ends of
    /// raw I/O only if it `may_poll`.
    ///
    /// # Errors
    /// The disk path is impossible for this image.
    pub fn new(
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
        let map = Map::new(size, config)?;
        map.disable();
        let filler = Filler::spawn(&map, Arc::new(source))?;
        let mode = if read_only {
            Mode::ReadOnly
        } else {
            Mode::Exclusive
        };
        let lease = Lease::new(Arc::clone(image), mode)?;
        Ok(DiskPath {
            image: Arc::clone(image),
            device,
            map,
            filler,
            lease,
            live: AtomicBool::new(false),
            entries: AtomicU64::new(0),
            situation: Mutex::new((false, "no guest uses the disk".to_owned())),
            manner,
            shares: sys::filesystem_type(image)? == XFS,
            swap,
            fixed: AtomicBool::new(false),
            #[cfg(debug_assertions)]
            unguarded: std::env::var_os("EXTENTD_TEST_UNGUARDED").is_some(),
        })
    }

    /// The map.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// The map's helper, for advice.
    pub fn filler(&self) -> &Filler<Fiemap> {
        &self.filler
    }

    /// The device under the image.
    pub fn device(&self) -> &BackingDevice {
        &self.device
    }

    /// What raw I/O takes. Writes are whole blocks of the device's own page
    /// cache, so that nothing there ever holds half of what was written.
    pub fn align(&self) -> RawAlign {
        let read = u64::from(self.device.logical_block());
        RawAlign {
            read,
            write: read.max(u64::from(self.device.page_block())),
        }
    }

    /// A file write may have to put shared data elsewhere.
    pub fn shares_extents(&self) -> bool {
        self.shares
    }

    /// How raw I/O is best done.
    pub fn manner(&self) -> Manner {
        self.manner
    }

    /// File writes must hold their ranges. To be asked by an online reader of
    /// the map; who was told "no" is waited for by [`enter`](Self::enter).
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::SeqCst)
    }

    /// No write changes the map, so that none has to hold its range. Means
    /// something only while the path is live.
    pub fn is_fixed(&self) -> bool {
        self.fixed.load(Ordering::SeqCst)
    }

    /// How often the path was entered: tells a worker that lost its trust in
    /// the lease that there is a new one.
    pub fn entries(&self) -> u64 {
        self.entries.load(Ordering::SeqCst)
    }

    /// The kernel says that the lease is ours and nobody asks for it.
    pub fn lease_is_held(&self) -> bool {
        self.lease.is_held()
    }

    /// Becomes readable when somebody wants the image.
    pub fn lease_event(&self) -> BorrowedFd<'_> {
        self.lease.event()
    }

    /// Resets [`lease_event`](Self::lease_event); whether the lease is gone or
    /// wanted.
    pub fn lease_is_broken(&self) -> bool {
        #[cfg(debug_assertions)]
        if self.unguarded {
            return false;
        }
        self.lease.broken()
    }

    /// When a refused or lost lease is worth asking for again.
    pub fn retry_at(&self) -> Option<Instant> {
        self.lease.retry_at()
    }

    /// Where requests go, and why.
    pub fn situation(&self) -> Situation {
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
    pub fn stats(&self) -> Stats {
        self.map.stats()
    }

    /// The path is not in use, for this reason. Called by the guard only.
    pub fn stay_away(&self, reason: &str) {
        self.set_situation(false, reason);
    }

    fn set_situation(&self, on_disk: bool, reason: &str) {
        let mut state = self
            .situation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *state == (on_disk, reason.to_owned()) {
            return;
        }
        let way = if on_disk { "disk" } else { "file" };
        log::info!("requests go by the {way}: {reason}");
        *state = (on_disk, reason.to_owned());
    }

    /// Takes the lease, proves that the device holds what the file says, and
    /// lets the map be loaded. Called by the guard only.
    ///
    /// # Errors
    /// Why it was not entered; everything is as before then.
    pub fn enter(&self) -> Result<(), Obstacle> {
        let result = self.try_enter();
        match &result {
            Ok(()) => {
                self.entries.fetch_add(1, Ordering::SeqCst);
                self.set_situation(true, "the image is exclusively ours");
            }
            Err(obstacle) => {
                self.live.store(false, Ordering::SeqCst);
                self.lease.release();
                self.set_situation(false, &obstacle.to_string());
            }
        }
        result
    }

    fn try_enter(&self) -> Result<(), Obstacle> {
        mapping::device::admit(&self.image)?;
        #[cfg(debug_assertions)]
        if self.unguarded {
            self.map.enable();
            self.live.store(true, Ordering::SeqCst);
            return Ok(());
        }
        self.lease.take()?;
        if self.swap.is_some() {
            // Nobody but us changes extents from here on, and we only write.
            let fixed = self.fix_extents();
            self.fixed.store(fixed.is_ok(), Ordering::SeqCst);
            if self.swap == Some(Swap::Demanded) {
                fixed?;
            }
        }
        self.live.store(true, Ordering::SeqCst);
        // File writes that were begun without holding their ranges.
        if !self.wait(&self.map.barrier()) {
            return Err(Obstacle::Asked);
        }
        self.prove()?;
        if !self.lease.is_held() {
            return Err(Obstacle::Asked);
        }
        self.map.enable();
        match self.swap {
            Some(grade) => self.pin(grade),
            None => Ok(()),
        }
    }

    /// Every extent is written and the image's own. What others came to share
    /// while we were away, as a backup that copied by reference, is unshared.
    fn fix_extents(&self) -> Result<(), Obstacle> {
        let source = self.filler.source();
        let mut survey = Survey::of(source)?;
        if survey.shared > 0 {
            survey::unshare(source)?;
            survey = Survey::of(source)?;
        }
        if survey.unfit() > 0 {
            return Err(Obstacle::Unfit(survey));
        }
        Ok(())
    }

    /// Keeps a small range as it is, once no request is changing it; `None` if
    /// that takes long.
    fn hold(&self, range: Range<u64>) -> Option<Hold> {
        let until = Instant::now() + HOLDING;
        loop {
            match self.map.hold(range.clone()) {
                Ok(hold) => return Some(hold),
                Err(mapping::Error::Overlap(_)) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                Err(_) => return None,
            }
        }
    }

    /// Loads the whole map and keeps it. Workers use what there is of it
    /// meanwhile.
    fn pin(&self, grade: Swap) -> Result<(), Obstacle> {
        if hardening::left_out("pin") {
            return Ok(());
        }
        let result = self.filler.pin(0..self.map.size(), &mut |_| {
            if self.lease.is_held() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        match result {
            Ok(()) => Ok(()),
            Err(mapping::Error::Stopped) => {
                self.stop_raw();
                Err(Obstacle::Asked)
            }
            Err(error) if grade == Swap::Demanded => {
                self.stop_raw();
                Err(error.into())
            }
            Err(error) => {
                log::warn!("not swap-grade: the map is not pinned: {error}");
                Ok(())
            }
        }
    }

    /// Proves that the device holds what the file says. Pages that a reader
    /// who has just left brought into the page cache may take a moment to go.
    fn prove(&self) -> Result<(), Obstacle> {
        let mut attempts = 0;
        loop {
            let proof = if self.is_fixed() {
                self.compare()
            } else {
                self.device
                    .prove_while(&self.image, |range| self.hold(range))
            };
            match proof {
                Ok(_) => return Ok(()),
                Err(Refusal::Cached(_)) if attempts < EMPTYING && self.lease.is_held() => {
                    attempts += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Compares data by the file with data by the device, while writes may go
    /// on without holding their ranges. One that comes between the two looks
    /// makes them differ, so it looks again.
    ///
    /// # Errors
    /// They differ each time, or cannot be read.
    pub fn compare(&self) -> Result<Proof, Refusal> {
        for _ in 1..EMPTYING {
            match self.device.prove(&self.image) {
                Err(Refusal::Mismatch { .. }) => std::thread::sleep(Duration::from_millis(5)),
                result => return result,
            }
        }
        self.device.prove(&self.image)
    }

    /// The image is about to shrink to `bytes`, or has grown to them. Returns
    /// when no raw I/O is in flight that was planned before.
    ///
    /// # Errors
    /// The map cannot have that size.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let fence = self.map.resize(bytes).map_err(io::Error::other)?;
        while !fence.wait(Duration::from_secs(1)) {
            log::debug!("a resize waits for raw I/O to end");
        }
        Ok(())
    }

    /// Waits for a fence as long as the lease is held.
    fn wait(&self, fence: &Fence) -> bool {
        while !fence.wait(Duration::from_millis(200)) {
            if !self.lease.is_held() {
                return false;
            }
        }
        true
    }

    /// Stops raw I/O, waits until all of it has ended, and gives the lease
    /// back. Called by the guard only.
    pub fn leave(&self, reason: &str) {
        let start = Instant::now();
        self.stop_raw();
        self.live.store(false, Ordering::SeqCst);
        self.lease.release();
        log::debug!("left the disk path within {:?}", start.elapsed());
        self.set_situation(false, reason);
    }

    /// Stops raw I/O and waits until all of it has ended.
    fn stop_raw(&self) {
        let fence = self.map.disable();
        let mut told = false;
        while !fence.wait(Duration::from_secs(1)) {
            if !std::mem::replace(&mut told, true) {
                log::warn!("somebody waits for the image, which waits for raw I/O to end");
            }
        }
        // Whoever opens the image next reads what the guest has written, not
        // what the page cache remembers.
        match self.filler.source().settle(0..self.map.size().max(1)) {
            Ok(true) => {}
            Ok(false) => log::warn!("pages of the image stay in the page cache"),
            Err(error) => log::warn!("the image's page cache cannot be dropped: {error}"),
        }
    }
}
