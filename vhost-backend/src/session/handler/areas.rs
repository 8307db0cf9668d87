//! Memory that the front-end shares beside the guest's: the record of
//! requests in flight, and the log of dirty pages.

use std::fs::File;
use std::sync::Arc;

use super::{Handler, MAX_ENTRIES};
use crate::command::Command;
use crate::device::Device;
use crate::error::Refusal;
use crate::memory::dirty::{Log, Logging};
use crate::memory::inflight::{self, Inflight, InflightError, Region, Shape};

/// Where an area lies in the file that came with it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub size: u64,
    pub offset: u64,
}

impl<D: Device> Handler<D> {
    /// Makes an empty record for the front-end to keep (VU-30).
    pub(crate) fn create_inflight(&self, shape: Shape) -> Result<(Area, File), Refusal> {
        self.check_shape(shape)?;
        let file = inflight::create(shape)?;
        let area = Area {
            size: shape.bytes(),
            offset: 0,
        };
        Ok((area, file))
    }

    /// Rings that are started from now on are recorded there.
    pub(crate) fn set_inflight(
        &mut self,
        area: Area,
        shape: Shape,
        file: File,
    ) -> Result<(), Refusal> {
        self.check_shape(shape)?;
        if self.rings_running() > 0 {
            return Err(InflightError::Busy.into());
        }
        self.inflight = Some(Inflight::open(file, area.offset, area.size, shape)?);
        Ok(())
    }

    /// What is asked for is not more than what is offered (VU-50).
    fn check_shape(&self, shape: Shape) -> Result<(), InflightError> {
        let queues = 1..=self.queues;
        let entries = 1..=self.queue_size;
        let all = usize::from(shape.queues).saturating_mul(usize::from(shape.entries));
        let bounded = all <= MAX_ENTRIES;
        if queues.contains(&shape.queues) && entries.contains(&shape.entries) && bounded {
            Ok(())
        } else {
            Err(InflightError::Shape(shape.queues, shape.entries))
        }
    }

    pub(super) fn inflight_region(&self, queue: usize) -> Option<Region> {
        self.inflight.as_ref()?.region(u16::try_from(queue).ok()?)
    }

    /// Pages are logged there from now on; the log before is not written any
    /// more when this returns (VU-36).
    pub(crate) fn set_log(&mut self, area: Area, file: File) -> Result<(), Refusal> {
        let log = Log::open(file, area.offset, area.size).map_err(Refusal::Log)?;
        self.log = Some(Arc::new(log));
        self.tell_logging();
        Ok(())
    }

    pub(super) fn drop_log(&mut self) {
        if self.log.take().is_some() {
            self.tell_logging();
        }
    }

    /// Tells the workers what is to be logged.
    pub(super) fn tell_logging(&self) {
        let logging = Logging {
            log: self.log.clone(),
            data: self.negotiated.logs_data(),
        };
        let order = || Command::Log {
            logging: logging.clone(),
        };
        self.workers.tell_all(order, &self.for_whom());
    }
}
