//! The requests that real front-ends send, with their payloads.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use crate::codes::{flag, protocol, request};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::memory::Region;

/// Where a ring lies, in the front-end's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingUsers {
    /// The descriptor table.
    pub descriptors: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub avail: u64,
    /// The guest address under which writes to the used ring are logged.
    pub log: Option<u64>,
}

/// The memory in which a back-end notes what is in flight, for its successor.
#[derive(Debug)]
pub struct Inflight {
    /// The memory.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// For how many queues it was made.
    pub queues: u16,
    /// For what queue size it was made.
    pub queue_size: u16,
}

fn pair(first: u32, second: u32) -> Vec<u8> {
    [first, second].map(u32::to_ne_bytes).concat()
}

fn region_fields(region: &Region) -> Vec<u8> {
    let place = region.place();
    [place.guest, place.size, place.user, region.offset()]
        .map(u64::to_ne_bytes)
        .concat()
}

fn inflight_fields(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut bytes = [size, offset].map(u64::to_ne_bytes).concat();
    bytes.extend([queues, queue_size, 0, 0].map(u16::to_ne_bytes).concat());
    bytes
}

/// Each request fails as [`Connection::ask`] or [`Connection::tell`] do.
#[allow(clippy::missing_errors_doc)]
impl Connection {
    fn number(&self, request: u32) -> Result<u64> {
        let reply = self.ask(request, &[], &[])?;
        if reply.payload.len() == 8 {
            return Ok(reply.u64_at(0));
        }
        Err(Error::Reply {
            request,
            id: request,
            flags: reply.flags,
            size: reply.payload.len(),
        })
    }

    /// GET_FEATURES.
    pub fn get_features(&self) -> Result<u64> {
        self.number(request::GET_FEATURES)
    }

    /// SET_FEATURES.
    pub fn set_features(&self, features: u64) -> Result<()> {
        self.tell(request::SET_FEATURES, &features.to_ne_bytes(), &[])
    }

    /// GET_PROTOCOL_FEATURES.
    pub fn get_protocol_features(&self) -> Result<u64> {
        self.number(request::GET_PROTOCOL_FEATURES)
    }

    /// SET_PROTOCOL_FEATURES; from now on [`tell`](Self::tell) asks for
    /// acknowledgements if they are among them.
    pub fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let bytes = features.to_ne_bytes();
        self.send(request::SET_PROTOCOL_FEATURES, 0, &bytes, &[])?;
        self.acknowledged = features & protocol::REPLY_ACK != 0;
        Ok(())
    }

    /// SET_OWNER.
    pub fn set_owner(&self) -> Result<()> {
        self.tell(request::SET_OWNER, &[], &[])
    }

    /// RESET_OWNER.
    pub fn reset_owner(&self) -> Result<()> {
        self.tell(request::RESET_OWNER, &[], &[])
    }

    /// RESET_DEVICE.
    pub fn reset_device(&self) -> Result<()> {
        self.tell(request::RESET_DEVICE, &[], &[])
    }

    /// GET_QUEUE_NUM.
    pub fn get_queue_num(&self) -> Result<u64> {
        self.number(request::GET_QUEUE_NUM)
    }

    /// GET_MAX_MEM_SLOTS.
    pub fn get_max_mem_slots(&self) -> Result<u64> {
        self.number(request::GET_MAX_MEM_SLOTS)
    }

    /// SET_MEM_TABLE with the descriptors of the regions.
    pub fn set_mem_table<'a>(&self, regions: impl IntoIterator<Item = &'a Region>) -> Result<()> {
        let mut fields = Vec::new();
        let mut fds = Vec::new();
        for region in regions {
            fields.extend(region_fields(region));
            fds.push(region.file().as_raw_fd());
        }
        let count = u32::try_from(fds.len()).map_err(|_| Error::TooLarge("the table"))?;
        let mut payload = pair(count, 0);
        payload.extend(fields);
        self.tell(request::SET_MEM_TABLE, &payload, &fds)
    }

    /// ADD_MEM_REG with the descriptor of the region.
    pub fn add_mem_reg(&self, region: &Region) -> Result<()> {
        let mut payload = pair(0, 0);
        payload.extend(region_fields(region));
        self.tell(request::ADD_MEM_REG, &payload, &[region.file().as_raw_fd()])
    }

    /// REM_MEM_REG, without a descriptor.
    pub fn rem_mem_reg(&self, region: &Region) -> Result<()> {
        let mut payload = pair(0, 0);
        payload.extend(region_fields(region));
        self.tell(request::REM_MEM_REG, &payload, &[])
    }

    /// SET_VRING_NUM.
    pub fn set_vring_num(&self, queue: u32, size: u32) -> Result<()> {
        self.tell(request::SET_VRING_NUM, &pair(queue, size), &[])
    }

    /// SET_VRING_BASE.
    pub fn set_vring_base(&self, queue: u32, next: u16) -> Result<()> {
        let payload = pair(queue, next.into());
        self.tell(request::SET_VRING_BASE, &payload, &[])
    }

    /// SET_VRING_ADDR.
    pub fn set_vring_addr(&self, queue: u32, at: &RingUsers) -> Result<()> {
        let logged = if at.log.is_some() { flag::RING_LOG } else { 0 };
        let mut payload = pair(queue, logged);
        let addresses = [at.descriptors, at.used, at.avail, at.log.unwrap_or(0)];
        payload.extend(addresses.map(u64::to_ne_bytes).concat());
        self.tell(request::SET_VRING_ADDR, &payload, &[])
    }

    /// GET_VRING_BASE: stops the ring; the next index of its available ring.
    pub fn get_vring_base(&self, queue: u32) -> Result<u32> {
        let reply = self.ask(request::GET_VRING_BASE, &pair(queue, 0), &[])?;
        if reply.payload.len() == 8 && reply.u32_at(0) == queue {
            return Ok(reply.u32_at(4));
        }
        Err(Error::Reply {
            request: request::GET_VRING_BASE,
            id: reply.request,
            flags: reply.flags,
            size: reply.payload.len(),
        })
    }

    fn event(&self, request: u32, queue: u32, fd: Option<RawFd>) -> Result<()> {
        let none = if fd.is_none() { flag::NO_FD } else { 0 };
        let payload = (u64::from(queue) | none).to_ne_bytes();
        self.tell(request, &payload, fd.as_slice())
    }

    /// SET_VRING_KICK; without a descriptor the ring is to be polled.
    pub fn set_vring_kick(&self, queue: u32, fd: Option<RawFd>) -> Result<()> {
        self.event(request::SET_VRING_KICK, queue, fd)
    }

    /// SET_VRING_CALL; without a descriptor nobody wants to be called.
    pub fn set_vring_call(&self, queue: u32, fd: Option<RawFd>) -> Result<()> {
        self.event(request::SET_VRING_CALL, queue, fd)
    }

    /// SET_VRING_ERR.
    pub fn set_vring_err(&self, queue: u32, fd: Option<RawFd>) -> Result<()> {
        self.event(request::SET_VRING_ERR, queue, fd)
    }

    /// SET_VRING_ENABLE.
    pub fn set_vring_enable(&self, queue: u32, on: bool) -> Result<()> {
        let payload = pair(queue, on.into());
        self.tell(request::SET_VRING_ENABLE, &payload, &[])
    }

    /// SET_BACKEND_REQ_FD.
    pub fn set_backend_req_fd(&self, fd: RawFd) -> Result<()> {
        self.tell(request::SET_BACKEND_REQ_FD, &[], &[fd])
    }

    /// GET_CONFIG; the bytes, none if the back-end refuses.
    pub fn get_config(&self, offset: u32, size: u32) -> Result<Vec<u8>> {
        let mut payload = [offset, size, 0].map(u32::to_ne_bytes).concat();
        let space = usize::try_from(size).map_err(|_| Error::TooLarge("the configuration"))?;
        payload.resize(12 + space, 0);
        let mut reply = self.ask(request::GET_CONFIG, &payload, &[])?;
        Ok(reply.payload.split_off(12.min(reply.payload.len())))
    }

    /// SET_CONFIG; `flags` is 1 for migration.
    pub fn set_config(&self, offset: u32, bytes: &[u8], flags: u32) -> Result<()> {
        let size = u32::try_from(bytes.len()).map_err(|_| Error::TooLarge("the configuration"))?;
        let mut payload = [offset, size, flags].map(u32::to_ne_bytes).concat();
        payload.extend_from_slice(bytes);
        self.tell(request::SET_CONFIG, &payload, &[])
    }

    /// SET_LOG_BASE with LOG_SHMFD: always answered; the size of the reply's
    /// payload in bytes, which peers disagree about.
    pub fn set_log_base(&self, file: &File, size: u64, offset: u64) -> Result<usize> {
        let payload = [size, offset].map(u64::to_ne_bytes).concat();
        let reply = self.ask(request::SET_LOG_BASE, &payload, &[file.as_raw_fd()])?;
        Ok(reply.payload.len())
    }

    /// SET_LOG_FD.
    pub fn set_log_fd(&self, fd: RawFd) -> Result<()> {
        self.tell(request::SET_LOG_FD, &[], &[fd])
    }

    /// GET_INFLIGHT_FD: new memory for so many queues of that size.
    pub fn get_inflight_fd(&self, queues: u16, queue_size: u16) -> Result<Inflight> {
        let payload = inflight_fields(0, 0, queues, queue_size);
        let reply = self.ask(request::GET_INFLIGHT_FD, &payload, &[])?;
        let (size, offset) = (reply.u64_at(0), reply.u64_at(8));
        match reply.file {
            Some(file) => Ok(Inflight {
                file,
                size,
                offset,
                queues,
                queue_size,
            }),
            None => Err(Error::Refused {
                request: request::GET_INFLIGHT_FD,
                value: size,
            }),
        }
    }

    /// SET_INFLIGHT_FD.
    pub fn set_inflight_fd(&self, memory: &Inflight) -> Result<()> {
        let payload = inflight_fields(memory.size, memory.offset, memory.queues, memory.queue_size);
        let fd = memory.file.as_raw_fd();
        self.tell(request::SET_INFLIGHT_FD, &payload, &[fd])
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Our end, and the back-end's.
    fn ends() -> (Connection, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let [ours, theirs] = [ours, theirs].map(|end| Connection::new(end).unwrap());
        (ours, theirs)
    }

    fn answer(end: &Connection, request: u32, payload: &[u8], fds: &[RawFd]) {
        end.send(request, flag::REPLY, payload, fds).unwrap();
    }

    #[test]
    fn inflight_memory_comes_with_its_descriptor_and_goes_with_it() {
        let (front, back) = ends();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 4096]).unwrap();
        let fields = inflight_fields(4096, 64, 2, 128);
        answer(
            &back,
            request::GET_INFLIGHT_FD,
            &fields,
            &[file.as_raw_fd()],
        );
        let memory = front.get_inflight_fd(2, 128).unwrap();
        let asked = back.receive().unwrap();
        assert_eq!((asked.request, asked.payload.len()), (31, 24));
        assert_eq!(asked.payload[16..20], [2, 0, 128, 0]);

        front.set_inflight_fd(&memory).unwrap();
        let given = back.receive().unwrap();
        assert_eq!((given.request, given.flags), (32, 1));
        assert_eq!(given.payload, fields);
        assert_eq!(given.file.unwrap().metadata().unwrap().len(), 4096);
    }

    #[test]
    fn a_refusal_is_told_from_success_once_acknowledged() {
        let (mut front, back) = ends();
        front.set_vring_num(0, 100).unwrap();
        assert_eq!(back.receive().unwrap().flags, 1);
        front.set_protocol_features(protocol::REPLY_ACK).unwrap();
        back.receive().unwrap();
        for value in [0_u64, 7] {
            let bytes = value.to_ne_bytes();
            answer(&back, request::SET_VRING_NUM, &bytes, &[]);
        }
        front.set_vring_num(0, 128).unwrap();
        assert_eq!(back.receive().unwrap().flags, 9);
        let refused = front.set_vring_num(0, 100);
        assert!(matches!(refused, Err(Error::Refused { value: 7, .. })));
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        let (front, back) = ends();
        answer(&back, request::GET_QUEUE_NUM, &[0; 8], &[]);
        assert!(matches!(
            front.get_features(),
            Err(Error::Reply { id: 17, .. })
        ));
        answer(&back, request::GET_FEATURES, &[0; 4], &[]);
        assert!(matches!(
            front.get_features(),
            Err(Error::Reply { size: 4, .. })
        ));
        drop(back);
        assert!(matches!(front.get_features(), Err(Error::Closed)));
    }

    #[test]
    fn an_event_without_a_descriptor_says_so() {
        let (front, back) = ends();
        front.set_vring_call(3, None).unwrap();
        let message = back.receive().unwrap();
        assert_eq!(message.u64_at(0), 0x103);
        assert!(message.file.is_none());
    }
}
