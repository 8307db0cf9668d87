//! A process, its image, and a driver that uses it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use front_end::codes::status;
use front_end::{Daemon, Done, Driver, GuestMemory, Like, Session, Wanted};
use tempfile::TempDir;

/// Guest memory, in bytes.
pub const MEMORY: u64 = 16 << 20;
/// Where data may lie in it: above what the drivers of two queues use.
pub const DATA: u64 = 4 << 20;
/// The size of the image, in bytes.
pub const IMAGE: usize = 4 << 20;

/// How long anything may take here; see [`front_end::limit`].
const LIMIT: Duration = Duration::from_secs(20);

/// A process that serves an image whose every sector differs.
pub struct Disk {
    pub daemon: Daemon,
    pub socket: PathBuf,
    pub image: PathBuf,
    pub control: PathBuf,
    _files: TempDir,
}

/// A folder for the files of one test.
pub fn scratch() -> TempDir {
    let parent = std::env::var_os("EXTENTD_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::Builder::new()
        .prefix("extentd-conformance.")
        .tempdir_in(parent)
        .unwrap()
}

/// The process under test.
pub fn binary() -> PathBuf {
    std::env::var_os("EXTENTD")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_extentd").into())
        .into()
}

/// A byte of the image as it is at first.
pub fn byte(offset: usize) -> u8 {
    u8::try_from((offset + offset / 512 + offset / 131_072) % 251).unwrap()
}

/// The bytes of the image as they are at first.
pub fn content(offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length).map(byte).collect()
}

impl Disk {
    pub fn start(arguments: &[&str]) -> Self {
        let files = scratch();
        let path = |name| files.path().join(name);
        let (socket, image, control) = (path("socket"), path("disk"), path("control"));
        std::fs::write(&image, content(0, IMAGE)).unwrap();
        let mut all = vec!["--control-path", control.to_str().unwrap()];
        all.extend(arguments);
        Self {
            daemon: serve(&socket, &image, &all),
            socket,
            image,
            control,
            _files: files,
        }
    }

    /// Changes the size as an operator does.
    pub fn resize(&self, bytes: usize) {
        let resized = Command::new(env!("CARGO_BIN_EXE_extentctl"))
            .arg("--control-path")
            .arg(&self.control)
            .args(["resize", &bytes.to_string()])
            .output()
            .unwrap();
        assert!(resized.status.success(), "{resized:?}");
    }

    /// The names behind the open descriptors of the process.
    pub fn descriptors(&self) -> Vec<String> {
        let list = std::fs::read_dir(format!("/proc/{}/fd", self.daemon.pid())).unwrap();
        list.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// Guest memory is mapped in the process.
    pub fn maps_guest_memory(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/maps", self.daemon.pid()))
            .unwrap()
            .contains("memfd:guest")
    }
}

/// Has the process under test serve an image.
pub fn serve(socket: &Path, image: &Path, arguments: &[&str]) -> Daemon {
    front_end::set_limit(LIMIT);
    Daemon::start(&binary(), socket, image, arguments).unwrap()
}

/// A front-end and the driver of its first queue.
pub struct Attached {
    pub session: Session,
    pub memory: GuestMemory,
    pub driver: Driver,
}

impl Attached {
    pub fn new(socket: &Path, like: Like, wanted: Wanted) -> Self {
        Self::over(Session::open(socket, like, wanted).unwrap())
    }

    /// As [`new`](Self::new), on a session that is open.
    pub fn over(mut session: Session) -> Self {
        let (memory, driver) = session.start_one(MEMORY, 64).unwrap();
        // One comes when the event is given, which it has been once this is
        // answered.
        session.connection.get_features().unwrap();
        driver.ring().take_calls().unwrap();
        Self {
            session,
            memory,
            driver,
        }
    }

    /// Reads sectors, which must succeed.
    pub fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        let done = self.driver.read(sector, DATA, length).unwrap();
        assert_ok(done, length + 1);
        self.memory.read(DATA, length as usize).unwrap()
    }

    /// Writes sectors, which must succeed.
    pub fn write(&mut self, sector: u64, bytes: &[u8]) {
        self.memory.write(DATA, bytes).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        assert_ok(self.driver.write(sector, DATA, length).unwrap(), 1);
    }
}

/// The request went well, and the device has written so many bytes.
pub fn assert_ok(done: Done, written: u32) {
    assert_eq!((done.status, done.length), (status::OK, written));
}
