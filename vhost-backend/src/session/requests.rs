//! The `vhost` crate's view of the handler: each request decoded, and handed
//! on or refused.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::command::RingAddresses;
use crate::device::Device;
use crate::error::Refusal;
use crate::memory::{MAX_REGIONS, Memory, RegionSpec};
use crate::session::config_space;
use crate::session::features::PROTOCOL;
use crate::session::handler::Handler;

/// Never reached: such requests are not admitted (VU-42), or answered without
/// the crate.
const NOT_OFFERED: Error = Error::InvalidOperation("not offered");

fn refused(refusal: Refusal) -> Error {
    Error::ReqHandlerError(io::Error::other(refusal))
}

fn spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

impl<D: Device> VhostUserBackendReqHandlerMut for Handler<D> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Self::set_features(self, features);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        Self::set_protocol_features(self, features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.queues()))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let specs: Vec<RegionSpec> = regions.iter().map(spec).collect();
        let memory = Memory::new(&specs, files).map_err(|e| refused(e.into()))?;
        self.set_memory(memory, false).map_err(refused)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        u64::try_from(MAX_REGIONS).map_err(|_| NOT_OFFERED)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        let memory = self
            .memory()
            .with(spec(region), file)
            .map_err(|e| refused(e.into()))?;
        self.set_memory(memory, false).map_err(refused)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self
            .memory()
            .without(spec(region))
            .map_err(|e| refused(e.into()))?;
        self.set_memory(memory, true).map_err(refused)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.set_size(index, num).map_err(refused)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        avail: u64,
        log: u64,
    ) -> Result<()> {
        let user = RingAddresses {
            descriptors,
            avail,
            used,
        };
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        self.set_addresses(index, user, logged.then_some(log))
            .map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.set_base(index, base).map_err(refused)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let next_avail = self.stop(index).map_err(refused)?;
        Ok(VhostUserVringState::new(index, u32::from(next_avail)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.set_kick(index.into(), fd).map_err(refused)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.set_call(index.into(), fd).map_err(refused)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.set_err(index.into(), fd).map_err(refused)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.enable(index, enable).map_err(refused)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let outside = || refused(Refusal::ConfigValue);
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let size = usize::try_from(size).map_err(|_| outside())?;
        let end = start
            .checked_add(size)
            .filter(|end| *end <= config_space::SIZE)
            .ok_or_else(outside)?;
        Ok(self.config().get(start..end).unwrap_or_default().to_vec())
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], flags: VhostUserConfigFlags) -> Result<()> {
        self.write_config(offset, bytes, flags.bits())
            .map_err(refused)
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        fd: File,
    ) -> Result<Option<File>> {
        let begun = match direction {
            VhostTransferStateDirection::SAVE => self.save_state(fd),
            VhostTransferStateDirection::LOAD => self.begin_load(fd),
        };
        begun.map_err(|refusal| self.refuse_state(refusal))?;
        // No channel of our own.
        Ok(None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        let checked = self.check_state();
        checked.map_err(|refusal| self.refuse_state(refusal))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}
