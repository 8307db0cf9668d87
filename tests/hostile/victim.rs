//! A process that is attacked by the memory that it is given, and how it is
//! seen to be as well as before.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use front_end::codes::request;
use front_end::{Daemon, Like, Place, Region, Session, Wanted};
use rig::attached::{Attached, MEMORY};
use rig::small_image::{IMAGE, content};
use tempfile::TempDir;

/// Bytes of a region beside the driver's memory.
pub const SIZE: u64 = 1 << 20;

/// A process and its image, whose every sector differs.
pub struct Victim {
    pub daemon: Daemon,
    pub socket: PathBuf,
    pub files: TempDir,
    image: PathBuf,
}

impl Victim {
    pub fn start() -> Self {
        let files = rig::scratch::folder("victim");
        let path = |name| files.path().join(name);
        let (socket, image) = (path("socket"), path("disk"));
        std::fs::write(&image, content(0, IMAGE)).unwrap();
        let binary: PathBuf = rig::extentd!();
        let daemon = rig::attached::serve(&binary, &socket, &image, &[]);
        Self {
            daemon,
            socket,
            files,
            image,
        }
    }

    pub fn attach(&self, like: Like) -> Attached {
        Attached::new(&self.socket, like, Wanted::default())
    }

    /// The same process serves a correct front-end, has kept nothing of the
    /// one before, and no byte of the image has changed.
    pub fn is_well(&self) {
        let mut front = self.attach(Like::Qemu);
        assert_eq!(front.read(7, 4096), content(7 * 512, 4096));
        front.write(7, &content(7 * 512, 512));
        drop(front);
        // Whoever asks next is answered once the last one is forgotten.
        let next = Session::open(&self.socket, Like::Qemu, Wanted::default()).unwrap();
        next.connection.get_features().unwrap();
        let maps = self.maps();
        assert!(
            !maps.contains("memfd:") && !maps.contains("/lost"),
            "{maps}"
        );
        assert!(std::fs::read(&self.image).unwrap() == content(0, IMAGE));
    }

    pub fn maps(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/maps", self.daemon.pid())).unwrap()
    }

    /// Lines on standard error so far that contain this.
    pub fn lines(&self, words: &str) -> usize {
        let lines = self.daemon.stderr();
        lines.iter().filter(|line| line.contains(words)).count()
    }

    pub fn wait_line(&self, words: &str) {
        self.daemon
            .wait_stderr(|line| line.contains(words))
            .unwrap();
    }
}

/// A region above the memory of the driver.
pub fn place(number: u64) -> Place {
    Place {
        guest: MEMORY + number * SIZE,
        user: 0x1000_0000_0000 + number * 3 * SIZE,
        size: SIZE,
    }
}

/// A region as a message has it, for files that cannot be mapped here.
pub fn add_region(front: &Attached, place: Place, fd: RawFd) -> u64 {
    let fields = [0, place.guest, place.size, place.user, 0];
    let payload = fields.map(u64::to_ne_bytes).concat();
    let connection = &front.session.connection;
    connection
        .acknowledge(request::ADD_MEM_REG, &payload, &[fd])
        .unwrap()
}

/// The driver knows the region as well.
pub fn share(front: &mut Attached, place: Place, file: &File) {
    let region = Region::in_file(place, file.try_clone().unwrap(), 0).unwrap();
    front.memory.add(region);
    assert_eq!(add_region(front, place, file.as_raw_fd()), 0);
}

/// A file in memory.
pub fn memfd(size: u64, flags: rustix::fs::MemfdFlags) -> File {
    let file = File::from(rustix::fs::memfd_create("lost", flags).unwrap());
    file.set_len(size).unwrap();
    file
}
