//! What the front-end's requests do to the device: the session's state, and
//! orders to the workers.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use pulse::Doing;
use vmm_sys_util::eventfd::EventFd;

use crate::command::{Answer, Command, Mode, RingAddresses};
use crate::device::{Device, DiskInfo};
use crate::error::Refusal;
use crate::memory::Memory;
use crate::memory::dirty::Log;
use crate::memory::inflight::Inflight;
use crate::options::Options;
use crate::session::admission::Terms;
use crate::session::config_space::{self, ConfigSpace};
use crate::session::features::{self, Negotiated};
use crate::session::image::Image;
use crate::session::vring::{self, Kick, Vring};
use crate::status::SessionStatus;
use crate::sys;
use crate::worker::workers::Workers;

mod areas;
mod kept;
mod leaving;
mod state;

pub(crate) use areas::Area;
use kept::Signals;
use state::Transfer;

/// Most entries of all rings of a front-end together: as many as 256 rings of
/// the size that QEMU allows have. Each costs some bytes here.
pub(crate) const MAX_ENTRIES: usize = 256 * 1024;

/// The device as one front-end after the other has it.
pub(crate) struct Handler<D: Device> {
    device: Arc<D>,
    workers: Workers,
    mode: Arc<Mode>,
    info: DiskInfo,
    queues: u16,
    queue_size: u16,
    negotiated: Negotiated,
    /// The `writeback` byte as it was last written.
    writeback: bool,
    memory: Arc<Memory>,
    vrings: Vec<Vring>,
    image: Image,
    /// The record of requests in flight, if the front-end keeps one.
    inflight: Option<Inflight>,
    /// The state of the disk on its way to the front-end or from it.
    transfer: Transfer,
    /// Why one was refused, until that is said.
    state_refusal: Option<Refusal>,
    /// The socket of the front-end that is served.
    pub(crate) front_end: Option<UnixStream>,
    /// Dirty pages are logged there, once a feature or a ring asks for it.
    log: Option<Arc<Log>>,
    /// Where rings signal their driver, if that is to be kept.
    signals: Vec<Signals>,
    /// The front-end is let go of; whether that is because the process stops.
    leaves: Option<bool>,
}

impl<D: Device> Handler<D> {
    pub(crate) fn new(
        device: Arc<D>,
        workers: Workers,
        mode: Arc<Mode>,
        options: &Options,
    ) -> Self {
        Self {
            info: device.info(),
            device,
            workers,
            mode,
            queues: options.queues,
            queue_size: options.queue_size,
            negotiated: Negotiated::default(),
            writeback: true,
            memory: Arc::default(),
            vrings: (0..options.queues).map(|_| Vring::default()).collect(),
            image: Image::default(),
            inflight: None,
            transfer: Transfer::None,
            state_refusal: None,
            front_end: None,
            log: None,
            signals: Vec::new(),
            leaves: None,
        }
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms {
            negotiated: self.negotiated,
            offered: self.offered(),
            queues: self.queues,
        }
    }

    pub(crate) fn offered(&self) -> u64 {
        features::offered(&self.info)
    }

    pub(crate) fn queues(&self) -> u16 {
        self.queues
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn rings_running(&self) -> usize {
        self.vrings
            .iter()
            .filter(|ring| ring.running.is_some())
            .count()
    }

    pub(crate) fn status(&self) -> SessionStatus {
        SessionStatus {
            connected: true,
            front_end: None,
            waiting: Vec::new(),
            rings_running: self.rings_running(),
            awaited: self.image.awaited().cloned(),
            features: self.negotiated.features.unwrap_or(0),
            protocol_features: self.negotiated.protocol,
            memory_regions: self.memory.regions(),
            memory_bytes: self.memory.bytes(),
            writeback: self.mode.writeback.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn set_features(&mut self, features: u64) {
        let logged = self.negotiated.logs_data();
        self.negotiated.features = Some(features);
        self.update_mode();
        if self.negotiated.logs_data() != logged && self.log.is_some() {
            self.tell_logging();
        }
        if !self.negotiated.rings_are_enabled_by_message() {
            for queue in 0..self.vrings.len() {
                self.set_enabled(queue, true);
            }
        }
        self.start_ready();
    }

    pub(crate) fn set_protocol_features(&mut self, features: u64) {
        self.negotiated.protocol = features;
    }

    pub(crate) fn config(&self) -> [u8; config_space::SIZE] {
        ConfigSpace {
            info: &self.info,
            capacity: self.device.capacity_sectors(),
            // Without MQ a front-end has one queue, and may show this to its guest.
            queues: if self.terms().multiqueue() {
                self.queues
            } else {
                1
            },
            queue_size: self.queue_size,
            writeback: self.negotiated.writeback_reads(self.writeback),
        }
        .bytes()
    }

    pub(crate) fn write_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        flags: u32,
    ) -> Result<(), Refusal> {
        if let Some(writeback) = config_space::written_writeback(offset, bytes, flags)? {
            if self.info.read_only && flags == 0 {
                return Err(Refusal::ConfigReadOnly);
            }
            self.writeback = writeback;
            self.update_mode();
        }
        Ok(())
    }

    fn update_mode(&self) {
        let cached = self.negotiated.caches_writes(self.writeback);
        self.mode.writeback.store(cached, Ordering::Release);
    }

    /// Replaces the table of guest memory. With `retire` no request uses the
    /// old one any more when this returns (VU-24).
    pub(crate) fn set_memory(&mut self, memory: Memory, retire: bool) -> Result<(), Refusal> {
        if self.vrings.iter().any(|ring| !ring.stays_in(&memory)) {
            return Err(Refusal::RingInside);
        }
        self.replace_memory(memory, retire);
        self.start_ready();
        Ok(())
    }

    fn replace_memory(&mut self, memory: Memory, retire: bool) {
        let memory = Arc::new(memory);
        let order = || Command::Memory {
            memory: Arc::clone(&memory),
            retire,
        };
        self.workers.tell_all(order, &self.for_whom());
        self.memory = memory;
    }

    pub(crate) fn set_size(&mut self, index: u32, size: u32) -> Result<(), Refusal> {
        let largest = self.queue_size;
        let all: usize = self.vrings.iter().map(Vring::entries).sum();
        let (queue, ring) = self.ring(index)?;
        let good = u16::try_from(size)
            .ok()
            .filter(|s| s.is_power_of_two() && *s <= largest);
        let size = good.ok_or(Refusal::RingSize(size, largest))?;
        let others = all.saturating_sub(ring.entries());
        if others.saturating_add(usize::from(size)) > MAX_ENTRIES {
            return Err(Refusal::Entries(size, index));
        }
        if ring.running.is_some() && ring.size != Some(size) {
            return Err(Refusal::RingRuns);
        }
        ring.size = Some(size);
        self.start_if_ready(queue)
    }

    /// Addresses are the front-end's. Those of a running ring move it (VU-17),
    /// or where its used part is logged (VU-38).
    pub(crate) fn set_addresses(
        &mut self,
        index: u32,
        user: RingAddresses,
        used_log: Option<u64>,
    ) -> Result<(), Refusal> {
        let memory = Arc::clone(&self.memory);
        let (queue, ring) = self.ring(index)?;
        if memory.is_empty() {
            ring.user = Some(user);
            ring.used_log = used_log;
            return Ok(());
        }
        let addresses = vring::translate(user, ring.size.unwrap_or(1), &memory)?;
        if let Some(running) = ring.running
            && (running, ring.used_log) != (addresses, used_log)
        {
            let order = Command::Move {
                queue,
                addresses,
                used_log,
            };
            if self.workers.tell(queue, order, &self.for_whom()) == Answer::Refused {
                return Err(Refusal::RingOutside);
            }
            let (_, ring) = self.ring(index)?;
            ring.running = Some(addresses);
            ring.user = Some(user);
            ring.used_log = used_log;
            return Ok(());
        }
        ring.user = Some(user);
        ring.used_log = used_log;
        self.start_if_ready(queue)
    }

    /// The next avail index. A running ring is stopped and started there.
    pub(crate) fn set_base(&mut self, index: u32, base: u32) -> Result<(), Refusal> {
        let (queue, ring) = self.ring(index)?;
        let base = u16::try_from(base).map_err(|_| Refusal::RingIndex(base))?;
        if ring.running.is_none() {
            ring.base = base;
            return Ok(());
        }
        let kick = std::mem::take(&mut ring.kick);
        self.stop_worker(queue, self.may_leave_held());
        let (_, ring) = self.ring(index)?;
        ring.kick = kick;
        ring.base = base;
        self.start_if_ready(queue)
    }

    /// Stops a ring when all it has accepted is answered; the next avail
    /// index (VU-14).
    pub(crate) fn stop(&mut self, index: u32) -> Result<u16, Refusal> {
        let (queue, _) = self.ring(index)?;
        self.stop_worker(queue, self.may_leave_held());
        self.release_unused_image();
        let (_, ring) = self.ring(index)?;
        ring.kick = Kick::Missing;
        Ok(ring.base)
    }

    pub(crate) fn set_kick(&mut self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let (queue, ring) = self.ring(index)?;
        ring.kick = Kick::new(event("the kick", file)?);
        if ring.running.is_some() {
            let fd = ring.kick.for_worker().map_err(Refusal::Host)?;
            self.workers
                .tell(queue, Command::Kick { queue, fd }, &self.for_whom());
            return Ok(());
        }
        self.start_if_ready(queue)
    }

    pub(crate) fn set_call(&mut self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let (queue, _) = self.ring(index)?;
        let fd = event("the call", file)?;
        self.remember(queue, fd.as_ref(), |signals| &mut signals.call)
            .map_err(Refusal::Host)?;
        self.workers
            .tell(queue, Command::Call { queue, fd }, &self.for_whom());
        Ok(())
    }

    pub(crate) fn set_err(&mut self, index: u32, file: Option<File>) -> Result<(), Refusal> {
        let (queue, _) = self.ring(index)?;
        let fd = event("the error event", file)?;
        self.remember(queue, fd.as_ref(), |signals| &mut signals.err)
            .map_err(Refusal::Host)?;
        self.workers
            .tell(queue, Command::Err { queue, fd }, &self.for_whom());
        Ok(())
    }

    pub(crate) fn enable(&mut self, index: u32, on: bool) -> Result<(), Refusal> {
        let (queue, _) = self.ring(index)?;
        self.set_enabled(queue, on);
        self.start_if_ready(queue)
    }

    /// Back to the initial state; the session, its memory, and where
    /// interrupts go stay (VU-29).
    pub(crate) fn reset(&mut self) {
        // Whoever is reset does not ask for what it had in flight: only one that
        // has gone does, or another one for it.
        self.stop_all(self.leaves.is_some());
        for ring in &mut self.vrings {
            *ring = Vring::default();
        }
        // Both belong to the device's state before the reset (VU-35).
        self.inflight = None;
        self.transfer = Transfer::None;
        self.drop_log();
        self.writeback = true;
        // Whether rings are enabled by message is part of the session.
        self.negotiated.features = self
            .negotiated
            .features
            .map(|f| f & features::PROTOCOL_FEATURES);
        self.update_mode();
    }

    /// When to call [`start_ready`](Self::start_ready) again.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.image.awaited_until()
    }

    /// Starts every ring that lacks nothing. One that does not lie in the
    /// memory known so far waits for more of it.
    pub(crate) fn start_ready(&mut self) {
        for queue in 0..self.vrings.len() {
            if let Err(refusal) = self.start_if_ready(queue) {
                log::debug!("queue {queue} waits: {refusal}");
            }
        }
        self.release_unused_image();
    }

    fn start_if_ready(&mut self, queue: usize) -> Result<(), Refusal> {
        let Some(ring) = self.vrings.get(queue).filter(|ring| ring.is_ready()) else {
            return Ok(());
        };
        if self.memory.is_empty() {
            return Ok(());
        }
        let inflight = self.inflight_region(queue);
        let setup = ring.setup(&self.memory, self.negotiated.event_idx(), inflight)?;
        let addresses = setup.addresses;
        let started = || pulse::during(Doing::Disk, || self.device.rings_started());
        if !self.image.take(started) {
            return Ok(());
        }
        if self
            .workers
            .tell(queue, Command::Start { queue, setup }, &self.for_whom())
            == Answer::Refused
        {
            self.release_unused_image();
            return Err(Refusal::RingUnusable);
        }
        if let Some(ring) = self.vrings.get_mut(queue) {
            ring.running = Some(addresses);
        }
        Ok(())
    }

    /// Enabling is remembered while a ring is stopped (VU-9, VU-10).
    fn set_enabled(&mut self, queue: usize, on: bool) {
        let Some(ring) = self.vrings.get_mut(queue) else {
            return;
        };
        let changed = std::mem::replace(&mut ring.enabled, on) != on;
        if changed && ring.running.is_some() {
            let command = if on {
                Command::Enable { queue, on }
            } else {
                let leave = self.may_leave_held();
                Command::Pause { queue, leave }
            };
            self.workers.tell(queue, command, &self.for_whom());
        }
    }

    /// Stops asking for the image once no ring wants it. One that is ours stays
    /// so while the front-end is there, for its guest may only be paused; but
    /// where what requests write was logged, the guest moves to another
    /// process, which needs the image.
    fn release_unused_image(&mut self) {
        if self.rings_running() > 0 {
            return;
        }
        let waits = self.retry_at().is_some();
        let wanted = waits && self.vrings.iter().any(Vring::is_ready);
        if !wanted && (waits || self.negotiated.logs_data()) {
            self.release_image();
        }
    }

    fn release_image(&mut self) {
        let stopped = || pulse::during(Doing::Disk, || self.device.rings_stopped());
        self.image.release(stopped);
    }

    fn ring(&mut self, index: u32) -> Result<(usize, &mut Vring), Refusal> {
        let refusal = Refusal::NoSuchQueue(index);
        let Ok(queue) = usize::try_from(index) else {
            return Err(refusal);
        };
        self.vrings
            .get_mut(queue)
            .map(|ring| (queue, ring))
            .ok_or(refusal)
    }
}

fn event(what: &'static str, file: Option<File>) -> Result<Option<EventFd>, Refusal> {
    let Some(file) = file else { return Ok(None) };
    let event = sys::event_fd(file).map_err(Refusal::Host)?;
    event.map(Some).ok_or(Refusal::NotAnEvent(what))
}
