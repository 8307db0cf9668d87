//! The command line of `extentd` as it is typed.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use vhost_backend::{LimitKey, PollTime};

use crate::host::socket;
use crate::options::address::{self, Address};
use crate::options::config::{
    Config, ConfigError, DiskOptions, IoPath, LimitOptions, LogLevel, MAX_QUEUE_SIZE, MAX_QUEUES,
    MIN_QUEUE_SIZE, OnError, Socket, Swap,
};
use crate::options::limit::{self, LimitList};
use crate::options::size;
use crate::options::usage;

/// Serves a disk image to a virtual machine as a vhost-user-blk back-end.
///
/// It runs in the foreground until SIGTERM or SIGINT. On SIGUSR2 it drains and
/// becomes the binary that is installed by now; on SIGHUP it looks whether the
/// image has another size, and what has changed in the file of --config. The log
/// goes to standard error.
#[derive(Debug, Parser)]
#[command(name = "extentd", version, about, long_about)]
pub struct Args {
    /// Listen on this UNIX socket; a file left behind by a dead process is replaced
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Use an inherited socket, listening or already connected (without either, systemd's
    /// LISTEN_FDS is used)
    #[arg(long, value_name = "N", conflicts_with = "socket_path", value_parser = descriptor)]
    pub fd: Option<RawFd>,

    /// The image: a regular file or a block device
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present_any = ["print_capabilities", "config"]
    )]
    pub blk_file: Option<PathBuf>,

    /// Open the image for reading only and offer a read-only disk
    #[arg(long)]
    pub read_only: bool,

    /// Queues offered, 1 to 256; those that a front-end does not use cost nothing
    #[arg(long, value_name = "N", default_value_t = MAX_QUEUES, value_parser = usage::number(1..=MAX_QUEUES))]
    pub num_queues: u16,

    /// Largest ring accepted, in entries: a power of two, 16 to 32768
    #[arg(long, value_name = "N", default_value_t = MAX_QUEUE_SIZE, value_parser = queue_size)]
    pub queue_size: u16,

    /// Worker threads [default: as many as CPUs, at most one per queue]
    #[arg(long, value_name = "N", value_parser = usage::number(1..=MAX_QUEUES))]
    pub threads: Option<u16>,

    /// Pin the worker threads to these CPUs in turn, as in 0-3,6
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub cpus: Option<CpuList>,

    /// How requests reach the image
    #[arg(long, value_enum, value_name = "WAY", default_value_t = IoPath::Auto)]
    pub io_path: IoPath,

    /// Pin all guest memory and use it as registered buffers: less CPU time per request, but data
    /// are lost where the guest's memory is ballooned, reported free or unplugged by virtio-mem
    #[arg(long)]
    pub pin_guest_memory: bool,

    /// How long a worker looks for work before it sleeps, in microseconds (0 never); auto learns
    /// it. Unless it is 0, a device with queues that never interrupt (io_poll) is polled while that
    /// pays
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = poll_time)]
    pub poll_us: PollTime,

    /// Memory that the map of the image's extents may take: bytes, or with K, M, G or T
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = map_budget)]
    pub map_budget: u64,

    /// Memory besides that for parts of the map that extentctl advise pin keeps: bytes, or with K,
    /// M, G or T
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = size::parse)]
    pub pin_reserve: u64,

    /// Be fit to swap on: the image is prepared, all memory is locked, nothing is allocated on the
    /// way. With =best-effort, go on where that is not possible
    #[arg(long, value_enum, value_name = "demanded|best-effort", num_args = 0..=1, require_equals = true, default_missing_value = "demanded")]
    pub swap: Option<SwapArg>,

    /// Serial number that the guest sees, at most 20 printable ASCII characters
    #[arg(long, value_name = "S", value_parser = serial)]
    pub serial: Option<Serial>,

    /// Block size that the guest sees [default: the block device's, else 512]
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    pub logical_block_size: Option<u32>,

    /// Keep other users of the image away while a guest uses it
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Set, value_parser = usage::on_off)]
    pub lock: bool,

    /// Most requests and bytes per second, as in iops=1000,read-bytes=100M: iops, read-iops,
    /// write-iops, bytes, read-bytes, write-bytes, and each with burst- before it
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = limit::parse)]
    pub limit: Vec<LimitList>,

    /// Share the limits with all who have this file, on a tmpfs such as /run
    #[arg(long, value_name = "FILE")]
    pub limit_group: Option<PathBuf>,

    /// What becomes of writes for which the image's file system has no room
    #[arg(long, value_enum, value_name = "hold|report", default_value_t = OnError::Hold)]
    pub on_enospc: OnError,

    /// What becomes of requests that the disk under the image fails
    #[arg(long, value_enum, value_name = "hold|report", default_value_t = OnError::Report)]
    pub on_io_error: OnError,

    /// Listen here for extentctl
    #[arg(long, value_name = "PATH")]
    pub control_path: Option<PathBuf>,

    /// Tell metrics over HTTP here, at /metrics: ADDRESS:PORT, PORT on loopback, or unix:PATH
    #[arg(long, value_name = "ADDR", value_parser = address::parse)]
    pub metrics_listen: Option<Address>,

    /// Snapshots go into this folder, on the image's file system: XFS or btrfs
    #[arg(long, value_name = "DIR")]
    pub snapshot_dir: Option<PathBuf>,

    /// Give up what is not needed once the disk is served: system calls, files, capabilities
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Set, value_parser = usage::on_off)]
    pub sandbox: bool,

    /// How much is logged; without it RUST_LOG says that, and without that it is info
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

    /// Read further options from this TOML file: the same keys, without dashes; the command line
    /// wins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print what this back-end can do as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
}

/// `--swap` as typed: the library's enum knows no command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SwapArg {
    /// Do not start unless every property holds
    Demanded,
    /// Go on, and show what does not hold
    BestEffort,
}

impl From<SwapArg> for Swap {
    fn from(typed: SwapArg) -> Self {
        match typed {
            SwapArg::Demanded => Swap::Demanded,
            SwapArg::BestEffort => Swap::BestEffort,
        }
    }
}

/// CPU numbers in the order given, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// The answer to GET_ID, padded with NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial(pub [u8; 20]);

impl Args {
    /// Checks what single options cannot show. `activated` are the sockets
    /// that a service manager has handed over (LISTEN_FDS); a socket on the
    /// command line comes before them, if it is not the same.
    ///
    /// # Errors
    /// Names the option and what to do.
    pub fn into_config(self, activated: &[RawFd]) -> Result<Config, ConfigError> {
        let socket = match (self.socket_path, self.fd, activated) {
            // The process that this one was before a handover.
            (Some(path), _, &[fd]) if socket::listens_at(fd, &path) => Socket::Adopted(path, fd),
            (Some(path), _, _) => Socket::Path(path),
            (None, Some(fd), _) => Socket::Inherited(fd),
            (None, None, [fd]) => Socket::Activated(*fd),
            (None, None, []) => return Err(ConfigError::NoSocket),
            (None, None, several) => return Err(ConfigError::SeveralSockets(several.len())),
        };
        if let (Some(control), Socket::Path(path) | Socket::Adopted(path, _)) =
            (&self.control_path, &socket)
            && control == path
        {
            return Err(ConfigError::OnePath(control.clone()));
        }
        if let Some(Address::Unix(path)) = &self.metrics_listen {
            let front_end = match &socket {
                Socket::Path(path) | Socket::Adopted(path, _) => Some(path),
                Socket::Inherited(_) | Socket::Activated(_) => None,
            };
            let sockets = [
                ("--control-path", self.control_path.as_ref()),
                ("--socket-path", front_end),
            ];
            if let Some((option, _)) = sockets.iter().find(|(_, one)| *one == Some(path)) {
                return Err(ConfigError::MetricsPath(option, path.clone()));
            }
        }
        let threads = match self.threads {
            Some(threads) if threads > self.num_queues => {
                return Err(ConfigError::IdleThreads {
                    threads,
                    queues: self.num_queues,
                });
            }
            Some(threads) => usize::from(threads),
            None => {
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                usize::from(self.num_queues).min(cpus)
            }
        };
        let swap = self.swap.map(Swap::from);
        if swap.is_some() && self.read_only {
            return Err(ConfigError::SwapReadOnly);
        }
        if swap.is_some() && self.snapshot_dir.is_some() {
            return Err(ConfigError::SwapSnapshots);
        }
        if swap == Some(Swap::Demanded) && self.io_path == IoPath::File {
            return Err(ConfigError::SwapByFile);
        }
        Ok(Config {
            socket,
            image: self.blk_file.ok_or(ConfigError::NoImage)?,
            disk: DiskOptions {
                read_only: self.read_only,
                logical_block_size: self.logical_block_size,
                serial: self.serial.map_or([0; 20], |serial| serial.0),
                lock: self.lock,
                io_path: self.io_path,
                map_budget: self.map_budget,
                pin_guest_memory: self.pin_guest_memory,
                pin_reserve: self.pin_reserve,
                swap,
                on_enospc: self.on_enospc,
                on_io_error: self.on_io_error,
                may_poll: self.poll_us != PollTime::Never,
            },
            server: vhost_backend::Options {
                queues: self.num_queues,
                queue_size: self.queue_size,
                workers: threads,
                cpus: self.cpus.map(|list| list.0).unwrap_or_default(),
                poll: self.poll_us,
            },
            limits: limits(self.limit, self.limit_group)?,
            control_path: self.control_path,
            metrics_listen: self.metrics_listen,
            snapshot_dir: self.snapshot_dir,
            sandbox: self.sandbox,
        })
    }
}

/// Of all `--limit`, each limit once.
fn limits(lists: Vec<LimitList>, group: Option<PathBuf>) -> Result<LimitOptions, ConfigError> {
    let mut values: Vec<(LimitKey, u64)> = Vec::new();
    for (key, value) in lists.into_iter().flat_map(|list| list.0) {
        if values.iter().any(|(known, _)| *known == key) {
            return Err(ConfigError::LimitTwice(key.name()));
        }
        values.push((key, value));
    }
    // A group may have the rate already.
    for (key, _) in values.iter().filter(|_| group.is_none()) {
        let LimitKey::Burst(of) = *key else { continue };
        let rate = LimitKey::Rate(of);
        if !values
            .iter()
            .any(|(known, value)| *known == rate && *value > 0)
        {
            return Err(ConfigError::BurstAlone(key.name(), rate.name()));
        }
    }
    Ok(LimitOptions { values, group })
}

fn descriptor(text: &str) -> Result<RawFd, String> {
    match usage::number(0..=RawFd::MAX)(text)? {
        libc::STDERR_FILENO => Err("the log goes there: give another descriptor".to_owned()),
        fd => Ok(fd),
    }
}

fn queue_size(text: &str) -> Result<u16, String> {
    text.parse::<u16>()
        .ok()
        .filter(|size| size.is_power_of_two() && (MIN_QUEUE_SIZE..=MAX_QUEUE_SIZE).contains(size))
        .ok_or_else(|| format!("give a power of two, {MIN_QUEUE_SIZE} to {MAX_QUEUE_SIZE}"))
}

/// Longer looks than a second are no looks.
const MAX_POLL_US: u64 = 1_000_000;

fn poll_time(text: &str) -> Result<PollTime, String> {
    if text == "auto" {
        return Ok(PollTime::Adaptive);
    }
    match text.parse() {
        Ok(0) => Ok(PollTime::Never),
        Ok(time @ 1..=MAX_POLL_US) => Ok(PollTime::Fixed(Duration::from_micros(time))),
        _ => Err("give auto, or 0 to 1000000 microseconds".to_owned()),
    }
}

/// Smallest budget of a map: some windows of a badly fragmented file.
const MIN_BUDGET: u64 = 1 << 20;

fn map_budget(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text).map_err(|error| error.to_string())?;
    if bytes < MIN_BUDGET {
        return Err("give at least 1M".to_owned());
    }
    Ok(bytes)
}

fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("give 512 or 4096".to_owned()),
    }
}

fn serial(text: &str) -> Result<Serial, String> {
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() || byte == b' ')
    {
        return Err("only printable ASCII characters can be shown to the guest".to_owned());
    }
    let mut serial = [0; 20];
    serial
        .get_mut(..text.len())
        .ok_or_else(|| {
            format!(
                "{} bytes long, but 20 is the most that virtio-blk holds",
                text.len()
            )
        })?
        .copy_from_slice(text.as_bytes());
    Ok(Serial(serial))
}

/// Highest CPU number: what `cpu_set_t` holds.
const MAX_CPU: usize = 1023;

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| {
            usage::number(0..=MAX_CPU)(text)
                .map_err(|_| format!("'{part}' names no CPU: give a list like 0-3,6"))
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("'{part}' counts backwards"));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} is named twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(CpuList(cpus))
}

#[cfg(test)]
mod tests;
