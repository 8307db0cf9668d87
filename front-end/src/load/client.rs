//! A front-end with as many queues as the plan wants, each with its memory.

use std::path::Path;

use super::churn::Churn;
use super::error::{LoadError, LoadResult};
use super::flow::Flow;
use super::lane::Lane;
use super::pattern::{Pattern, Positions};
use super::plan::{Extent, PARTS, Place, Plan};
use super::report::Report;
use super::run::{self, Traffic};
use super::stamp::Stamps;
use crate::codes::feature;
use crate::driver::{Driver, Setup};
use crate::memory::GuestMemory;
use crate::ring::Ring;
use crate::session::{Like, Session, Wanted};

/// Descriptors of a request: header, data, status.
const DESCRIPTORS: u16 = 3;
/// Room for a driver's ring, tables and headers, for each entry of its ring.
const DRIVER_BYTES: u64 = 256;
const PAGE: u64 = 4096;

/// A connected front-end under a plan.
#[derive(Debug)]
pub struct Client {
    session: Session,
    plan: Plan,
    traffic: Vec<Traffic>,
}

impl Client {
    /// Connects to the back-end at `socket` and starts its rings.
    ///
    /// # Errors
    /// The plan is wrong or does not fit the disk, or the back-end misbehaves.
    pub fn connect(socket: &Path, plan: Plan) -> LoadResult<Self> {
        plan.check()?;
        let wanted = Wanted {
            queues: plan.queues,
            ..Wanted::default()
        };
        let mut session = Session::open(socket, Like::Qemu, wanted)?;
        let places = plan.places(capacity(&session)?)?;
        check_offer(&session, &plan)?;

        let ring_bytes = DRIVER_BYTES * u64::from(plan.queue_size).max(PAGE / DRIVER_BYTES);
        let depth = |place: &Place| {
            if place.size == plan.size {
                plan.depth
            } else {
                PARTS
            }
        };
        let data_bytes = |place: &Place| {
            (u64::from(place.size) * u64::from(depth(place))).next_multiple_of(PAGE)
        };
        let total: u64 = places
            .iter()
            .map(|place| ring_bytes + data_bytes(place))
            .sum();
        let memory = GuestMemory::flat(total)?;
        fill(&memory, total)?;

        let mut traffic = Vec::new();
        let mut base = 0;
        for (queue, place) in (0..).zip(places) {
            let setup = Setup {
                size: plan.queue_size,
                features: session.features,
                indirect: DESCRIPTORS,
            };
            let driver = Driver::new(&memory, base, setup)?;
            debug_assert!(driver.end() <= base + ring_bytes);
            let data = base + ring_bytes;
            base = data + data_bytes(&place);
            let stamps = plan
                .verify
                .map(|run| Stamps::new(run, place.blocks, place.size));
            let lane = Lane::new((driver, &memory, data), place, depth(&place), stamps)?;
            traffic.push(if plan.pattern == Pattern::Churn && queue == 1 {
                Traffic::Churn(Churn::new(lane, plan.churn_rate))
            } else {
                let sequential = plan.pattern.sequential();
                let positions = Positions::new(sequential, plan.reads(), place.blocks, queue);
                Traffic::Flow(Flow::new(lane, positions))
            });
        }
        let rings: Vec<&Ring> = traffic.iter().map(|t| t.lane().driver().ring()).collect();
        session.start(&memory, &rings)?;
        Ok(Self {
            session,
            plan,
            traffic,
        })
    }

    /// Runs the load as long as the plan says; may be called again.
    ///
    /// # Errors
    /// A request fails, a block holds what it should not, or the back-end
    /// does not answer.
    pub fn run(&mut self) -> LoadResult<Report> {
        run::run(&self.plan, &mut self.traffic)
    }

    /// From the next run on, the load takes that long.
    pub fn set_extent(&mut self, extent: Extent) {
        self.plan.extent = extent;
    }

    /// Stops the rings and disconnects.
    ///
    /// # Errors
    /// The back-end misbehaves.
    pub fn close(self) -> LoadResult<()> {
        self.session.stop(self.plan.queues.into())?;
        Ok(())
    }
}

/// The size of the disk in bytes.
fn capacity(session: &Session) -> LoadResult<u64> {
    let config = session.connection.get_config(0, 60)?;
    let sectors = config.get(..8).and_then(|bytes| bytes.try_into().ok());
    let sectors = sectors.map_or(0, u64::from_le_bytes);
    sectors
        .checked_mul(512)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| {
            LoadError::Plan("the back-end does not tell the size of its disk".to_owned())
        })
}

/// The back-end offers what the plan needs.
fn check_offer(session: &Session, plan: &Plan) -> LoadResult<()> {
    let wrong = |why: String| Err(LoadError::Plan(why));
    let read_only = session.features & feature::RO != 0;
    if plan.writes() && read_only {
        return wrong("the disk is read-only: give --pattern randread or read".to_owned());
    }
    if plan.pattern == Pattern::Churn && session.features & feature::DISCARD == 0 {
        return wrong("--pattern churn: the back-end offers no discard".to_owned());
    }
    Ok(())
}

/// Touches all memory, with what does not compress: on a disk that does, what
/// is measured is not its compressor.
fn fill(memory: &GuestMemory, length: u64) -> LoadResult<()> {
    let mut noise = Positions::new(false, 100, 1 << 32, 99);
    for at in (0..length).step_by(4) {
        let (_, drawn) = noise.draw_next();
        memory.write(at, &drawn.to_le_bytes()[..4])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A compressor like LZ4 finds four bytes that it has seen before.
    #[test]
    fn what_is_written_does_not_repeat_itself() {
        const LENGTH: usize = 64 << 10;
        let memory = GuestMemory::flat(LENGTH as u64).unwrap();
        fill(&memory, LENGTH as u64).unwrap();
        let bytes = memory.read(0, LENGTH).unwrap();
        let all: HashSet<_> = bytes.windows(4).collect();
        assert!(LENGTH - all.len() < 16, "{} differ", all.len());
    }
}
