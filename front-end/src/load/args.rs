//! The command line of `extentd-load`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};

use super::pattern::Pattern;
use super::plan::{Extent, Plan, Waiting};

/// Drives a vhost-user-blk back-end without a guest, and reports what it does.
///
/// All requests of a queue are replaced as soon as they end. The load overwrites the disk where the
/// pattern writes.
#[derive(Debug, Parser)]
#[command(name = "extentd-load", version, about, long_about)]
pub struct Args {
    /// Where the back-end listens
    #[arg(long, value_name = "PATH")]
    pub socket_path: PathBuf,

    /// What to do
    #[arg(long, value_enum, default_value_t = Pattern::Randread)]
    pub pattern: Pattern,

    /// Bytes of a request: a multiple of 512, also with K or M
    #[arg(long, value_name = "BYTES", default_value = "4K", value_parser = size)]
    pub size: u64,

    /// Requests in flight in each queue
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub depth: u16,

    /// Queues, each with its own part of the range [default: 1, for churn 2]
    #[arg(long, value_name = "N")]
    pub queues: Option<u16>,

    /// Client threads, each for a share of the queues [default: one per queue]
    #[arg(long, value_name = "N")]
    pub threads: Option<u16>,

    /// Entries of each ring: a power of two
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue_size: u16,

    /// Reads in randrw and in queue 0 of churn [default: 50, for churn 100]
    #[arg(long, value_name = "PERCENT")]
    pub read_percent: Option<u8>,

    /// Where churn has its pieces: in the other half of the range, or every second MiB between the
    /// blocks of queue 0
    #[arg(long, value_name = "apart|among", default_value = "apart", action = ArgAction::Set, value_parser = among)]
    pub pieces: bool,

    /// Most that churn discards and refills, in MiB a second
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    pub churn_rate: Option<u32>,

    /// Use only the first part of the disk: bytes, or with K, M, G or T
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub range: Option<u64>,

    /// Seconds that are counted
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub seconds: Duration,

    /// Also report requests and the longest latency in each interval of so many seconds
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub every: Option<Duration>,

    /// Seconds before them that are not
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub warm_up: Duration,

    /// Write into every block where it belongs and how often it was written, check all that is
    /// read, and read everything back at the end
    #[arg(long)]
    pub verify: bool,

    /// CPUs for the client's threads in turn, as in 0,2
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cpu: Vec<usize>,

    /// Sleep until an interrupt as a guest's driver does, instead of polling for completions
    /// (which falls back to interrupts while nothing comes)
    #[arg(long)]
    pub sleep: bool,

    /// Also report the CPU time of this process, the back-end
    #[arg(long, value_name = "PID")]
    pub cpu_of: Option<u32>,

    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// The plan; it is not checked yet.
    pub fn plan(&self) -> Plan {
        let queues = self.queues.unwrap_or(match self.pattern {
            Pattern::Churn => 2,
            _ => 1,
        });
        Plan {
            pattern: self.pattern,
            size: u32::try_from(self.size).unwrap_or(u32::MAX),
            depth: self.depth,
            queues,
            threads: self.threads.unwrap_or(queues),
            queue_size: self.queue_size,
            read_percent: self.read_percent,
            range: self.range,
            among: self.pieces,
            churn_rate: self.churn_rate,
            verify: self.verify.then(std::process::id),
            waiting: if self.sleep {
                Waiting::Call
            } else {
                Waiting::Poll
            },
            cpus: self.cpu.clone(),
            extent: Extent::Time {
                warm_up: self.warm_up,
                counted: self.seconds,
            },
            every: self.every.unwrap_or_default(),
            cpu_of: self.cpu_of,
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.strip_prefix(digits).unwrap_or_default() {
        "" => Some(0),
        "K" => Some(10),
        "M" => Some(20),
        "G" => Some(30),
        "T" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift: u32| digits.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.ok_or_else(|| "give bytes, or a number with K, M, G or T".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

fn among(text: &str) -> Result<bool, String> {
    choice(text, ["apart", "among"])
}

fn choice(text: &str, [no, yes]: [&str; 2]) -> Result<bool, String> {
    match text {
        _ if text == yes => Ok(true),
        _ if text == no => Ok(false),
        _ => Err(format!("give {yes} or {no}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn plan(line: &str) -> Plan {
        let words = ["extentd-load", "--socket-path", "s"];
        let words = words.into_iter().chain(line.split_whitespace());
        Args::try_parse_from(words).unwrap().plan()
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_reach_the_plan() {
        let shortest = plan("");
        shortest.check().unwrap();
        assert_eq!(
            (shortest.size, shortest.depth, shortest.queues),
            (4096, 1, 1)
        );
        let churn = plan("--pattern churn --threads 1 --pieces among --sleep --range 2G");
        churn.check().unwrap();
        assert_eq!((churn.queues, churn.threads, churn.among), (2, 1, true));
        assert_eq!((churn.waiting, churn.range), (Waiting::Call, Some(2 << 30)));
        let timed = plan("--seconds 0.5 --warm-up 0 --cpu 1,0 --size 128K --every 0.1");
        let extent = Extent::Time {
            warm_up: Duration::ZERO,
            counted: Duration::from_millis(500),
        };
        assert_eq!((timed.extent, timed.size), (extent, 128 << 10));
        assert_eq!(
            (timed.every, &timed.cpus[..]),
            (Duration::from_millis(100), &[1, 0][..])
        );
    }

    #[test]
    fn sizes_are_bytes_or_powers_of_1024() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("3M"), Ok(3 << 20));
        for wrong in ["", "K", "4X", "-1", "99999999999T"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
