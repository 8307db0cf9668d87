//! A process, its image, a front-end, and `extentctl`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use front_end::{Daemon, LIMIT, Like, Wanted, limit};
use rig::attached::Attached;
use rig::file_systems::{EXT4, Made, Mounted};
use rig::files::{fallocate, pattern};
use serde_json::Value;
use tempfile::TempDir;

/// Bytes of the image: three windows of the map.
pub const IMAGE: u64 = 12 << 20;
/// The image holds data from 0 to here, has a hole up to [`UNWRITTEN`], and
/// then places that were never written.
pub const HOLE: u64 = 2 << 20;
pub const UNWRITTEN: u64 = 8 << 20;
pub const WINDOW: u64 = 4 << 20;

/// Where an image may lie; removed with it.
enum Home {
    Disk(Mounted),
    Folder { _removed_with_it: TempDir },
}

/// A process that serves an image of [`IMAGE`] bytes.
pub struct Rig {
    pub image: PathBuf,
    control: PathBuf,
    socket: PathBuf,
    pub daemon: Daemon,
    home: Home,
    _files: TempDir,
}

/// What extentctl did.
pub struct Done {
    pub ok: bool,
    pub out: String,
    pub error: String,
}

impl Done {
    /// It must have gone well.
    pub fn text(self) -> String {
        assert!(self.ok, "{}{}", self.out, self.error);
        self.out
    }

    /// It must have failed with one line.
    pub fn refusal(self) -> String {
        assert!(!self.ok, "{}", self.out);
        assert_eq!((self.out.as_str(), self.error.lines().count()), ("", 1));
        self.error.trim_end().to_owned()
    }
}

impl Rig {
    /// On an ext4; `None` where this machine cannot mount one.
    pub fn on_ext4(arguments: &[&str]) -> Option<Self> {
        Self::on(EXT4, arguments)
    }

    /// On another file system; `None` where this machine cannot mount it.
    pub fn on(made: Made, arguments: &[&str]) -> Option<Self> {
        let rig = Self::mounted(made, arguments)?;
        // Some devices are slower without the file system: no disk path there.
        let info = rig.json(&["info"]);
        if info["disk"]["device"].is_null() {
            let reason = &info["disk"]["path_reason"];
            println!("SKIP: no disk path on this loop device: {reason}");
            return None;
        }
        Some(rig)
    }

    /// There, but with no disk path.
    pub fn by_file_on_ext4(arguments: &[&str]) -> Option<Self> {
        let mut all = vec!["--io-path", "file"];
        all.extend(arguments);
        Self::mounted(EXT4, &all)
    }

    fn mounted(made: Made, arguments: &[&str]) -> Option<Self> {
        let Some(mounted) = Mounted::new(made) else {
            println!("SKIP: no {} on a loop device here", made.name);
            return None;
        };
        let root = mounted.root();
        Some(Self::start(Home::Disk(mounted), &root, arguments))
    }

    /// Where there is never a disk path.
    pub fn on_tmpfs(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = folder.path().to_owned();
        let home = Home::Folder {
            _removed_with_it: folder,
        };
        Self::start(home, &root, arguments)
    }

    fn start(home: Home, root: &Path, arguments: &[&str]) -> Self {
        let files = rig::scratch::folder("control");
        let image = root.join("image");
        make_image(&image);
        let (socket, control) = (files.path().join("socket"), files.path().join("control"));
        let mut all = vec!["--control-path", control.to_str().unwrap()];
        all.extend(arguments);
        let daemon = Daemon::start(&extentd(), &socket, &image, &all).unwrap();
        Self {
            image,
            control,
            socket,
            daemon,
            home,
            _files: files,
        }
    }

    /// The device under the image.
    pub fn device(&self) -> &str {
        match &self.home {
            Home::Disk(mounted) => mounted.device(),
            Home::Folder { .. } => panic!("no device"),
        }
    }

    /// Where it is controlled.
    pub fn control(&self) -> &Path {
        &self.control
    }

    pub fn extentctl(&self, arguments: &[&str]) -> Done {
        let output = Command::new(rig::extentctl!())
            .arg("--control-path")
            .arg(&self.control)
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done {
            ok: output.status.success(),
            out: text(output.stdout),
            error: text(output.stderr),
        }
    }

    /// The answer of a command that must go well.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        serde_json::from_str(&self.extentctl(&all).text()).unwrap()
    }

    /// Requests of a guest, one after the other, for as long as it is kept.
    pub fn under_io(&self, mut guest: Guest) -> UnderIo {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let bytes = content(0, 4096);
            while !stopped.load(Ordering::Relaxed) {
                guest.write(0, &bytes);
                assert_eq!(guest.read(0, 4096), bytes);
            }
        });
        UnderIo {
            stop,
            thread: Some(thread),
        }
    }

    pub fn attach(&self) -> Guest {
        Guest(Attached::new(&self.socket, Like::Qemu, Wanted::default()))
    }

    /// With a guest, and the disk path in use.
    pub fn attach_to_disk(&self) -> Guest {
        let guest = self.attach();
        let text = self.extentctl(&["io-path", "disk"]).text();
        assert!(text.starts_with("requests go by the disk: "), "{text}");
        guest
    }

    /// Asks until the answer is as wanted; the limit only ends a stuck test.
    pub fn until(&self, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let start = std::time::Instant::now();
        loop {
            let answer = self.json(arguments);
            if wanted(&answer) {
                return answer;
            }
            assert!(start.elapsed() < LIMIT, "it stays {answer:#}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

pub fn extentd() -> PathBuf {
    rig::extentd!()
}

/// A front-end and the driver of its queue; gone when dropped.
pub struct Guest(Attached);

impl Guest {
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.0.read(offset / 512, length)
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.0.write(offset / 512, bytes);
    }
}

/// A guest at work, until this is dropped.
pub struct UnderIo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for UnderIo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// A connection to a control socket. What greets it is left out.
pub struct Line(BufReader<UnixStream>);

impl Line {
    pub fn open(control: &Path) -> Self {
        let stream = UnixStream::connect(control).unwrap();
        stream.set_read_timeout(Some(limit())).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn say(&mut self, text: &str) {
        writeln!(self.0.get_mut(), "{text}").unwrap();
    }

    /// The next line; null at the end.
    pub fn hear(&mut self) -> Value {
        loop {
            let mut text = String::new();
            let line: Value = match self.0.read_line(&mut text).unwrap() {
                0 => return Value::Null,
                _ => serde_json::from_str(&text).unwrap(),
            };
            if line["method"] != "hello" {
                return line;
            }
        }
    }

    /// The answer to a call.
    pub fn call(&mut self, method: &str, params: &str) -> Value {
        self.say(&::rig::operator::call(method, params));
        self.hear()
    }

    /// Subscribed, to these kinds or all.
    pub fn subscribed(control: &Path, kinds: &str) -> Self {
        let mut line = Self::open(control);
        let answer = line.call("subscribe", &format!("{{\"kinds\":{kinds}}}"));
        assert!(answer["result"]["next_sequence"].is_u64(), "{answer}");
        line
    }

    /// Events up to one of that kind, which comes last.
    pub fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let mut line = self.hear();
            assert_eq!(line["method"], "event", "before {kind}: {line}");
            all.push(line["params"].take());
            if all.last().unwrap()["kind"] == kind {
                return all;
            }
        }
    }
}

pub fn content(offset: u64, length: usize) -> Vec<u8> {
    pattern(7, offset, length)
}

fn make_image(path: &Path) {
    let file = File::create_new(path).unwrap();
    file.set_len(IMAGE).unwrap();
    let bytes = content(0, usize::try_from(HOLE).unwrap());
    file.write_all_at(&bytes, 0).unwrap();
    let rest = IMAGE - UNWRITTEN;
    fallocate(&file, 0, UNWRITTEN, rest).unwrap();
    file.sync_all().unwrap();
}
