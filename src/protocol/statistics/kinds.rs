//! Numbers for each kind of request and for each stage of one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vhost_backend::{BUCKETS, OpKind, Stage};

/// One of each kind of request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ByOperation<T> {
    /// Reads.
    pub read: T,
    /// Writes.
    pub write: T,
    /// Flushes.
    pub flush: T,
    /// Discards.
    pub discard: T,
    /// Writes of zeros.
    pub write_zeroes: T,
}

impl<T> ByOperation<T> {
    /// As `of` says of each.
    pub fn new(of: impl Fn(OpKind) -> T) -> Self {
        Self {
            read: of(OpKind::Read),
            write: of(OpKind::Write),
            flush: of(OpKind::Flush),
            discard: of(OpKind::Discard),
            write_zeroes: of(OpKind::WriteZeroes),
        }
    }

    /// Each with its name.
    pub fn named(&self) -> [(&'static str, &T); OpKind::ALL.len()] {
        OpKind::ALL.map(|kind| {
            let of = match kind {
                OpKind::Read => &self.read,
                OpKind::Write => &self.write,
                OpKind::Flush => &self.flush,
                OpKind::Discard => &self.discard,
                OpKind::WriteZeroes => &self.write_zeroes,
            };
            (kind.name(), of)
        })
    }
}

/// One of each stage of a request, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ByStage<T> {
    /// From fetched to submitted.
    pub submit: T,
    /// From submitted to ended.
    pub io: T,
    /// From ended to published.
    pub publish: T,
    /// From published to interrupted, where the driver wants to be.
    pub interrupt: T,
}

impl<T> ByStage<T> {
    /// As `of` says of each.
    pub fn new(of: impl Fn(Stage) -> T) -> Self {
        Self {
            submit: of(Stage::Submit),
            io: of(Stage::Io),
            publish: of(Stage::Publish),
            interrupt: of(Stage::Interrupt),
        }
    }

    /// Each with its name.
    pub fn named(&self) -> [(&'static str, &T); Stage::ALL.len()] {
        Stage::ALL.map(|stage| {
            let of = match stage {
                Stage::Submit => &self.submit,
                Stage::Io => &self.io,
                Stage::Publish => &self.publish,
                Stage::Interrupt => &self.interrupt,
            };
            (stage.name(), of)
        })
    }
}

/// How often something took how long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Times {
    /// How many were timed.
    pub count: u64,
    /// Their times together, in nanoseconds.
    pub sum_ns: u64,
    /// How many took at most 1.024 us, of the others how many took at most
    /// twice that, and so on up to 8.6 s; the last number is of those that took
    /// longer.
    pub buckets: Vec<u64>,
}

impl From<vhost_backend::Times> for Times {
    fn from(times: vhost_backend::Times) -> Self {
        Self {
            count: times.count(),
            sum_ns: times.sum_ns,
            buckets: times.buckets.to_vec(),
        }
    }
}

impl Times {
    /// As many buckets as are known here: of a newer or older extentd there
    /// may be others.
    pub(crate) fn counts(&self) -> [u64; BUCKETS] {
        let mut counts = [0; BUCKETS];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = *bucket;
        }
        counts
    }
}

/// How long requests take; some are timed only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Latency {
    /// One request of a queue in so many is timed.
    pub timed_one_in: u32,
    /// By stage.
    pub stages: ByStage<Times>,
    /// From fetched to published, by kind of request.
    pub requests: ByOperation<Times>,
}

impl Latency {
    /// As workers have counted it.
    pub(crate) fn new(timed_one_in: u32, activity: &vhost_backend::Activity) -> Self {
        let times = |one: Option<&vhost_backend::Times>| one.copied().unwrap_or_default().into();
        Self {
            timed_one_in,
            stages: ByStage::new(|stage| times(activity.stages.get(stage.index()))),
            requests: ByOperation::new(|kind| times(activity.requests.get(kind.index()))),
        }
    }
}
