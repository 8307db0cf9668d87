//! A file system in user space that stops answering.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::thread::JoinHandle;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// One file, `file`, that can be looked up and opened; whatever else is asked
/// for is never answered.
pub struct Silent {
    folder: TempDir,
    device: Option<File>,
    file: Option<File>,
    server: Option<JoinHandle<()>>,
}

const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const FLUSH: u32 = 25;
const INIT: u32 = 26;

/// The only file; 1 is the folder.
const FILE: u64 = 2;
/// Bytes of it.
const SIZE: u64 = 64 << 20;

/// A file system of ours, which nobody serves yet, and its server's end; `None`
/// where this machine cannot mount one.
fn mounted() -> Option<(TempDir, File)> {
    let device = File::options().read(true).write(true).open("/dev/fuse");
    let Ok(device) = device else {
        println!("SKIP: no /dev/fuse");
        return None;
    };
    let folder = rig::scratch::folder("hostile");
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    if let Err(error) = mount("silent", folder.path(), "fuse", flags, Some(&*options)) {
        println!("SKIP: no FUSE: {error}");
        return None;
    }
    Some((folder, device))
}

fn unmounted(folder: &TempDir) {
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
    unmount(folder.path(), flags).unwrap();
}

/// A file system whose server reads no request, as one that is stopped. Who
/// waits for it can still be killed; for one that has read the request the
/// kernel lets nobody go.
pub struct Deaf {
    folder: TempDir,
    device: Option<File>,
}

impl Deaf {
    /// `None` where this machine cannot mount one.
    pub fn new() -> Option<Self> {
        let (folder, device) = mounted()?;
        Some(Self {
            folder,
            device: Some(device),
        })
    }

    /// A file there.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("file")
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        unmounted(&self.folder);
        self.device.take();
    }
}

impl Silent {
    /// `None` where this machine cannot mount one.
    pub fn new() -> Option<Self> {
        let (folder, device) = mounted()?;
        let requests = device.try_clone().unwrap();
        let server = std::thread::spawn(move || serve(requests));
        let mut silent = Self {
            folder,
            device: Some(device),
            server: Some(server),
            file: None,
        };
        let file = File::options()
            .read(true)
            .write(true)
            .open(silent.folder.path().join("file"));
        silent.file = Some(file.unwrap());
        Some(silent)
    }

    /// The file, open.
    pub fn file(&self) -> &File {
        self.file.as_ref().unwrap()
    }
}

impl Drop for Silent {
    /// Everything that waits for an answer has an error from now on.
    fn drop(&mut self) {
        unmounted(&self.folder);
        self.device.take();
        self.server.take().map(JoinHandle::join);
        self.file.take();
    }
}

fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = match node {
        FILE => (0o100_666_u32, SIZE),
        _ => (0o040_777, 0),
    };
    let mut bytes = Vec::new();
    for word in [node, size, size / 512, 0, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    // Times, mode, links, user, group, device, block size, flags.
    for word in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// Answers until nobody asks any more.
fn serve(mut device: File) {
    let mut request = vec![0; 1 << 20];
    let mut asked = 0;
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        assert!(length >= 40);
        let (opcode, unique, node) = (word(4), long(8), long(16));
        let mut answer: Vec<u8> = Vec::new();
        let mut error = 0;
        match opcode {
            INIT => {
                for word in [7_u32, 31, 0, 0, 0, 1 << 16, 1] {
                    answer.extend(word.to_ne_bytes());
                }
                answer.resize(64, 0);
            }
            LOOKUP => {
                for word in [FILE, 0, 0, 0, 0] {
                    answer.extend(word.to_ne_bytes());
                }
                answer.extend(attributes(FILE));
            }
            GETATTR if node != FILE => {
                answer.resize(16, 0);
                answer.extend(attributes(node));
            }
            OPEN => answer.extend([1_u64, 0].map(u64::to_ne_bytes).concat()),
            // It is not known here: a child that begins another program closes the file.
            FLUSH => error = -libc::ENOSYS,
            _ => {
                asked += 1;
                println!("request {opcode} of a silent file is not answered ({asked})");
                continue;
            }
        }
        let mut bytes = u32::try_from(16 + answer.len())
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(error.to_ne_bytes());
        bytes.extend(unique.to_ne_bytes());
        bytes.extend(answer);
        let _ = device.write_all(&bytes);
    }
}
