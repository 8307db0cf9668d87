//! Sessions as QEMU and cloud-hypervisor lead them: what they send, and in
//! which order.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use crate::codes::{feature, protocol};
use crate::connection::Connection;
use crate::driver::{Driver, Setup};
use crate::error::{Error, Result};
use crate::memory::{GuestMemory, Region};
use crate::requests::{Inflight, RingUsers};
use crate::ring::Ring;

/// Whose order of requests is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Like {
    /// QEMU 10: memory region by region, queue after queue. A ring goes on
    /// where the used ring ends.
    Qemu,
    /// cloud-hypervisor: one memory table, all sizes first. A ring goes on
    /// where the available ring ends, even if that was not served yet.
    CloudHypervisor,
}

/// What is accepted of what the back-end offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Device features.
    pub features: u64,
    /// Protocol features.
    pub protocol: u64,
    /// How many queues are set up for calls.
    pub queues: u16,
}

impl Default for Wanted {
    /// Everything, with one queue.
    fn default() -> Self {
        Self {
            features: feature::ALL,
            protocol: protocol::ALL,
            queues: 1,
        }
    }
}

/// A connection whose features are negotiated.
#[derive(Debug)]
pub struct Session {
    /// The connection, for anything else.
    pub connection: Connection,
    /// The back-end's own requests come here, if it can have any.
    pub back_channel: Option<Connection>,
    /// Memory of what is in flight. Give it to the next session to have the
    /// next back-end go on where this one ended.
    pub inflight: Option<Inflight>,
    /// The device features that both sides know.
    pub features: u64,
    /// The protocol features that both sides know.
    pub protocol: u64,
    like: Like,
    queues: u16,
    /// The regions that the back-end has.
    shared: Vec<Arc<Region>>,
}

/// The configuration that each reads at first, in bytes.
const QEMU_CONFIG: u32 = 57;
const CLOUD_HYPERVISOR_CONFIG: u32 = 60;

impl Session {
    /// Connects, and says what is said before a guest's driver is there.
    ///
    /// # Errors
    /// What the connection or the back-end says.
    pub fn open(path: &Path, like: Like, wanted: Wanted) -> Result<Self> {
        Self::over(Connection::connect(path)?, like, wanted)
    }

    /// As [`open`](Self::open), on a connection that is there.
    ///
    /// # Errors
    /// What the connection or the back-end says.
    pub fn over(connection: Connection, like: Like, wanted: Wanted) -> Result<Self> {
        let mut session = Self {
            connection,
            back_channel: None,
            inflight: None,
            features: 0,
            protocol: 0,
            like,
            queues: wanted.queues,
            shared: Vec::new(),
        };
        match like {
            Like::Qemu => session.greet_like_qemu(wanted)?,
            Like::CloudHypervisor => session.greet_like_cloud_hypervisor(wanted)?,
        }
        Ok(session)
    }

    fn negotiate_protocol(&mut self, wanted: Wanted) -> Result<()> {
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            self.protocol = self.connection.get_protocol_features()? & wanted.protocol;
            self.connection.set_protocol_features(self.protocol)?;
        }
        Ok(())
    }

    fn has(&self, protocol: u64) -> bool {
        self.protocol & protocol != 0
    }

    /// QEMU gives up on a back-end that has fewer queues than its device.
    fn check_queues(&self) -> Result<()> {
        let offered = self.connection.get_queue_num()?;
        if offered < self.queues.into() {
            return Err(Error::FewQueues(offered));
        }
        Ok(())
    }

    fn greet_like_qemu(&mut self, wanted: Wanted) -> Result<()> {
        self.features = self.connection.get_features()? & wanted.features;
        self.negotiate_protocol(wanted)?;
        if self.has(protocol::MQ) {
            self.check_queues()?;
        }
        if self.has(protocol::CONFIGURE_MEM_SLOTS) {
            self.connection.get_max_mem_slots()?;
        }
        self.open_back_channel()?;
        self.connection.set_owner()?;
        self.connection.get_features()?;
        for queue in 0..self.queues {
            // The events of a device that no driver has set up yet.
            let event = vmm_sys_util::eventfd::EventFd::new(0)
                .map_err(|e| Error::Host("make an eventfd", e))?;
            let fd = Some(event.as_raw_fd());
            self.connection.set_vring_call(queue.into(), fd)?;
            self.connection.set_vring_err(queue.into(), fd)?;
        }
        if self.has(protocol::CONFIG) {
            self.connection.get_config(0, QEMU_CONFIG)?;
        }
        Ok(())
    }

    fn greet_like_cloud_hypervisor(&mut self, wanted: Wanted) -> Result<()> {
        self.connection.set_owner()?;
        self.features = self.connection.get_features()? & wanted.features;
        self.negotiate_protocol(wanted)?;
        if self.has(protocol::MQ) {
            self.check_queues()?;
        }
        if self.has(protocol::CONFIG) {
            self.connection.get_config(0, CLOUD_HYPERVISOR_CONFIG)?;
        }
        Ok(())
    }

    fn open_back_channel(&mut self) -> Result<()> {
        if self.has(protocol::BACKEND_REQ) {
            let ends = UnixStream::pair().map_err(|e| Error::Host("make a socket pair", e))?;
            self.connection.set_backend_req_fd(ends.1.as_raw_fd())?;
            self.back_channel = Some(Connection::new(ends.0)?);
        }
        Ok(())
    }

    /// Hands memory and rings over and starts them, queue 0 first. For a ring
    /// that was served before, by this back-end or by another, this goes on.
    ///
    /// # Errors
    /// What the connection or the back-end says.
    pub fn start(&mut self, memory: &GuestMemory, rings: &[&Ring]) -> Result<()> {
        match self.like {
            Like::Qemu => self.start_like_qemu(memory, rings)?,
            Like::CloudHypervisor => self.start_like_cloud_hypervisor(memory, rings)?,
        }
        Ok(())
    }

    /// Shares new flat memory of so many bytes, and starts queue 0 in it with
    /// a ring of `size` entries.
    ///
    /// # Errors
    /// As [`start`](Self::start), and what the host says.
    pub fn start_one(&mut self, bytes: u64, size: u16) -> Result<(GuestMemory, Driver)> {
        let memory = GuestMemory::flat(bytes)?;
        let setup = Setup {
            size,
            features: self.features,
            indirect: 16,
        };
        let driver = Driver::new(&memory, 0, setup)?;
        self.start(&memory, &[driver.ring()])?;
        Ok((memory, driver))
    }

    fn start_like_qemu(&mut self, memory: &GuestMemory, rings: &[&Ring]) -> Result<()> {
        // The resets come from a driver that begins. One that goes on, over
        // a stop or with another back-end, does not see any of it.
        if self.has(protocol::RESET_DEVICE) && self.inflight.is_none() {
            self.reset_device()?;
            self.reset_device()?;
        }
        self.connection.set_features(self.features)?;
        for (queue, ring) in (0..).zip(rings) {
            self.connection
                .set_vring_call(queue, Some(ring.call_fd()))?;
        }
        self.share_inflight(rings)?;
        self.share(memory)?;
        for (queue, ring) in (0..).zip(rings) {
            let size = ring.memory().size();
            self.connection.set_vring_num(queue, size.into())?;
            self.connection.set_vring_base(queue, ring.device_index())?;
            let at = ring_users(memory, ring)?;
            self.connection.set_vring_addr(queue, &at)?;
            self.connection
                .set_vring_kick(queue, Some(ring.kick_fd()))?;
        }
        self.enable(true)
    }

    fn start_like_cloud_hypervisor(&mut self, memory: &GuestMemory, rings: &[&Ring]) -> Result<()> {
        self.connection.set_features(self.features)?;
        self.share(memory)?;
        for (queue, ring) in (0..).zip(rings) {
            let size = ring.memory().size();
            self.connection.set_vring_num(queue, size.into())?;
        }
        self.share_inflight(rings)?;
        for (queue, ring) in (0..).zip(rings) {
            let at = ring_users(memory, ring)?;
            self.connection.set_vring_addr(queue, &at)?;
            let base = ring.memory().avail_index();
            self.connection.set_vring_base(queue, base)?;
            self.connection
                .set_vring_call(queue, Some(ring.call_fd()))?;
            self.connection
                .set_vring_kick(queue, Some(ring.kick_fd()))?;
        }
        self.enable(true)?;
        self.open_back_channel()
    }

    /// Resets the device, as a driver does that begins: what was in flight is
    /// given up, and with it the memory that says so.
    ///
    /// # Errors
    /// What the connection or the back-end says.
    pub fn reset_device(&mut self) -> Result<()> {
        self.inflight = None;
        self.connection.reset_device()
    }

    /// Gives the back-end this memory and no other: QEMU adds and removes
    /// single regions if it can, cloud-hypervisor sends a new table.
    ///
    /// # Errors
    /// What the connection or the back-end says.
    pub fn share(&mut self, memory: &GuestMemory) -> Result<()> {
        let wanted: Vec<_> = memory.shared().to_vec();
        if self.like == Like::CloudHypervisor || !self.has(protocol::CONFIGURE_MEM_SLOTS) {
            self.connection.set_mem_table(memory.regions())?;
            self.shared = wanted;
            return Ok(());
        }
        let lacks = |list: &[Arc<Region>], region| !list.iter().any(|r| Arc::ptr_eq(r, region));
        for region in self.shared.iter().filter(|r| lacks(&wanted, r)) {
            self.connection.rem_mem_reg(region)?;
        }
        for region in wanted.iter().filter(|r| lacks(&self.shared, r)) {
            self.connection.add_mem_reg(region)?;
        }
        self.shared = wanted;
        Ok(())
    }

    /// Gets memory of what is in flight, or hands over what is there already.
    fn share_inflight(&mut self, rings: &[&Ring]) -> Result<()> {
        if !self.has(protocol::INFLIGHT_SHMFD) {
            return Ok(());
        }
        if self.inflight.is_none() {
            let size = rings.iter().map(|ring| ring.memory().size()).max();
            let memory = self
                .connection
                .get_inflight_fd(self.queues, size.unwrap_or(0))?;
            self.inflight = Some(memory);
        }
        match &self.inflight {
            Some(memory) => self.connection.set_inflight_fd(memory),
            None => Ok(()),
        }
    }

    /// Enables or disables all queues, also those without a ring; nothing if
    /// rings are not enabled by message.
    ///
    /// # Errors
    /// What the connection or the back-end says.
    pub fn enable(&self, on: bool) -> Result<()> {
        if self.features & feature::PROTOCOL_FEATURES != 0 {
            for queue in 0..self.queues {
                self.connection.set_vring_enable(queue.into(), on)?;
            }
        }
        Ok(())
    }

    /// Disables all queues and stops the first `rings`; where each goes on.
    ///
    /// # Errors
    /// What the connection or the back-end says.
    pub fn stop(&self, rings: u32) -> Result<Vec<u32>> {
        self.enable(false)?;
        (0..rings)
            .map(|queue| self.connection.get_vring_base(queue))
            .collect()
    }
}

/// Where a ring lies in the front-end's addresses.
fn ring_users(memory: &GuestMemory, ring: &Ring) -> Result<RingUsers> {
    let at = ring.memory().addresses();
    Ok(RingUsers {
        descriptors: memory.user(at.descriptors)?,
        used: memory.user(at.used)?,
        avail: memory.user(at.avail)?,
        log: None,
    })
}
