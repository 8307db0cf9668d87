//! Guest memory as registered buffers (`--pin-guest-memory`): registered once
//! for all workers, on a thread of its own, because the kernel faults in and
//! pins every page, and cloned into each worker's ring.
//!
//! Not to be combined with anything that takes pages away from the guest
//! while it runs (ballooning, free page reporting, virtio-mem): the kernel
//! would go on using the pages it has pinned, and what is read into them is
//! lost.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use io_uring::IoUring;
use vhost_backend::HostRegion;

use crate::engine::{Engine, Slot};
use crate::host::headroom::Headroom;
use crate::host::sandbox::{self, Kind};
use crate::host::sys;
use crate::options::size;

/// Longest buffer that can be registered.
const LONGEST: usize = 1 << 30;
/// Pins of a process that has just ended count against the limit for a moment.
const ATTEMPTS: u32 = 20;
const AGAIN: Duration = Duration::from_millis(100);

/// How much is faulted in at a time.
const PART: usize = 64 << 20;
/// What is left to the host and to the control groups that this process is in.
const KEPT: u64 = 256 << 20;

/// What the workers want registered.
#[derive(Default)]
struct Wanted {
    /// Raised with each change.
    generation: u64,
    regions: Vec<HostRegion>,
    /// Set when something was registered; one for each worker.
    events: Vec<Arc<OwnedFd>>,
    stop: bool,
}

/// A ring that is only there to hold buffers.
struct Holder {
    ring: IoUring,
    /// Of the regions that are registered; 0 for none.
    generation: u64,
    slots: Vec<Slot>,
    /// Why the last try failed.
    failure: Option<String>,
    headroom: Headroom,
}

/// How far pinning has come, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PinState {
    /// This many bytes are pinned.
    Pinned(u64),
    /// It is under way.
    Working,
    /// It was refused; plain buffers are used.
    Refused(String),
}

/// Registers the guest's memory for all workers.
pub(crate) struct Pinner {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    holder: Mutex<Holder>,
}

impl std::fmt::Debug for Pinner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinner").finish_non_exhaustive()
    }
}

impl Pinner {
    /// Starts the thread, which lives as long as the process.
    ///
    /// # Errors
    /// The kernel has no io_uring, or no thread.
    pub(crate) fn spawn() -> io::Result<Arc<Pinner>> {
        let holder = Holder {
            ring: IoUring::new(1)?,
            generation: 0,
            slots: Vec::new(),
            failure: None,
            headroom: Headroom::find()?,
        };
        let pinner = Arc::new(Pinner {
            wanted: Mutex::default(),
            changed: Condvar::new(),
            holder: Mutex::new(holder),
        });
        let own = Arc::clone(&pinner);
        std::thread::Builder::new()
            .name("pinner".to_owned())
            .spawn(move || {
                sandbox::enter(Kind::Pinner);
                own.run();
            })?;
        Ok(pinner)
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        lock(&self.wanted).stop = true;
        self.changed.notify_all();
    }

    /// How far it has come.
    pub(crate) fn state(&self) -> PinState {
        let wanted = lock(&self.wanted).generation;
        let holder = match self.holder.try_lock() {
            Ok(holder) => holder,
            Err(TryLockError::WouldBlock) => return PinState::Working,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        if let Some(failure) = &holder.failure {
            return PinState::Refused(failure.clone());
        }
        if holder.generation != wanted {
            return PinState::Working;
        }
        let bytes = holder.slots.iter().map(|slot| slot.len() as u64).sum();
        PinState::Pinned(bytes)
    }

    /// A worker's part of it.
    ///
    /// # Errors
    /// No descriptor.
    pub(crate) fn worker(self: &Arc<Self>) -> io::Result<Pins> {
        let event = Arc::new(sys::event()?);
        lock(&self.wanted).events.push(Arc::clone(&event));
        Ok(Pins {
            pinner: Arc::clone(self),
            event,
            generation: 0,
            cloned: true,
        })
    }

    fn want(&self, regions: &[HostRegion]) -> u64 {
        let mut wanted = lock(&self.wanted);
        // All workers want the same, one after the other.
        if wanted.regions != regions {
            wanted.regions = regions.to_vec();
            wanted.generation += 1;
            self.changed.notify_all();
        }
        wanted.generation
    }

    fn run(&self) {
        let mut done = 0;
        loop {
            let (generation, regions) = {
                let mut wanted = lock(&self.wanted);
                while wanted.generation == done && !wanted.stop {
                    wanted = self
                        .changed
                        .wait(wanted)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if wanted.stop {
                    return;
                }
                (wanted.generation, wanted.regions.clone())
            };
            done = generation;
            self.register(generation, &regions);
            for event in &lock(&self.wanted).events {
                sys::event_set(&**event);
            }
        }
    }

    fn register(&self, generation: u64, regions: &[HostRegion]) {
        let mut holder = lock(&self.holder);
        if !holder.slots.is_empty() {
            // An error means that there are none.
            let _ = holder.ring.submitter().unregister_buffers();
        }
        holder.slots.clear();
        holder.generation = generation;
        holder.failure = None;
        let slots: Vec<Slot> = regions.iter().flat_map(slots_of).collect();
        if slots.is_empty() {
            return;
        }
        let entries: Vec<libc::iovec> = slots.iter().map(Slot::entry).collect();
        if let Err(failure) = self.fault_in(&entries, generation, &mut holder.headroom) {
            holder.refuse(failure);
            return;
        }
        let mut attempt = 0;
        let result = loop {
            // SAFETY: the kernel takes hold of the pages that are mapped there
            // now. If they are not the guest's any more, they are never used:
            // the workers that wanted them have gone on to another generation.
            let result = unsafe { holder.ring.submitter().register_buffers(&entries) };
            attempt += 1;
            match result {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && attempt < ATTEMPTS => {
                    std::thread::sleep(AGAIN);
                }
                result => break result,
            }
        };
        match result {
            Ok(()) => {
                let bytes: u64 = slots.iter().map(|slot| slot.len() as u64).sum();
                log::info!("{} of guest memory are pinned", size::display(bytes));
                holder.slots = slots;
            }
            // It has gone meanwhile, and something else is wanted.
            Err(_) if lock(&self.wanted).generation != generation => {}
            Err(error) => {
                let failure = match error.raw_os_error() {
                    Some(libc::ENOMEM) => format!(
                        "{error}: raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) above the guest's memory"
                    ),
                    _ => error.to_string(),
                };
                holder.refuse(failure);
            }
        }
    }

    /// Takes the memory part by part, as long as there is some: how much a
    /// sparse file comes to is its maker's choice, but not what this process
    /// takes from the host for it.
    fn fault_in(
        &self,
        entries: &[libc::iovec],
        generation: u64,
        headroom: &mut Headroom,
    ) -> Result<(), String> {
        let parts = entries.iter().flat_map(|entry| {
            let (base, len) = (entry.iov_base.cast::<u8>(), entry.iov_len);
            let part = move |at: usize| (base.wrapping_add(at), PART.min(len.saturating_sub(at)));
            (0..len).step_by(PART).map(part)
        });
        let mut taken = 0_u64;
        for (base, len) in parts {
            let left = headroom
                .bytes()
                .map_err(|error| format!("/proc/meminfo: {error}"))?;
            if left < KEPT.saturating_add(len as u64) {
                return Err(format!(
                    "{} of it are in memory, and the host or a control group of this process has no more than {} left: give the guest memory that is allocated (share=on,prealloc=on), or leave the option out",
                    size::display(taken),
                    size::display(left)
                ));
            }
            // SAFETY: populating changes no content. Where the region has gone
            // meanwhile, what is mapped there is this process' own, or nothing,
            // which is an error.
            let result = unsafe { libc::madvise(base.cast(), len, libc::MADV_POPULATE_WRITE) };
            // Kernels before 5.14 do not know it; what is wrong with the pages is
            // said when they are registered.
            if result != 0 || lock(&self.wanted).generation != generation {
                return Ok(());
            }
            taken = taken.saturating_add(len as u64);
        }
        Ok(())
    }
}

impl Holder {
    /// Plain buffers are used.
    fn refuse(&mut self, failure: String) {
        log::error!("--pin-guest-memory: guest memory cannot be pinned: {failure}");
        self.failure = Some(failure);
    }
}

fn slots_of(region: &HostRegion) -> impl Iterator<Item = Slot> {
    let (base, len) = (region.base, region.len);
    (0..len)
        .step_by(LONGEST)
        .map(move |at| Slot::new(base + at, (len - at).min(LONGEST)))
}

/// One worker's pinned memory.
#[derive(Debug)]
pub(crate) struct Pins {
    pinner: Arc<Pinner>,
    event: Arc<OwnedFd>,
    /// Of what this worker wants.
    generation: u64,
    /// It has that, or knows that it cannot have it.
    cloned: bool,
}

impl Pins {
    /// Signalled when there may be something to [`take`](Self::take).
    pub(crate) fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// The guest's memory is this from now on.
    pub(crate) fn want(&mut self, regions: &[HostRegion], engine: &mut impl Engine) {
        engine.drop_buffers();
        self.generation = self.pinner.want(regions);
        self.cloned = false;
        self.take(engine);
    }

    /// Takes over what was registered, if it is what is wanted.
    pub(crate) fn take(&mut self, engine: &mut impl Engine) {
        if self.cloned {
            return;
        }
        // Whoever registers has it for long, and will tell.
        let Ok(holder) = self.pinner.holder.try_lock() else {
            return;
        };
        if holder.generation != self.generation {
            return;
        }
        self.cloned = true;
        if holder.slots.is_empty() {
            return;
        }
        let from = holder.ring.as_raw_fd();
        if let Err(error) = engine.clone_buffers(from, &holder.slots) {
            log::warn!("a worker cannot share the pinned guest memory: {error}");
        }
    }

    /// There is nothing to be taken.
    pub(crate) fn is_settled(&self) -> bool {
        self.cloned
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
