//! The command line of `extentctl`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use extentd::options::address::{self, Address};
use extentd::options::byte_range::{self, TypedRange};
use extentd::options::config::{IoPath, LogLevel, OnError};
use extentd::options::size;
use extentd::options::usage;
use extentd::process::prepare_command::PrepareCommand;
use extentd::protocol::Advice;
use extentd::protocol::limits::LimitNumbers;
use extentd::protocol::words::meaning;
use mapping::KindName;

use crate::backups::{BackupCommand, CloneCommand, RestoreCommand, UnshareCommand};
use crate::differ::DiffCommand;
use crate::events::Wanted;

/// Where the control sockets of a host are, if nothing else is said.
pub const FOLDER: &str = "/run/extentd";

const EXAMPLES: &str = "\
Examples:
  extentctl --control-path /run/extentd/vm1.control info
  extentctl --control-path /run/extentd/vm1.control advise pin 0..4G
  extentctl --control-path /run/extentd/vm1.control map --svg vm1.svg
  extentctl --control-path /run/extentd/vm1.control top --interval 1
  extentctl --all info
  extentctl --all events path-changed thread-stands

Exit status: 0 when done; 1 when extentd refuses or something fails; 2 for a wrong command line; 3 when nobody answers; 4 when the extentd that was watched has gone (events, top); 130 when a signal has ended it (backup, restore, unshare, prepare). Of several disks the highest is told. What went wrong is one line on standard error.";

const RANGES: &str = "\
RANGE is all, START..END (END not included), START.. (to the end) or START+LENGTH; numbers are bytes, or have K, M, G or T (powers of 1024), s (sectors of 512 bytes) or % (of the disk). Ranges are widened to the windows of the map (4 MiB), except for dontneed, which only drops windows that lie wholly inside.

Where requests go by the file they look nothing up: what willneed and populate load then is there to be shown (map), and the file system has read for it what it did not know. A pin needs the disk path, and so a running guest. No advice changes what the guest sees, only how fast it is. What is pinned stays pinned when the disk path is left, and is loaded again when it is entered.

With --from the ranges of a file are taken one after the other, in its order, and willneed returns when they are loaded: extentctl --json map >boot.json when a guest has booted, and advise willneed --from boot.json when it boots the next time. A file may also have a range a line, with # before remarks.";

const MAP: &str = "\
Each line is a run of one kind: where it starts in the image, its length, where it lies on the device (all in bytes), its kind, and whether the map has it in memory. Looking loads nothing and writes nothing out, so what the file system has not placed yet is opaque.

--heat watches in eight looks which windows of the map requests look up while they go by the disk, and draws for each in how many looks it was. What guests read again from their own memory is not seen, nor what goes by the file.";

const IO_PATH: &str = "\
disk: straight to the device, past the file system; file: direct I/O on the image; auto: disk whenever that is safe.

The disk path is used while a guest is there, no operator has chosen file, and nobody else has the image open. file returns when no raw I/O is in flight any more. disk allows the path as auto does, tries it at once and tells what is in the way; without a guest it only tries. The choice lasts until extentd ends.";

const QUIESCE: &str = "\
The guest sees requests that take longer, and no error. Give several disks to hold them all at one moment: where one of \
them cannot be held, the others go on. A script copies or clones the images between this and resume; if it dies, the \
disks go on by themselves (--for).";

const LIMITS: &str = "\
What is not given stays as it is; none lifts a limit. The new limits hold at once, for requests that wait already too. In a group (--limit-group) they are those of all its disks.

A burst is what may come at once after less was used, and at least what 40 ms bring.";

const SNAPSHOT: &str = "\
The guest sees requests that take longer, and no error: all wait for a moment until those in flight have ended, and afterwards each \
that changes what the file system has not cloned yet waits for that, some milliseconds at most. The command ends when the snapshot is \
whole and stable. A snapshot is a file like any other: cp, qemu-img and extentctl diff read it, rm removes it. It shares its blocks with the \
image until one of them changes, so keep room for what the guest may write. It has what was acknowledged to the guest before, as after \
a power failure: have the guest sync or freeze its file systems first, if more is wanted.

Give several disks (--control-path again, or --all) to have all of one moment: they are held still together.";

const DIFF: &str = "\
Each line is a range: where it starts and its length in bytes, and whether B reads zeros there or data. Whoever has A makes B of it by \
copying these ranges, and by giving it the length of B. The bytes are not read: ranges are those whose extents lie at different \
places, so a file that was defragmented differs where its bytes do not, and what is not told is the same.

A and B are clones of one image on one XFS or btrfs (cp --reflink=always, or a snapshot). On different file systems all is told \
that is not zeros in both. Where the disk of --control-path is compared, its requests go by the file for some seconds afterwards.";

const BACKUP: &str = "\
In a folder the file is SNAPSHOT.full.backup, or SNAPSHOT.since-OLDER.backup. It is there whole or not at all, and nothing is replaced. \
An increment has what extentctl diff tells, and names the snapshot that it is based on: keep OLDER until it is written, and all backups \
that it is based on for as long as it is kept. Zeros are not stored, each piece has its SHA-256, and so has the whole.

  extentctl backup snapshots/monday --to /backups
  extentctl backup snapshots/tuesday --since snapshots/monday --to - | ssh host 'cat >tuesday.since-monday.backup'

With --to - what was written is said on standard error, with --json too.";

const RESTORE: &str = "\
The image is there whole or not at all, sparse, and nothing is replaced. Every sum is checked, and that each increment is based on the \
backup before it. Backups from a pipe come one after the other, the full one first.

  extentctl restore /backups/tuesday.since-monday.backup vm1.img
  ssh host 'cat monday.full.backup tuesday.since-monday.backup' | extentctl restore - vm1.img";

const CLONE: &str = "\
Both are on one XFS (made with reflink=1) or one btrfs. It takes as long as the snapshot has extents, and no room: each block takes room \
when one of the two is written there first. The new image is there whole or not at all, and nothing is replaced.";

const UNSHARE: &str = "\
Blocks that other files use as well are copied, so that writes to them need no room any more, take the disk path again at once, and \
--swap is possible. It needs XFS, and as much room as is shared. Ctrl-C ends it; what is done stays done, and the next run goes on.

Without IMAGE it is the disk of --control-path, while its guest uses it. The command returns when it has begun; extentctl info and \
extentctl events unshare-ended tell of it. Its pieces are small, and the guest has as much time as they take, or more by --rate. It waits \
while a snapshot is made, the disk is held still, or no guest uses it. What a snapshot shares meanwhile may stay shared.

  extentctl --control-path /run/extentd/vm1.control unshare --rate 50M --wait";

const ON_ERROR: &str = "\
hold: the request waits, the guest sees no error, and it is tried again by itself and by retry. report: the guest is told; what is held is tried once more, and told if it fails again. The choice lasts until extentd ends.";

const TOP: &str = "\
On a terminal it is one screen that follows the counters until q or Ctrl-C is pressed: requests and bytes a second, how long requests take, by which way they go, and the map. Where standard output is no terminal, screens are printed one after the other: the first has totals only, each later one the rates since the screen before. With --json each is one line with all counters.";

const EVENTS: &str = "\
Each line is the time, the kind, and what has happened; with --json each is one line with its number. Who does not read in time loses the oldest, and is told how many. The exit status is 4 when extentd has gone.";

const EXPORTER: &str = "\
Metrics are at /metrics by HTTP, as OpenMetrics or as the text format of Prometheus by what is asked for. With --all disks may come and go. Without --all or --control-path those of /run/extentd are told.

All disks are asked at once, each for as long as --timeout at most. extentd_up is 0 for one that has not answered, and nothing else is told of it. A socket of unix:PATH has the mode 0600.";

const COMPLETIONS: &str = "\
bash: extentctl completions bash >/usr/share/bash-completion/completions/extentctl; zsh: into a file _extentctl in a folder of $fpath; fish: into ~/.config/fish/completions/extentctl.fish";

/// Shows and changes what a running extentd serves.
#[derive(Debug, Parser)]
#[command(name = "extentctl", version, after_long_help = EXAMPLES)]
pub struct Args {
    /// The --control-path of that extentd; given again, of one more
    #[arg(long, value_name = "PATH")]
    pub control_path: Vec<PathBuf>,

    /// All whose control sockets (*.control, *.ctl) are in FOLDER
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, require_equals = true,
        default_missing_value = FOLDER, conflicts_with = "control_path")]
    pub all: Option<PathBuf>,

    /// Print the answer as JSON
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show what is served, how, and to whom
    Info {
        /// The options that are in force, as the file of --config would have them
        #[arg(long)]
        config: bool,
    },
    /// Check whether the disk is swap-grade; the exit status is 1 if it is not
    Selftest,
    /// Make an image fit to swap on: every block allocated and written. Needs no extentd, and goes
    /// on where it was interrupted
    Prepare(PrepareCommand),
    /// Change the size of the disk; a running guest is told
    Resize {
        /// The new size: bytes, or with K, M, G or T (powers of 1024)
        #[arg(value_name = "SIZE", value_parser = size::parse)]
        bytes: u64,
    },
    /// Show the counters since the start
    Stats,
    /// Show the counters as rates, again and again
    #[command(after_long_help = TOP)]
    Top {
        /// Seconds between two screens, 0.1 to 3600
        #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = interval)]
        interval: Duration,
        /// End after so many screens [default: go on until interrupted]
        #[arg(long, value_name = "N", value_parser = usage::number(1..=u64::MAX))]
        count: Option<u64>,
        /// Print one screen as plain lines
        #[arg(long, conflicts_with = "count")]
        once: bool,
        /// Draw the last screen into this file instead, by default the second one
        #[arg(long, value_name = "FILE", conflicts_with_all = ["once", "json"])]
        svg: Option<PathBuf>,
    },
    /// Show the extents of the image, and what the map has in memory
    #[command(after_long_help = map_help())]
    Map {
        /// The part of the disk: all, START..END or START+LENGTH
        #[arg(value_name = "RANGE", default_value = "all", value_parser = byte_range::parse)]
        range: TypedRange,
        /// Most lines; what lies behind them is named
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = usage::number(1..=1_000_000_u32))]
        limit: u32,
        /// Draw all of the range into this file instead
        #[arg(long, value_name = "FILE", conflicts_with_all = ["limit", "json"])]
        svg: Option<PathBuf>,
        /// Draw all of the range with characters instead
        #[arg(long, conflicts_with_all = ["limit", "json", "svg"])]
        draw: bool,
        /// Watch for 4 seconds, or so many, which windows requests look up, and draw that too
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
            default_missing_value = "4", value_parser = watched)]
        heat: Option<Duration>,
    },
    /// Say what the map should have in memory
    #[command(after_long_help = RANGES)]
    Advise {
        /// What is said
        #[arg(value_enum, value_name = "ADVICE")]
        advice: Advice,
        /// About what: all, START..END or START+LENGTH
        #[arg(value_name = "RANGE", value_parser = byte_range::parse, required_unless_present = "from")]
        range: Option<TypedRange>,
        /// About all ranges of this file: what map --json has written, or a range a line
        #[arg(long, value_name = "FILE", conflicts_with = "range")]
        from: Option<PathBuf>,
    },
    /// Load extents into the map and return when they are, as far as its budget reaches
    #[command(after_long_help = RANGES)]
    Populate {
        /// The part of the disk: all, START..END or START+LENGTH
        #[arg(value_name = "RANGE", default_value = "all", value_parser = byte_range::parse)]
        range: TypedRange,
    },
    /// Show how much is logged, and change it if a level is given
    LogLevel {
        /// From now on
        #[arg(value_enum, value_name = "LEVEL")]
        level: Option<LogLevel>,
    },
    /// Choose how requests may reach the image
    #[command(after_long_help = IO_PATH)]
    IoPath {
        /// The way
        #[arg(value_enum, value_name = "WAY")]
        path: IoPath,
    },
    /// Show limits on requests and bytes per second, and change those that are given
    #[command(after_long_help = LIMITS)]
    Limits(LimitNumbers),
    /// Choose what becomes of requests that the host fails; show what is in force
    #[command(after_long_help = ON_ERROR)]
    OnError {
        /// Where the image's file system has no room
        #[arg(long, value_enum, value_name = "hold|report")]
        enospc: Option<OnError>,
        /// Where the disk under the image fails
        #[arg(long, value_enum, value_name = "hold|report")]
        io_error: Option<OnError>,
    },
    /// Have requests that are held tried again now
    Retry,
    /// Hold disks still: nothing is fetched, and nothing is in flight when this returns
    #[command(after_long_help = QUIESCE)]
    Quiesce {
        /// They go on by themselves after so many seconds
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 10, value_parser = usage::number(1..=3600_u64))]
        hold: u64,
        /// How many seconds requests in flight may take to end; then the disks go on
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = usage::number(1..=60_u64))]
        within: u64,
        /// Make what was written stable as well
        #[arg(long)]
        sync: bool,
    },
    /// Let disks go on that are held still
    Resume {
        /// Only if it is this hold, by the number that quiesce has answered with --json
        #[arg(long, value_name = "NUMBER")]
        hold: Option<u64>,
    },
    /// Keep the image as it is now, under NAME in the folder of --snapshot-dir; several disks at
    /// one moment
    #[command(after_long_help = SNAPSHOT)]
    Snapshot {
        /// Its name there
        #[arg(value_name = "NAME", required_unless_present = "cancel")]
        name: Option<String>,
        /// Give up the one that is being made instead: there will be none
        #[arg(long, conflicts_with_all = ["name", "within"])]
        cancel: bool,
        /// How many seconds requests in flight may take to end; then there is none
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = usage::number(1..=60_u64))]
        within: u64,
    },
    /// Show the snapshots that are there
    Snapshots,
    /// Show where two snapshots differ, or a snapshot and the disk as it is. Needs no extentd for
    /// snapshots
    #[command(after_long_help = DIFF)]
    Diff(DiffCommand),
    /// Write a snapshot, or what differs from an older one, to a folder or a pipe. Needs no extentd
    #[command(after_long_help = BACKUP)]
    Backup(BackupCommand),
    /// Make a new image of backups. Needs no extentd
    #[command(after_long_help = RESTORE)]
    Restore(RestoreCommand),
    /// Make a new image that shares its blocks with a snapshot. Needs no extentd
    #[command(after_long_help = CLONE)]
    Clone(CloneCommand),
    /// Give an image blocks of its own: one that nobody uses, which needs no extentd, or a disk
    /// that is served
    #[command(after_long_help = UNSHARE)]
    Unshare(UnshareCommand),
    /// Print the counters as OpenMetrics text, for Prometheus and its kin
    Metrics,
    /// Tell the metrics of all disks in one place, for Prometheus and its kin
    #[command(after_long_help = EXPORTER)]
    Exporter {
        /// Where: ADDRESS:PORT, PORT on loopback, or unix:PATH
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9925", value_parser = address::parse)]
        listen: Address,
        /// Seconds that a disk has for its answer, 0.1 to 3600
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
        timeout: Duration,
    },
    /// Show what happens, as it happens, until extentd ends
    #[command(after_long_help = EVENTS)]
    Events(Wanted),
    /// Print what a shell needs to complete command lines. Needs no extentd
    #[command(after_long_help = COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_enum, value_name = "SHELL")]
        shell: Shell,
    },
}

impl Command {
    /// Its name, where it cannot be for several disks.
    pub fn of_one_disk(&self) -> Option<&'static str> {
        match self {
            Command::Top { .. } => Some("top"),
            Command::Metrics => Some("metrics"),
            Command::Diff(_) => Some("diff"),
            Command::Map { svg: Some(_), .. } => Some("map --svg"),
            _ => None,
        }
    }
}

/// With each kind of extent and what it is.
fn map_help() -> String {
    let kinds = KindName::ALL.map(|kind| format!("{kind} ({})", meaning(kind)));
    format!(
        "{MAP}\n\nKinds: {}. After opaque the reason follows.",
        kinds.join(", ")
    )
}

fn watched(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.1..=80.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "give seconds, 0.1 to 80".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "give seconds, 0.1 to 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let start = ["extentctl", "--control-path", "c"];
        Args::try_parse_from(start.into_iter().chain(line.split(' ')))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn json_may_stand_before_and_after_the_command() {
        for line in ["--json info", "info --json"] {
            let args = parse(line).unwrap();
            assert!(args.json && matches!(args.command, Command::Info { config: false }));
        }
    }

    #[test]
    fn values_are_parsed_before_anybody_is_asked() {
        assert!(matches!(
            parse("resize 2G").unwrap().command,
            Command::Resize { bytes: 0x8000_0000 }
        ));
        let range = |text| byte_range::parse(text).unwrap();
        assert!(matches!(
            parse("advise pin 1M+1M").unwrap().command,
            Command::Advise { advice: Advice::Pin, range: Some(given), from: None } if given == range("1M+1M")
        ));
        assert!(matches!(
            parse("advise willneed --from boot").unwrap().command,
            Command::Advise {
                advice: Advice::Willneed,
                range: None,
                from: Some(_)
            }
        ));
        assert!(matches!(
            parse("populate 10%..").unwrap().command,
            Command::Populate { range: given } if given == range("10%..")
        ));
        for (line, seconds) in [("map --heat", 4), ("map --heat=9 --svg f", 9)] {
            assert!(matches!(
                parse(line).unwrap().command,
                Command::Map { heat: Some(time), .. } if time.as_secs() == seconds
            ));
        }
        assert!(matches!(
            parse("top --interval 0.5 --count 3").unwrap().command,
            Command::Top { interval, count: Some(3), once: false, svg: None } if interval.as_millis() == 500
        ));
        for wrong in [
            "resize 2X",
            "advise pin",
            "advise hope all",
            "advise pin 2G..1G",
            "advise willneed all --from f",
            "populate 101%..",
            "log-level loud",
            "map --heat=0",
            "map --draw --json",
            "map 5",
            "map --limit 0",
            "map --svg f --json",
            "io-path raw",
            "limits --iops 1K",
            "limits --bytes lots",
            "top --interval 0",
            "top --interval NaN",
            "top --count 0",
            "top --count 2 --once",
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn every_command_explains_itself() {
        let page = include_str!("../../../docs/options.md");
        for command in Args::command().get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            assert!(
                page.contains(&format!("`{name}")),
                "{name} in docs/options.md"
            );
        }
    }
}
