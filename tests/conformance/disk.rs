//! A process and its image.

use std::path::{Path, PathBuf};
use std::process::Command;

use front_end::Daemon;
pub use rig::attached::{Attached, DATA, MEMORY, assert_ok};
pub use rig::small_image::{IMAGE, content};
use tempfile::TempDir;

/// A process that serves an image whose every sector differs.
pub struct Disk {
    pub daemon: Daemon,
    pub socket: PathBuf,
    pub image: PathBuf,
    pub control: PathBuf,
    _files: TempDir,
}

/// The process under test.
pub fn binary() -> PathBuf {
    rig::extentd!()
}

/// A folder for the files of one test.
pub fn scratch() -> TempDir {
    rig::scratch::folder("conformance")
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
        let resized = Command::new(rig::extentctl!())
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
    rig::attached::serve(&binary(), socket, image, arguments)
}
