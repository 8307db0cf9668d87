//! The device as a front-end has set it up, as the messages that would do so
//! again: for a next process that goes on with the connection.

use std::os::fd::OwnedFd;
use std::{io, mem};

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vmm_sys_util::eventfd::EventFd;

use super::{Handler, Transfer};
use crate::device::Device;
use crate::memory::inflight::Inflight;
use crate::session::config_space::ConfigSpace;
use crate::session::parcel::{Contents, Setup};
use crate::session::vring::{Kick, Vring};
use crate::sys;

/// In place of a descriptor of a ring: there is none.
const NO_FD: u64 = 1 << 8;
/// The addresses of a ring come with that of its log.
const LOGGED: u32 = 1;

/// Where a ring signals its driver, which only its worker knows else.
#[derive(Debug, Default)]
pub(super) struct Signals {
    pub call: Option<EventFd>,
    pub err: Option<EventFd>,
}

/// The bytes of a message, of words in the byte order of this host.
#[derive(Default)]
struct Payload(Vec<u8>);

impl Payload {
    fn u16(mut self, word: u16) -> Self {
        self.0.extend(word.to_ne_bytes());
        self
    }

    fn u32(mut self, word: u32) -> Self {
        self.0.extend(word.to_ne_bytes());
        self
    }

    fn u64(mut self, word: u64) -> Self {
        self.0.extend(word.to_ne_bytes());
        self
    }

    fn of(self, request: FrontendReq) -> Setup {
        self.with(request, Vec::new())
    }

    fn with(self, request: FrontendReq, fds: Vec<OwnedFd>) -> Setup {
        Setup {
            request: request.into(),
            payload: self.0,
            fds,
        }
    }
}

impl<D: Device> Handler<D> {
    /// From now on what a next process needs is remembered.
    pub(crate) fn keep(&mut self) {
        self.signals = self.vrings.iter().map(|_| Signals::default()).collect();
    }

    /// Remembers a descriptor of a ring, if that is wanted.
    pub(super) fn remember(
        &mut self,
        queue: usize,
        fd: Option<&EventFd>,
        which: impl FnOnce(&mut Signals) -> &mut Option<EventFd>,
    ) -> io::Result<()> {
        if let Some(signals) = self.signals.get_mut(queue) {
            *which(signals) = fd.map(EventFd::try_clone).transpose()?;
        }
        Ok(())
    }

    /// Stops the rings as for a front-end that goes, but such that they would
    /// start again where they were.
    pub(crate) fn rest(&mut self) {
        self.leaves = Some(true);
        let kicks = self.vrings.iter_mut().map(|ring| mem::take(&mut ring.kick));
        let kicks: Vec<Kick> = kicks.collect();
        self.stop_all(true);
        for (ring, kick) in self.vrings.iter_mut().zip(kicks) {
            ring.kick = kick;
        }
    }

    /// Whether another process could go on as the device is set up: not amid a
    /// migration, whose log may go with the source. Where it may end at any time
    /// there has to be a record for each ring that runs.
    pub(crate) fn can_be_kept(&self) -> bool {
        let recorded = |(queue, ring): (usize, &Vring)| {
            ring.running.is_none() || self.inflight_region(queue).is_some()
        };
        self.log.is_none()
            && matches!(self.transfer, Transfer::None)
            && self.vrings.iter().enumerate().all(recorded)
    }

    /// What a guest sees of the disk whatever was negotiated.
    pub(crate) fn identity(&self) -> Vec<u8> {
        let config = ConfigSpace {
            info: &self.info,
            capacity: self.device.capacity_sectors(),
            queues: self.queues,
            queue_size: self.queue_size,
            writeback: true,
        };
        let mut bytes = config.bytes().to_vec();
        bytes.extend(self.offered().to_ne_bytes());
        bytes.extend(self.info.serial);
        bytes
    }

    /// Has the disk cache writes or not as the last process had it.
    pub(crate) fn take_up_writeback(&mut self, writeback: bool) {
        self.writeback = writeback;
        self.update_mode();
    }

    /// The device as it is set up, with what a front-end does not say by messages.
    ///
    /// # Errors
    /// The host gives no descriptor.
    pub(crate) fn contents(&self) -> io::Result<Contents> {
        let mut setups = self.features();
        setups.extend(self.memory_table()?);
        if let Some((shape, offset, file)) = self.inflight.as_ref().and_then(Inflight::origin) {
            let payload = Payload::default().u64(shape.bytes()).u64(offset);
            let payload = payload.u16(shape.queues).u16(shape.entries);
            let fds = vec![sys::duplicate(file)?];
            setups.push(payload.with(FrontendReq::SET_INFLIGHT_FD, fds));
        }
        for queue in 0..self.vrings.len() {
            self.ring_setup(queue, &mut setups)?;
        }
        Ok(Contents {
            identity: self.identity(),
            writeback: self.writeback,
            features_read: false,
            news: false,
            setups,
        })
    }

    fn features(&self) -> Vec<Setup> {
        let mut setups = Vec::new();
        if let Some(features) = self.negotiated.features {
            setups.push(
                Payload::default()
                    .u64(features)
                    .of(FrontendReq::SET_FEATURES),
            );
        }
        if self.negotiated.protocol != 0 {
            let payload = Payload::default().u64(self.negotiated.protocol);
            setups.push(Payload::default().of(FrontendReq::GET_PROTOCOL_FEATURES));
            setups.push(payload.of(FrontendReq::SET_PROTOCOL_FEATURES));
        }
        setups
    }

    fn memory_table(&self) -> io::Result<Vec<Setup>> {
        let one_by_one = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        let one_by_one = self.negotiated.has_protocol(one_by_one);
        let (mut setups, mut table, mut fds, mut count) =
            (Vec::new(), Payload::default(), Vec::new(), 0);
        for (spec, file) in self.memory.origins() {
            let fd = sys::duplicate(file)?;
            let words = |payload: Payload| {
                let payload = payload.u64(spec.guest).u64(spec.size);
                payload.u64(spec.user).u64(spec.offset)
            };
            if one_by_one {
                let payload = words(Payload::default().u64(0));
                setups.push(payload.with(FrontendReq::ADD_MEM_REG, vec![fd]));
            } else {
                table = words(table);
                fds.push(fd);
                count = u32::saturating_add(count, 1);
            }
        }
        if count > 0 {
            let mut payload = Payload::default().u32(count).u32(0);
            payload.0.extend(table.0);
            setups.push(payload.with(FrontendReq::SET_MEM_TABLE, fds));
        }
        Ok(setups)
    }

    /// The kick comes last, as it starts the ring.
    fn ring_setup(&self, queue: usize, setups: &mut Vec<Setup>) -> io::Result<()> {
        let Some(ring) = self.vrings.get(queue) else {
            return Ok(());
        };
        let index = u32::try_from(queue).map_err(io::Error::other)?;
        let ring_word = |word: u32| Payload::default().u32(index).u32(word);
        let by_fd = |fd: Option<&EventFd>, request: FrontendReq| {
            let none = if fd.is_none() { NO_FD } else { 0 };
            let fds: Option<OwnedFd> = fd.map(sys::duplicate).transpose()?;
            let payload = Payload::default().u64(u64::from(index) | none);
            io::Result::Ok(payload.with(request, fds.into_iter().collect()))
        };
        if let Some(size) = ring.size {
            setups.push(ring_word(size.into()).of(FrontendReq::SET_VRING_NUM));
        }
        setups.push(ring_word(ring.base.into()).of(FrontendReq::SET_VRING_BASE));
        if let Some(user) = ring.user {
            let logged = if ring.used_log.is_some() { LOGGED } else { 0 };
            let payload = ring_word(logged).u64(user.descriptors).u64(user.used);
            let payload = payload.u64(user.avail).u64(ring.used_log.unwrap_or(0));
            setups.push(payload.of(FrontendReq::SET_VRING_ADDR));
        }
        if let Some(Signals { call, err }) = self.signals.get(queue) {
            if call.is_some() {
                setups.push(by_fd(call.as_ref(), FrontendReq::SET_VRING_CALL)?);
            }
            if err.is_some() {
                setups.push(by_fd(err.as_ref(), FrontendReq::SET_VRING_ERR)?);
            }
        }
        if self.negotiated.rings_are_enabled_by_message() {
            setups.push(ring_word(ring.enabled.into()).of(FrontendReq::SET_VRING_ENABLE));
        }
        match &ring.kick {
            Kick::Missing => {}
            Kick::Poll => setups.push(by_fd(None, FrontendReq::SET_VRING_KICK)?),
            Kick::Fd(fd) => setups.push(by_fd(Some(fd), FrontendReq::SET_VRING_KICK)?),
        }
        Ok(())
    }
}
