//! The process that is attacked: started in one way, and looked at after each
//! attack.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use front_end::codes::{feature, status};
use front_end::{Buffer, Daemon, Like, Op, Session, Wanted};
use rig::attached::{Attached, DATA};
use rig::file_systems::{EXT4, Mounted};
use rig::small_image::{IMAGE, content};
use tempfile::TempDir;

use super::resources::{self, Grown, Held};
use super::site::Site;
use super::tried;

/// What attackers may write of the image, in bytes; all else must stay.
pub const FREE: std::ops::Range<usize> = 1 << 20..2 << 20;
/// How long anything may take before it is given up as stuck; the other tests
/// of this program have the same.
pub const STUCK: Duration = Duration::from_secs(60);
/// A machine that does other things as well gives the process as long as this.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a read.
const CHUNK: usize = 256 << 10;
/// How much more it may hold after all cases than before: mappings, and KiB of
/// memory. A page or a mapping that each case leaves behind is more.
const MORE_MAPS: usize = 60;
const MORE_MEMORY: u64 = 48 << 10;
/// What a sanitizer holds back of what was freed.
const QUARANTINE: u64 = 600 << 10;

/// How it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    File,
    Disk,
    Swap,
    /// By the file, with plain system calls.
    Plain,
}

/// A process, its image, and how it was when nobody had attacked it.
pub struct Target {
    way: Way,
    pub site: Site,
    image: PathBuf,
    neighbour: PathBuf,
    log: PathBuf,
    daemon: Option<Daemon>,
    /// Dropped when the thread that started the process may end.
    keeper: Option<mpsc::Sender<()>>,
    before: Option<(Held, Grown)>,
    files: TempDir,
    /// Goes last: the image is on it.
    _mounted: Option<Mounted>,
}

/// A file beside the image.
fn neighbourly() -> Vec<u8> {
    content(77, IMAGE)
}

/// A port that nobody uses just now.
fn port() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

impl Target {
    /// `None`, with the reason printed, where this machine cannot.
    pub fn start(way: Way) -> Option<Self> {
        front_end::set_limit(STUCK);
        let files = rig::scratch::folder("hostile");
        let mounted = match way {
            Way::File | Way::Plain => None,
            Way::Disk | Way::Swap => {
                let mounted = Mounted::new(EXT4);
                if mounted.is_none() {
                    println!("SKIP: no ext4 on a loop device here");
                    return None;
                }
                mounted
            }
        };
        let home = mounted
            .as_ref()
            .map_or(files.path().to_owned(), Mounted::root);
        let (image, neighbour) = (home.join("image"), home.join("neighbour"));
        fs::write(&image, content(0, IMAGE)).unwrap();
        fs::write(&neighbour, neighbourly()).unwrap();
        File::open(&neighbour).unwrap().sync_all().unwrap();
        File::open(&image).unwrap().sync_all().unwrap();
        let path = |name| files.path().join(name);
        let site = Site {
            socket: path("socket"),
            control: Some(path("control")),
            metrics: None,
            files: path("attackers"),
            divisor: if way == Way::File { 1 } else { 10 },
            share: way as usize,
        };
        fs::create_dir(&site.files).unwrap();
        let mut target = Self {
            way,
            site,
            image,
            neighbour,
            log: path("log"),
            daemon: None,
            keeper: None,
            before: None,
            files,
            _mounted: mounted,
        };
        target.run();
        Some(target)
    }

    /// Starts the process, and lets it become as it is in use.
    fn run(&mut self) {
        let address = port();
        self.site.metrics = Some(address);
        let control = self.site.control.clone().unwrap();
        let mut arguments = vec!["--control-path".to_owned(), text(&control)];
        arguments.extend(["--metrics-listen".to_owned(), address.to_string()]);
        arguments.extend(["--threads".to_owned(), "2".to_owned()]);
        let more: &[&str] = match self.way {
            Way::File | Way::Plain => &["--io-path", "file"],
            Way::Disk => &["--io-path", "disk"],
            Way::Swap => &["--swap=best-effort"],
        };
        arguments.extend(more.iter().map(|&one| one.to_owned()));
        let (socket, image) = (self.site.socket.clone(), self.image.clone());
        let log = File::options().create(true).append(true).open(&self.log);
        let log = Stdio::from(log.unwrap());
        let plain = self.way == Way::Plain;
        let (keeper, kept) = mpsc::channel();
        let (sender, started) = mpsc::channel();
        // What a thread must not do, the processes that it starts must not
        // either; and they are to end with it.
        std::thread::spawn(move || {
            if plain {
                rig::plain::forbid_io_uring();
            }
            let all: Vec<_> = arguments.iter().map(String::as_str).collect();
            let daemon = Daemon::start_to(&rig::extentd!(), &socket, &image, &all, &[], log);
            sender.send(daemon).unwrap();
            let _ = kept.recv();
        });
        self.daemon = Some(started.recv().unwrap().unwrap());
        self.keeper = Some(keeper);
        for _ in 0..4 {
            self.serve();
        }
        let control = self.site.control.clone().unwrap();
        rig::operator::wait_info(&control, "nobody", |info| {
            info["session"]["connected"] == false
        });
        self.before = Some((self.quiet(), resources::grown(self.pid())));
    }

    /// What it holds when that does not change any more.
    fn quiet(&self) -> Held {
        let start = Instant::now();
        let mut before = resources::held(self.pid());
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = resources::held(self.pid());
            if now == before && !now.threads.contains_key("control-conn") {
                return now;
            }
            assert!(start.elapsed() < LIMIT, "it is never at rest: {now:?}");
            before = now;
        }
    }

    /// Another process takes its place, whatever has become of this one.
    pub fn restart(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            drop(daemon);
        }
        self.keeper = None;
        fs::write(&self.image, content(0, IMAGE)).unwrap();
        self.run();
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().pid()
    }

    /// The last lines that it has logged.
    pub fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4000)..]).into_owned();
        let lines: Vec<_> = text.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// A correct front-end comes, uses the disk and goes.
    pub fn serve(&self) {
        let session = Session::open(&self.site.socket, Like::Qemu, Wanted::default());
        let mut front = Attached::over(session.unwrap());
        let mut at = 0;
        while at < IMAGE {
            if !FREE.contains(&at) {
                let length = u32::try_from(CHUNK).unwrap();
                let read = front.read(at as u64 / 512, length);
                assert!(read == content(at, CHUNK), "the image has changed at {at}");
            }
            at += CHUNK;
        }
        let mark: Vec<u8> = content(at + 5, 4096);
        let sector = FREE.start as u64 / 512;
        front.write(sector, &mark);
        assert!(front.read(sector, 4096) == mark, "a write was lost");
        // Not aligned, so that there is a buffer in between.
        let odd = [Buffer::writable(DATA + 1, 4096)];
        let done = front.driver.run(Op::Read, sector, &odd).unwrap();
        assert_eq!(done.status, status::OK);
        assert!(front.memory.read(DATA + 1, 4096).unwrap() == mark);
        assert_eq!(front.driver.flush().unwrap().status, status::OK);
        if front.session.features & feature::WRITE_ZEROES != 0 {
            let zeros = front_end::Segment {
                sector: sector + 16,
                sectors: 8,
                flags: 0,
            };
            let done = front.driver.segments(Op::WriteZeroes, DATA, &[zeros]);
            assert_eq!(done.unwrap().status, status::OK);
        }
        front.session.stop(1).unwrap();
    }

    /// How long a correct front-end took to be served by the same process,
    /// which holds what it held before; or what is wrong.
    pub fn check(&mut self) -> Result<Duration, String> {
        let start = Instant::now();
        let served = tried(|| self.serve());
        let took = start.elapsed();
        let daemon = self.daemon.as_mut().unwrap();
        if let Ok(status) = daemon.wait_within(Duration::ZERO) {
            return Err(format!("the process has ended ({status}):\n{}", self.log()));
        }
        served.map_err(|why| format!("nobody is served: {why}\n{}", self.log()))?;
        if took > LIMIT {
            return Err(format!("a correct front-end was served after {took:?}"));
        }
        self.is_at_rest()?;
        Ok(took)
    }

    /// Whoever was there has left nothing behind; some of it takes a moment.
    fn is_at_rest(&self) -> Result<(), String> {
        let (before, small) = self.before.as_ref().unwrap();
        let start = Instant::now();
        loop {
            let held = resources::held(self.pid());
            if &held == before {
                break;
            }
            if start.elapsed() > LIMIT {
                let left = resources::difference(before, &held);
                return Err(format!("something is left behind: {left}"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let now = resources::grown(self.pid());
        let quarantine = std::env::var_os("ASAN_OPTIONS").map_or(0, |_| QUARANTINE);
        let limit = MORE_MEMORY + quarantine;
        let memory = now.resident > small.resident + limit || now.data > small.data + limit;
        if memory || now.maps > small.maps + MORE_MAPS {
            return Err(format!("it has grown from {small:?} to {now:?}"));
        }
        Ok(())
    }

    /// It ends as it is told; nobody has reached another byte, nor another
    /// file.
    pub fn finish(&mut self) {
        if self.way == Way::Disk {
            // It still is the way of requests, and was before.
            let control = self.site.control.as_ref().unwrap();
            let front = self.site.attach();
            rig::operator::wait_path(control, "disk");
            drop(front);
            let info = rig::operator::info(control);
            let operations = info["disk"]["operations"]["disk_operations"].as_u64();
            assert!(operations > Some(0), "{info:#}");
        }
        let (_, small) = self.before.as_ref().unwrap();
        println!("from {small:?} to {:?}", resources::grown(self.pid()));
        let ended = self.daemon.take().unwrap().terminate().unwrap();
        assert!(ended.success(), "{ended}: {}", self.log());
        let image = fs::read(&self.image).unwrap();
        let whole = content(0, IMAGE);
        assert_eq!(image.len(), IMAGE);
        assert!(image[..FREE.start] == whole[..FREE.start]);
        assert!(image[FREE.end..] == whole[FREE.end..]);
        let mut beside = vec![0; IMAGE];
        let file = File::open(&self.neighbour).unwrap();
        file.read_exact_at(&mut beside, 0).unwrap();
        assert!(
            beside == neighbourly(),
            "a file beside the image has changed"
        );
        assert!(self.files.path().exists());
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
