//! Entering the disk path and leaving it: what has to be true, in which order
//! it is made so, and how it ends. Called by the guard only.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::device::{Proof, Refusal};
use crate::{ExtentSource, Fence};

use super::ablation;
use super::away::{Away, Obstacle};
use super::change::Change;
use super::core::Core;
use super::options::Swap;
use super::survey::{self, Survey};

/// How long a range that is being changed is waited for.
const HOLDING: Duration = Duration::from_millis(200);

/// How often it is looked after raw I/O that does not end.
const WAITING: Duration = Duration::from_secs(1);

/// How often the page cache is emptied before it counts as somebody's, and
/// data are compared before they count as different.
const EMPTYING: usize = 20;

impl Core {
    /// Takes the lease, proves that the device holds what the file says, and
    /// lets the map be loaded.
    ///
    /// Nothing that may wait for others is done once the map is enabled: the
    /// caller looks at the lease next.
    ///
    /// # Errors
    /// Why it was not entered; everything is as before then.
    pub(super) fn enter(&self) -> Result<(), Obstacle> {
        let result = self.try_enter();
        if let Err(obstacle) = &result {
            if matches!(obstacle, Obstacle::Asked) && self.situation().on_disk {
                self.observer.tell(Change::LeaseLost);
            }
            self.live.store(false, Ordering::SeqCst);
            self.lease.release();
            self.stay_away(&Away::Obstacle(obstacle));
        }
        result
    }

    fn try_enter(&self) -> Result<(), Obstacle> {
        if self.abandoned.load(Ordering::SeqCst) {
            return Err(Obstacle::Abandoned);
        }
        self.check_conditions()?;
        if ablation::unguarded() {
            self.live.store(true, Ordering::SeqCst);
            self.map.enable();
            self.announce();
            return Ok(());
        }
        self.lease.take()?;
        self.leases.fetch_add(1, Ordering::SeqCst);
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
        self.announce();
        if !self.lease.is_held() {
            return Err(Obstacle::Asked);
        }
        self.map.enable();
        match self.swap {
            Some(grade) => self.pin(grade),
            None => Ok(()),
        }
    }

    fn announce(&self) {
        self.turn();
        self.entries.fetch_add(1, Ordering::SeqCst);
        self.observer.tell(Change::LeaseTaken);
        self.is_in_use();
    }

    /// Every extent is written and the image's own, and stays where it is.
    /// What others came to share while we were away, as a backup that copied
    /// by reference, is unshared, and what is left of it is given back.
    fn fix_extents(&self) -> Result<(), Obstacle> {
        let source = self.filler.source();
        survey::unshare(source, &mut || {
            self.turn();
            self.lease.is_held()
        })?;
        let survey = Survey::of(source)?;
        if survey.unfit() > 0 {
            return Err(Obstacle::Unfit(survey));
        }
        Ok(())
    }

    /// Loads the whole map and keeps it. Workers use what there is of it
    /// meanwhile.
    fn pin(&self, grade: Swap) -> Result<(), Obstacle> {
        if ablation::left_out("pin") {
            return Ok(());
        }
        let result = self.filler.pin_with(0..self.map.size(), &mut |_| {
            self.turn();
            if self.lease.is_held() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        match result {
            Ok(()) => self.check_agreement(),
            Err(crate::Error::Stopped) => {
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

    /// The pinned map is what the file system says now, all of it.
    fn check_agreement(&self) -> Result<(), Obstacle> {
        match self.agreement() {
            Ok(agreement) => match agreement.differs {
                Some(offset) => {
                    self.stop_raw();
                    Err(Obstacle::Differs(offset))
                }
                None => Ok(()),
            },
            Err(error) => {
                self.stop_raw();
                Err(error.into())
            }
        }
    }

    /// Proves that the device holds what the file says. Pages that a reader
    /// who has just left brought into the page cache may take a moment to go.
    fn prove(&self) -> Result<(), Obstacle> {
        let mut attempts = 0;
        loop {
            self.turn();
            let proof = if self.needs_no_holds() {
                self.compare()
            } else {
                self.device.prove_while(&self.image, |range| {
                    self.map.hold_within(&range, HOLDING).ok()
                })
            };
            match proof {
                Ok(_) => return Ok(()),
                Err(Refusal::Cached(_)) if attempts < EMPTYING && self.lease.is_held() => {
                    attempts += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(refusal) => {
                    if matches!(refusal, Refusal::Sync(_)) {
                        self.observer.tell(Change::SyncFailed);
                    }
                    return Err(refusal.into());
                }
            }
        }
    }

    /// Compares data by the file with data by the device, while writes may go
    /// on without holding their ranges. One that comes between the two looks
    /// makes them differ, so it looks again.
    ///
    /// # Errors
    /// They differ each time, or cannot be read.
    pub(super) fn compare(&self) -> Result<Proof, Refusal> {
        for _ in 1..EMPTYING {
            match self.device.prove(&self.image) {
                Err(Refusal::Mismatch { .. }) => std::thread::sleep(Duration::from_millis(5)),
                result => return result,
            }
        }
        self.device.prove(&self.image)
    }

    /// Waits for a fence as long as the lease is held.
    fn wait(&self, fence: &Fence) -> bool {
        while !fence.wait(Duration::from_millis(200)) {
            self.turn();
            if !self.lease.is_held() {
                return false;
            }
        }
        true
    }

    /// Stops raw I/O, waits until all of it has ended, and gives the lease
    /// back.
    pub(super) fn leave(&self, away: &Away<'_>) {
        let start = Instant::now();
        self.stop_raw();
        self.live.store(false, Ordering::SeqCst);
        self.lease.release();
        log::debug!("left the disk path within {:?}", start.elapsed());
        self.stay_away(away);
    }

    /// From now on no raw I/O is planned; what is in flight is not waited for.
    /// May be called by anybody, at any time: the path is left by its guard.
    pub(super) fn suspend(&self) {
        let _in_flight = self.map.disable();
    }

    /// Stops raw I/O and waits until all of it has ended.
    fn stop_raw(&self) {
        let fence = self.map.disable();
        let mut told = false;
        while !fence.wait(WAITING) {
            self.turn();
            if self.abandoned.load(Ordering::SeqCst) {
                log::warn!(
                    "raw I/O is in flight at the end: the image stays leased until it has ended"
                );
                return;
            }
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
