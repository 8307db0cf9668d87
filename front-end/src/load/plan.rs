//! What is to be done, as checked as it can be without the disk.

use std::time::Duration;

use super::error::{LoadError, LoadResult};
use super::pattern::Pattern;

/// Bytes that are discarded and refilled at once, and the stride of pieces.
pub(super) const PIECE: u64 = 1 << 20;
/// Bytes of each write that refills a piece.
pub(super) const PART: u32 = 128 << 10;
/// Writes that refill a piece.
pub(super) const PARTS: u16 = 8;
/// Most bytes of a request.
const LARGEST: u32 = 16 << 20;

/// How a completion is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The used ring is polled, and no call is asked for. Where nothing comes
    /// for long, by call after all.
    Poll,
    /// By call, as a guest does it.
    Call,
}

/// How long it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// For a time, after a time that is not counted.
    Time {
        /// Not counted.
        warm_up: Duration,
        /// Counted.
        counted: Duration,
    },
    /// For so many requests of each queue, all counted.
    Requests(u64),
}

/// A load.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which blocks, in which direction.
    pub pattern: Pattern,
    /// Bytes of a request, a multiple of 512.
    pub size: u32,
    /// Requests of each queue in flight.
    pub depth: u16,
    /// Queues, each with a part of the range of its own.
    pub queues: u16,
    /// Threads that drive the queues in turn.
    pub threads: u16,
    /// Entries of each ring.
    pub queue_size: u16,
    /// Where the pattern leaves it open: reads in percent.
    pub read_percent: Option<u8>,
    /// Only the first so many bytes of the disk.
    pub range: Option<u64>,
    /// Churn: the pieces lie between the blocks of queue 0, every second MiB,
    /// instead of in the other half.
    pub among: bool,
    /// Churn: at most so many pieces a second.
    pub churn_rate: Option<u32>,
    /// Check what is read, by marks of this run's number.
    pub verify: Option<u32>,
    /// How completions are noticed.
    pub waiting: Waiting,
    /// CPUs of the threads in turn; empty: not pinned.
    pub cpus: Vec<usize>,
    /// How long.
    pub extent: Extent,
    /// Intervals of the counted time that are reported one by one; zero: none.
    pub every: Duration,
    /// Also report the CPU time of this process.
    pub cpu_of: Option<u32>,
}

impl Default for Plan {
    /// 4 KiB random reads, one at a time in one queue, for five seconds.
    fn default() -> Self {
        Self {
            pattern: Pattern::Randread,
            size: 4096,
            depth: 1,
            queues: 1,
            threads: 1,
            queue_size: 256,
            read_percent: None,
            range: None,
            among: false,
            churn_rate: None,
            verify: None,
            waiting: Waiting::Poll,
            cpus: Vec::new(),
            extent: Extent::Time {
                warm_up: Duration::from_secs(1),
                counted: Duration::from_secs(5),
            },
            every: Duration::ZERO,
            cpu_of: None,
        }
    }
}

/// Where a queue's blocks lie: pieces at a stride, blocks side by side in
/// each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The first byte.
    pub start: u64,
    /// Bytes between the starts of pieces; [`PIECE`] if they are adjacent.
    pub stride: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Bytes of a block.
    pub size: u32,
}

impl Place {
    /// The byte offset of a block.
    #[inline]
    pub(super) fn offset(&self, block: u64) -> u64 {
        let size = u64::from(self.size);
        if self.stride == PIECE {
            return self.start + block * size;
        }
        let each = PIECE / size;
        self.start + block / each * self.stride + block % each * size
    }
}

fn wrong<T>(why: impl Into<String>) -> LoadResult<T> {
    Err(LoadError::Plan(why.into()))
}

impl Plan {
    /// The share of reads in percent.
    pub(super) fn reads(&self) -> u8 {
        self.pattern.read_percent(self.read_percent)
    }

    /// Something is written.
    pub(super) fn writes(&self) -> bool {
        self.pattern == Pattern::Churn || self.reads() < 100
    }

    /// # Errors
    /// Says which option is wrong and what to give.
    pub fn check(&self) -> LoadResult<()> {
        if self.size == 0 || !self.size.is_multiple_of(512) || self.size > LARGEST {
            return wrong("--size: give a multiple of 512, at most 16M");
        }
        if !self.queue_size.is_power_of_two() || self.queue_size > 1024 {
            return wrong("--queue-size: give a power of two, at most 1024");
        }
        if self.depth == 0 || self.depth > self.queue_size {
            return wrong("--depth: give at least 1 and at most --queue-size");
        }
        if self.queues == 0 || self.queues > 64 {
            return wrong("--queues: give 1 to 64");
        }
        if self.threads == 0 || self.threads > self.queues {
            return wrong("--threads: give 1 to the number of --queues");
        }
        if self.read_percent.is_some() && !self.pattern.mixed() {
            return wrong("--read-percent: only for randrw and churn");
        }
        if self.read_percent.is_some_and(|percent| percent > 100) {
            return wrong("--read-percent: give 0 to 100");
        }
        if self.verify.is_some() && !self.writes() {
            return wrong(format!(
                "--verify: {} writes nothing that could be checked: give a pattern that writes",
                self.pattern.name()
            ));
        }
        if self.pattern == Pattern::Churn {
            if self.queues != 2 {
                return wrong("--pattern churn uses two queues: give --queues 2");
            }
            if self.queue_size < 2 * PARTS {
                return wrong("--pattern churn: give --queue-size of at least 16");
            }
            if self.among && !PIECE.is_multiple_of(self.size.into()) {
                return wrong("--pieces among: give a --size that divides 1M");
            }
        } else if self.among || self.churn_rate.is_some() {
            return wrong("--pieces and --churn-rate: only for churn");
        }
        Ok(())
    }

    /// Where the blocks of each queue lie on a disk of `capacity` bytes.
    ///
    /// # Errors
    /// The disk or the range is too small.
    pub(super) fn places(&self, capacity: u64) -> LoadResult<Vec<Place>> {
        let range = self.range.unwrap_or(capacity);
        if range > capacity {
            return wrong(format!("--range: the disk has only {capacity} bytes"));
        }
        let places = if self.pattern == Pattern::Churn {
            self.churn_places(range).to_vec()
        } else {
            let size = u64::from(self.size);
            let blocks = range / size / u64::from(self.queues);
            let place = |queue| Place {
                start: queue * blocks * size,
                stride: PIECE,
                blocks,
                size: self.size,
            };
            (0..u64::from(self.queues)).map(place).collect()
        };
        for place in &places {
            let depth = if place.size == self.size {
                self.depth
            } else {
                PARTS
            };
            // Twice the depth, so that a verified load finds a free block soon.
            if place.blocks < 2 * u64::from(depth) || place.blocks > u64::from(u32::MAX) {
                return wrong(format!(
                    "a queue would have {} blocks of {} bytes: give another --size, --depth or --range",
                    place.blocks, place.size
                ));
            }
        }
        Ok(places)
    }

    fn churn_places(&self, range: u64) -> [Place; 2] {
        let half = range / PIECE / 2;
        let (stride, second) = if self.among {
            (2 * PIECE, PIECE)
        } else {
            (PIECE, half * PIECE)
        };
        let place = |start, size: u32| Place {
            start,
            stride,
            blocks: half * PIECE / u64::from(size),
            size,
        };
        [place(0, self.size), place(second, PART)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(plan: &Plan) -> String {
        plan.check().unwrap_err().to_string()
    }

    #[test]
    fn patterns_that_write_nothing_cannot_be_verified() {
        for (pattern, queues, read_percent, possible) in [
            (Pattern::Randread, 1, None, false),
            (Pattern::Read, 1, None, false),
            (Pattern::Randrw, 1, Some(100), false),
            (Pattern::Randrw, 1, None, true),
            (Pattern::Randwrite, 1, None, true),
            (Pattern::Write, 1, None, true),
            (Pattern::Churn, 2, None, true),
        ] {
            let plan = Plan {
                pattern,
                queues,
                read_percent,
                verify: Some(1),
                ..Plan::default()
            };
            assert_eq!(plan.check().is_ok(), possible, "{pattern:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let plan = Plan::default;
        for (wrong, option) in [
            (
                Plan {
                    size: 1000,
                    ..plan()
                },
                "--size",
            ),
            (
                Plan {
                    depth: 257,
                    ..plan()
                },
                "--depth",
            ),
            (Plan { depth: 0, ..plan() }, "--depth"),
            (
                Plan {
                    threads: 2,
                    ..plan()
                },
                "--threads",
            ),
            (
                Plan {
                    queue_size: 100,
                    ..plan()
                },
                "--queue-size",
            ),
            (
                Plan {
                    read_percent: Some(5),
                    ..plan()
                },
                "--read-percent",
            ),
            (
                Plan {
                    among: true,
                    ..plan()
                },
                "--pieces",
            ),
            (
                Plan {
                    pattern: Pattern::Churn,
                    ..plan()
                },
                "--queues 2",
            ),
        ] {
            assert!(complaint(&wrong).contains(option), "{}", complaint(&wrong));
        }
        let small = plan().places(4096).unwrap_err().to_string();
        assert!(small.contains("--range"), "{small}");
    }

    /// No byte belongs to two queues, and none lies beyond the range.
    #[test]
    fn queues_have_places_of_their_own() {
        let churn = |among| Plan {
            pattern: Pattern::Churn,
            queues: 2,
            among,
            ..Plan::default()
        };
        let four = Plan {
            queues: 4,
            size: 65536,
            ..Plan::default()
        };
        let capacity = (8 << 20) + 512;
        for plan in [churn(false), churn(true), four] {
            let mut pieces: Vec<_> = plan
                .places(capacity)
                .unwrap()
                .iter()
                .flat_map(|place| {
                    (0..place.blocks)
                        .map(|b| (place.offset(b), u64::from(place.size)))
                        .collect::<Vec<_>>()
                })
                .collect();
            pieces.sort_unstable();
            for pair in pieces.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
            }
            let covered: u64 = pieces.iter().map(|piece| piece.1).sum();
            assert_eq!(covered, 8 << 20);
        }
    }
}
