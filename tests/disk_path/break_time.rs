//! How long the kernel waits for the owner of a lease: a setting of the whole
//! host, so tests that change it take turns.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::PathBuf;

/// The setting.
pub const SETTING: &str = "/proc/sys/fs/lease-break-time";
/// The shortest that the disk path is content with.
pub const SHORT: u64 = 5;

/// The setting is another until this is dropped.
pub struct BreakTime {
    /// Locked; holds what the setting was, so that a test that was killed
    /// leaves a trace of it.
    before: File,
    /// The setting, locked: other runs of the tests have other records.
    _setting: File,
}

impl BreakTime {
    /// `None`, with the reason printed, where it cannot be set. Waits for other
    /// tests that have changed it.
    pub fn seconds(seconds: u64) -> Option<BreakTime> {
        let setting = File::open(SETTING).unwrap();
        rustix::fs::flock(&setting, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let parent = std::env::var_os("EXTENTD_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
        let path = PathBuf::from(parent).join("extentd-lease-break-time");
        let mut before = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        rustix::fs::flock(&before, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut text = String::new();
        before.read_to_string(&mut text).unwrap();
        if text.trim().is_empty() {
            let now = std::fs::read_to_string(SETTING).unwrap();
            before.write_all(now.as_bytes()).unwrap();
        }
        if let Err(error) = std::fs::write(SETTING, seconds.to_string()) {
            eprintln!("SKIP: {SETTING} cannot be set: {error}");
            return None;
        }
        Some(BreakTime {
            before,
            _setting: setting,
        })
    }
}

impl Drop for BreakTime {
    fn drop(&mut self) {
        let mut text = String::new();
        self.before.rewind().unwrap();
        self.before.read_to_string(&mut text).unwrap();
        std::fs::write(SETTING, text.trim()).unwrap();
        self.before.set_len(0).unwrap();
    }
}
