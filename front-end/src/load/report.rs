//! What a load has found out.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::course::Interval;
use super::plan::Plan;
use super::tally::Tally;

/// Clock ticks of /proc in a second (USER_HZ, the same on all machines).
const TICKS: f64 = 100.0;

/// Figures of the counted time.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Reads and writes that have ended; without what the churn does.
    pub requests: u64,
    /// Reads among them.
    pub reads: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Requests per second.
    pub iops: f64,
    /// Millions of bytes per second.
    pub megabytes: f64,
    /// Latency that half of the requests stayed within.
    pub p50: Duration,
    /// Latency that 99 % stayed within.
    pub p99: Duration,
    /// Latency that 99.9 % stayed within.
    pub p999: Duration,
    /// The longest latency.
    pub longest: Duration,
    /// Kicks of all queues, per request.
    pub kicks: f64,
    /// Calls of all queues, per request.
    pub calls: f64,
    /// Pieces discarded and refilled per second.
    pub pieces: f64,
    /// CPU seconds of the process of --cpu-of per million requests.
    pub cpu: Option<f64>,
    /// Blocks that were read back at the end and found right.
    pub verified: u64,
    /// Each interval of the plan, in turn; none where it asks for none.
    pub intervals: Vec<Interval>,
    /// Of each of them.
    every: Duration,
    title: String,
}

/// Counts here stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn real(count: u64) -> f64 {
    count as f64
}

impl Report {
    pub(super) fn new(
        plan: &Plan,
        tally: &Tally,
        elapsed: Duration,
        ticks: Option<u64>,
        verified: u64,
        intervals: Vec<Interval>,
    ) -> Self {
        let requests = real(tally.requests());
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let each = requests.max(1.0);
        Self {
            requests: tally.requests(),
            reads: tally.reads,
            elapsed,
            iops: requests / seconds,
            megabytes: requests * f64::from(plan.size) / seconds / 1e6,
            p50: tally.percentile(50.0),
            p99: tally.percentile(99.0),
            p999: tally.percentile(99.9),
            longest: tally.longest(),
            kicks: real(tally.kicks) / each,
            calls: real(tally.calls) / each,
            pieces: real(tally.pieces) / seconds,
            cpu: ticks.map(|ticks| real(ticks) / TICKS / each * 1e6),
            verified,
            intervals,
            every: plan.every,
            title: format!(
                "{} of {} bytes, depth {}, {} queue{}",
                plan.pattern.name(),
                plan.size,
                plan.depth,
                plan.queues,
                if plan.queues == 1 { "" } else { "s" },
            ),
        }
    }

    /// Latencies in microseconds, everything else in the units of the fields.
    pub fn json(&self) -> Value {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let interval =
            |one: &Interval| json!({"requests": one.requests, "max_us": micros(one.longest)});
        let intervals: Vec<Value> = self.intervals.iter().map(interval).collect();
        json!({
            "requests": self.requests,
            "reads": self.reads,
            "seconds": self.elapsed.as_secs_f64(),
            "iops": self.iops,
            "megabytes_per_second": self.megabytes,
            "p50_us": micros(self.p50),
            "p99_us": micros(self.p99),
            "p999_us": micros(self.p999),
            "max_us": micros(self.longest),
            "kicks_per_request": self.kicks,
            "interrupts_per_request": self.calls,
            "pieces_per_second": self.pieces,
            "cpu_seconds_per_million": self.cpu,
            "verified_blocks": self.verified,
            "interval_seconds": self.every.as_secs_f64(),
            "intervals": intervals,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        writeln!(
            f,
            "  {:.0} IOPS, {:.1} MB/s: {} requests ({} reads) in {:.2} s",
            self.iops,
            self.megabytes,
            self.requests,
            self.reads,
            self.elapsed.as_secs_f64()
        )?;
        writeln!(
            f,
            "  latency p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}, max {:.1?}",
            self.p50, self.p99, self.p999, self.longest
        )?;
        write!(
            f,
            "  {:.4} kicks and {:.4} interrupts per request",
            self.kicks, self.calls
        )?;
        if self.pieces > 0.0 {
            write!(
                f,
                "\n  {:.1} MiB per second discarded and refilled",
                self.pieces
            )?;
        }
        if let Some(cpu) = self.cpu {
            write!(
                f,
                "\n  {cpu:.2} CPU seconds per million requests in the back-end"
            )?;
        }
        if self.verified > 0 {
            write!(
                f,
                "\n  {} written blocks read back unchanged",
                self.verified
            )?;
        }
        for (one, number) in self.intervals.iter().zip(1_u32..) {
            let requests = one.requests;
            let end = (self.every * number).as_secs_f64();
            write!(
                f,
                "\n  until {end:.3} s: {requests} requests, max {:.1?}",
                one.longest
            )?;
        }
        Ok(())
    }
}
