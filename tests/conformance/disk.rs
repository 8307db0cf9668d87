//! A process, its image, and a driver that uses it.

use std::path::{Path, PathBuf};

use front_end::codes::status;
use front_end::{Daemon, Done, Driver, GuestMemory, Like, Session, Setup, Wanted};
use tempfile::TempDir;

/// Guest memory, in bytes.
pub const MEMORY: u64 = 16 << 20;
/// Where data may lie in it: above what the drivers of two queues use.
pub const DATA: u64 = 4 << 20;
/// The size of the image, in bytes.
pub const IMAGE: usize = 4 << 20;

/// A process that serves an image whose every sector differs.
pub struct Disk {
    pub daemon: Daemon,
    pub socket: PathBuf,
    pub image: PathBuf,
    _files: TempDir,
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
        let parent = std::env::var_os("EXTENTD_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
        let files = tempfile::Builder::new()
            .prefix("extentd-conformance.")
            .tempdir_in(parent)
            .unwrap();
        let (socket, image) = (files.path().join("socket"), files.path().join("disk"));
        std::fs::write(&image, content(0, IMAGE)).unwrap();
        Self {
            daemon: serve(&socket, &image, arguments),
            socket,
            image,
            _files: files,
        }
    }
}

/// Has the process under test serve an image.
pub fn serve(socket: &Path, image: &Path, arguments: &[&str]) -> Daemon {
    let binary =
        std::env::var_os("EXTENTD").unwrap_or_else(|| env!("CARGO_BIN_EXE_extentd").into());
    Daemon::start(Path::new(&binary), socket, image, arguments).unwrap()
}

/// A front-end and the driver of its first queue.
pub struct Attached {
    pub session: Session,
    pub memory: GuestMemory,
    pub driver: Driver,
}

impl Attached {
    pub fn new(socket: &Path, like: Like, wanted: Wanted) -> Self {
        let mut session = Session::open(socket, like, wanted).unwrap();
        let memory = GuestMemory::flat(MEMORY).unwrap();
        let setup = Setup {
            size: 64,
            features: session.features,
            indirect: 16,
        };
        let driver = Driver::new(&memory, 0, setup).unwrap();
        session.start(&memory, &[driver.ring()]).unwrap();
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
