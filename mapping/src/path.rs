//! The way past the file system: requests on a file are planned with the map of its extents and go straight to the
//! block device under it, as long as a lease proves that nobody else uses the file.
//!
//! [`DiskPath::open`] starts two threads: the guard enters the path and leaves it, the lookout looks at what the guard
//! has no event for. Each thread that serves requests has a [`Worker`]. The argument why this destroys nobody's data,
//! and what was tried to break it, is docs/disk-path.md of the repository.
//!
//! What is guaranteed: a plan names places of the disk that are the file's, and stay so until the plan is dropped,
//! given that its I/O is submitted right after the worker was asked and ends within
//! [`SHORTEST_BREAK`] less a second.

use std::fs::File;
use std::io;
use std::sync::Arc;

use self::core::Core;
use self::guard::Guard;
use crate::device::{BackingDevice, Proof, Refusal};
use crate::{Fiemap, Filler, Map, Stats};

pub use self::agreement::Agreement;
pub use self::away::{Away, Obstacle};
pub use self::change::Change;
pub use self::claim::Claim;
pub use self::direct::Buffer;
pub use self::length::HeldEnd;
pub use self::options::{Options, Swap};
pub use self::permit::Permit;
pub use self::planner::{MAX_PIECES, Piece, Plan, Way};
pub use self::situation::{GuardState, SHORTEST_BREAK, Situation};
pub use self::survey::Survey;
pub use self::worker::{Reserved, Worker};

#[doc(hidden)]
#[cfg(feature = "test-switches")]
pub use self::ablation::{Ablation, leave_out};

mod ablation;
mod agreement;
mod away;
mod change;
mod claim;
mod close_watch;
mod core;
mod direct;
mod entry;
mod guard;
mod length;
mod lookout;
mod options;
mod permit;
mod planner;
mod situation;
pub mod survey;
mod worker;

/// The disk path of one open file. Shared by all threads that serve it; dropping it leaves the path.
#[derive(Debug)]
pub struct DiskPath {
    core: Arc<Core>,
    guard: Guard,
}

/// The path is not used as long as there is one of these.
#[derive(Debug)]
pub struct Aside<'a>(&'a Guard);

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.0.come_back();
    }
}

impl DiskPath {
    /// Finds the device under a file, and prepares an empty map. The path is not wanted yet, so that nothing is asked
    /// of the file.
    ///
    /// The file was opened once, with `O_DIRECT`, and is opened by nobody else in this process: a second open takes
    /// the lease away. Descriptors that are duplicated do not. Of signals only
    /// [`lease::signal`](crate::lease::signal) is used, and that by a thread of its own.
    ///
    /// # Errors
    /// The path is impossible for this file.
    pub fn open(file: &Arc<File>, options: &Options) -> Result<DiskPath, Obstacle> {
        DiskPath::on_device(file, BackingDevice::find(file)?, options)
    }

    /// As [`open`](Self::open), on the device that was [found](BackingDevice::find) under the file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn on_device(
        file: &Arc<File>,
        device: BackingDevice,
        options: &Options,
    ) -> Result<DiskPath, Obstacle> {
        let core = Arc::new(Core::new(file, device, options)?);
        let guard = Guard::spawn(Arc::clone(&core))?;
        Ok(DiskPath { core, guard })
    }

    /// Has changes told to `observer` from now on: by the guard and the lookout, which wait for it. So it must wait for
    /// nobody. To be called once.
    pub fn observe(&self, observer: impl Fn(Change<'_>) + Send + Sync + 'static) {
        self.core.observer.set(observer);
    }

    /// Uses the path from now on, whenever that is possible. Returns at once.
    pub fn want(&self) {
        self.guard.want();
    }

    /// Leaves the path, and returns when it was left: all raw I/O has ended, and others may have the file.
    pub fn unwant(&self) {
        self.guard.unwant();
    }

    /// Leaves the path and stays away from it until it is allowed again; returns when it was left.
    pub fn forbid(&self) {
        self.guard.forbid();
    }

    /// The path may be used, which is so from the start.
    pub fn allow(&self) {
        self.guard.allow();
    }

    /// Leaves the path until what this returns is dropped; it was left when this returns. For whoever shares the file's
    /// blocks with another file (`FICLONE`): what the map knows of them is not so any more, and the lease, which tells
    /// of others who do that, does not tell of those who have the same descriptor.
    #[must_use]
    pub fn step_aside(&self) -> Aside<'_> {
        self.guard.step_aside();
        Aside(&self.guard)
    }

    /// As [`allow`](Self::allow), and tries the path now. If it is wanted, it stays in use; if not, it is left again.
    ///
    /// # Errors
    /// What is in the way. If the path is wanted, it is tried again later.
    pub fn try_now(&self) -> Result<(), Obstacle> {
        self.guard.try_now()
    }

    /// A thread's use of the path.
    ///
    /// # Errors
    /// There are [`MAX_READERS`](crate::MAX_READERS) of the map, or no descriptor is left.
    pub fn worker(&self) -> io::Result<Worker> {
        Worker::new(Arc::clone(&self.core))
    }

    /// All writes that have ended are on the medium when this returns: what went by the file and what went by the disk.
    ///
    /// # Errors
    /// What the host says. Writes that had ended may be lost then, and it does no good to ask again.
    pub fn sync(&self) -> io::Result<()> {
        self.core.image.sync_data()?;
        self.core.device().file().sync_data()
    }

    /// The map.
    pub fn map(&self) -> &Map {
        self.core.map()
    }

    /// What loads the map: advice goes here.
    pub fn filler(&self) -> &Filler<Fiemap> {
        self.core.filler()
    }

    /// The device under the file.
    pub fn device(&self) -> &BackingDevice {
        self.core.device()
    }

    /// Where requests go, and why.
    pub fn situation(&self) -> Situation {
        self.core.situation()
    }

    /// The map's counters.
    pub fn stats(&self) -> Stats {
        self.core.map().stats()
    }

    /// How the guard is doing.
    pub fn guard_state(&self) -> GuardState {
        self.core.guard_state()
    }

    /// The path is in use and every extent is written and the file's own, so that no write changes the map. So with
    /// [`Options::swap`] only.
    pub fn is_fixed(&self) -> bool {
        self.core.is_live() && self.core.is_fixed()
    }

    /// The kernel says that the lease is ours and nobody asks for it.
    pub fn lease_is_held(&self) -> bool {
        self.core.lease_is_held()
    }

    /// Compares all that the map has loaded with what FIEMAP says, while the path is in use; requests may go on. Takes
    /// as long as reading all extents does.
    ///
    /// # Errors
    /// What FIEMAP says, or too many readers of the map.
    pub fn agreement(&self) -> io::Result<Agreement> {
        self.core.agreement()
    }

    /// Compares some data by the file with the same by the device, while the path is in use; requests may go on.
    ///
    /// # Errors
    /// They differ, or cannot be read.
    pub fn compare(&self) -> Result<Proof, Refusal> {
        self.core.compare()
    }

    /// To be called before the length of the file is changed from or to `from` bytes, whichever is less: takes what
    /// lies behind away from the map, and waits until nothing is in flight there that was planned before. The map is
    /// told the new length by [`set_length`](Self::set_length).
    ///
    /// # Errors
    /// Requests in flight do not end within 30 s.
    pub fn hold_end(&self, from: u64) -> io::Result<HeldEnd> {
        self.core.hold_end(from)
    }

    /// The file has `bytes` now, and its end was [held](Self::hold_end) while that changed.
    ///
    /// # Errors
    /// The map cannot have that size.
    pub fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.core.set_length(bytes)
    }
}
