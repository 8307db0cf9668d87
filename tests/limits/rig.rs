//! A process with limits, and a guest that always wants more.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ::rig::files::pattern;
use ::rig::operator::ask;
use extentd::protocol::Request;
use extentd::protocol::limits::LimitNumbers;
use front_end::load::{Client, Extent, Plan, Waiting};
use front_end::{Buffer, Daemon, Driver, GuestMemory, Like, Op, Session, Setup, Wanted};
use serde_json::Value;
use tempfile::TempDir;

/// Bytes of the image.
const IMAGE: usize = 32 << 20;
/// Bytes of a request where the size does not matter.
pub const BLOCK: u32 = 4096;
/// Guest memory in bytes; data lie in its second half.
const MEMORY: u64 = 8 << 20;

/// A process that serves an image in memory. Its folder lives as long.
pub struct Disk {
    pub daemon: Daemon,
    pub control: PathBuf,
    _folder: TempDir,
}

/// A folder in memory, as the file of a group needs it.
pub fn folder() -> TempDir {
    let builder = &mut tempfile::Builder::new();
    builder
        .prefix("extentd-limits.")
        .tempdir_in("/dev/shm")
        .unwrap()
}

pub fn image(folder: &Path) -> PathBuf {
    let path = folder.join("image");
    std::fs::write(&path, pattern(3, 0, IMAGE)).unwrap();
    path
}

pub fn start(folder: &Path, image: &Path, arguments: &[&str]) -> Daemon {
    let control = folder.join("control");
    let mut all = vec!["--control-path", control.to_str().unwrap()];
    all.extend(arguments);
    Daemon::start(&::rig::extentd!(), &folder.join("socket"), image, &all).unwrap()
}

impl Disk {
    pub fn new(arguments: &[&str]) -> Self {
        let folder = folder();
        let image = image(folder.path());
        Self {
            daemon: start(folder.path(), &image, arguments),
            control: folder.path().join("control"),
            _folder: folder,
        }
    }

    pub fn socket(&self) -> &Path {
        self.daemon.socket()
    }

    pub fn stats(&self) -> Stats {
        Stats(ask(&self.control, &Request::Stats {}))
    }

    pub fn extentctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(::rig::extentctl!())
            .arg("--control-path")
            .arg(&self.control)
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sets a limit on requests; what is in force then.
    pub fn set_iops(&self, iops: u64) -> Value {
        let mut set = LimitNumbers::default();
        set.iops = Some(iops);
        ask(&self.control, &Request::Limits { set })
    }
}

/// The counters at a moment.
pub struct Stats(Value);

impl Stats {
    pub fn get(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap()
    }

    /// How much more of something there is than at another moment, and how
    /// many seconds lie between.
    pub fn since(&self, before: &Self, name: &str) -> (f64, f64) {
        let grown = |name| real(self.get(name) - before.get(name));
        (grown(name), grown("uptime_ms") / 1000.0)
    }
}

/// Counts here stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
pub fn real(count: u64) -> f64 {
    count as f64
}

/// Runs a load, of which nobody asks more than that it goes on, beside `look`.
pub fn beside<T>(socket: &Path, plan: Plan, look: impl FnOnce() -> T) -> T {
    let plan = Plan {
        waiting: Waiting::Call,
        extent: Extent::Time {
            warm_up: Duration::ZERO,
            counted: Duration::from_millis(200),
        },
        ..plan
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(socket, plan).unwrap();
            while !over.load(Ordering::Relaxed) {
                client.run().unwrap();
            }
        });
        let _over = Over(&over);
        look()
    })
}

/// Ends the load however the look at it ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A guest with some queues, each of which always has requests waiting.
pub struct Guest {
    pub session: Session,
    pub drivers: Vec<Driver>,
    /// Requests that have ended, of each queue.
    pub ended: Vec<u64>,
    begun: Vec<u64>,
    depth: u64,
    _memory: GuestMemory,
}

impl Guest {
    pub fn new(socket: &Path, queues: u16, depth: u64) -> front_end::Result<Self> {
        let wanted = Wanted {
            queues,
            ..Wanted::default()
        };
        let mut session = Session::open(socket, Like::Qemu, wanted)?;
        let memory = GuestMemory::flat(MEMORY)?;
        let setup = Setup {
            size: 64,
            features: session.features,
            indirect: 4,
        };
        let mut drivers: Vec<Driver> = Vec::new();
        for _ in 0..queues {
            let base = drivers.last().map_or(0, Driver::end);
            drivers.push(Driver::new(&memory, base.next_multiple_of(4096), setup)?);
        }
        assert!(drivers.last().is_none_or(|last| last.end() <= MEMORY / 2));
        let rings: Vec<_> = drivers.iter().map(Driver::ring).collect();
        session.start(&memory, &rings)?;
        Ok(Self {
            session,
            ended: vec![0; drivers.len()],
            begun: vec![0; drivers.len()],
            drivers,
            depth,
            _memory: memory,
        })
    }

    /// Takes what has ended, and offers as much anew.
    pub fn turn(&mut self) -> front_end::Result<()> {
        let queues = self.drivers.iter_mut().zip(&mut self.ended);
        for ((driver, ended), begun) in queues.zip(&mut self.begun) {
            while let Some(done) = driver.pop()? {
                assert_eq!(done.status, 0);
                *ended += 1;
            }
            while *begun < *ended + self.depth {
                let data = [Buffer::writable(MEMORY / 2, BLOCK)];
                assert!(driver.submit(Op::Read, *begun % 4096 * 8, &data, 0));
                *begun += 1;
            }
            driver.publish()?;
        }
        Ok(())
    }

    /// Goes on for a time; how many requests have ended in it.
    pub fn go_on(&mut self, time: Duration) -> front_end::Result<u64> {
        let (start, before) = (Instant::now(), self.ended.iter().sum::<u64>());
        while start.elapsed() < time {
            self.turn()?;
            // No call is waited for: each turn looks at all queues.
            thread::sleep(Duration::from_micros(500));
        }
        Ok(self.ended.iter().sum::<u64>() - before)
    }
}
