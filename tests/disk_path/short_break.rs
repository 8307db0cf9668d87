//! The kernel waits for the owner of a lease for too short a time: the disk
//! path is not taken, or left. The setting is that of the whole host, so the
//! process is shown a file of the test in its place.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rig::file_systems::{EXT4, Mounted};
use rig::image::{FIRST, Image};
use rig::model::SECTOR;
use tempfile::TempDir;

use crate::break_time::SETTING;
use crate::lane::all;
use crate::served::{Guest, Served, binary};

/// Bytes of the image, and its sectors.
const BYTES: usize = 8 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// Longer than the path is used after a look.
const LONG: Duration = Duration::from_secs(5);
/// What is told.
const REASON: &str = "lease-break-time";

/// A setting of a test's own.
struct Setting {
    files: TempDir,
}

impl Setting {
    fn new(seconds: u64) -> Setting {
        let setting = Setting {
            files: tempfile::tempdir().unwrap(),
        };
        setting.set(seconds);
        setting
    }

    fn file(&self) -> PathBuf {
        self.files.path().join("setting")
    }

    fn set(&self, seconds: u64) {
        std::fs::write(self.file(), format!("{seconds}\n")).unwrap();
    }

    /// A program that runs extentd with this setting, in a name space without
    /// the file systems of other tests, which would stay mounted there.
    /// `None`, with the reason printed, where there can be none.
    fn runner(&self, host: &Mounted) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt;
        let inner = self.files.path().join("inner");
        let text = format!(
            "#!/bin/sh\n\
             for other in $(awk '$5 ~ \"/mapping-\" {{ print $5 }}' /proc/self/mountinfo); do\n\
             [ \"$other\" = {ours} ] || umount -l \"$other\" 2>/dev/null\n\
             done\n\
             mount --bind {file} {SETTING} || exit 1\n\
             exec \"$@\"\n",
            ours = host.root().display(),
            file = self.file().display(),
        );
        let outer = self.files.path().join("extentd");
        let call = format!(
            "#!/bin/sh\nexec unshare --mount --propagation private {} {} \"$@\"\n",
            inner.display(),
            binary().display()
        );
        for (script, text) in [(&inner, text), (&outer, call)] {
            std::fs::write(script, text).unwrap();
            std::fs::set_permissions(script, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut probe = Command::new("unshare");
        probe.args(["--mount", "--propagation", "private"]);
        match probe.arg(&inner).arg("true").status() {
            Ok(status) if status.success() => Some(outer),
            other => {
                eprintln!("SKIP: no mount name space: {other:?}");
                None
            }
        }
    }
}

fn start(runner: &Path, image: &Path, left_out: &str) -> Served {
    let variables = [("EXTENTD_TEST_WITHOUT", left_out)];
    Served::run(runner, image, &[], &variables, Stdio::piped())
}

#[test]
fn too_short_a_break_time_ends_the_disk_path_until_it_is_longer() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let image = Image::written(&host, BYTES);
    let setting = Setting::new(45);
    let Some(runner) = setting.runner(&host) else {
        return;
    };
    let served = start(&runner, &image.path, "");
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..SECTORS);
    assert_eq!(served.disk()["lease_break_time_s"], 45);

    setting.set(4);
    served.wait("the path to be left", |now| {
        !now.on_disk && now.reason.contains(REASON)
    });
    assert_eq!(served.disk()["lease_break_time_s"], 4);
    assert_eq!(guest.lane(0).see(0..SECTORS), all(FIRST, SECTORS));

    // Long enough, and for ever.
    for seconds in [5, 0] {
        setting.set(seconds);
        served.wait("the path to be back", |now| {
            now.on_disk && served.disk()["lease_break_time_s"] == seconds
        });
    }
}

#[test]
fn too_short_a_break_time_keeps_the_disk_path_away_at_the_start() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let image = Image::written(&host, BYTES);
    let setting = Setting::new(2);
    let Some(runner) = setting.runner(&host) else {
        return;
    };
    let output = Command::new(&runner)
        .args(["--io-path", "disk", "--socket-path", "/dev/null/none"])
        .arg("--blk-file")
        .arg(&image.path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.lines().last().unwrap().contains(REASON), "{text}");

    let served = start(&runner, &image.path, "");
    let mut guest = Guest::attach(&served);
    served.wait("the reason", |now| now.reason.contains(REASON));
    assert_eq!(guest.lane(0).see(0..SECTORS), all(FIRST, SECTORS));
    let info = served.info();
    assert_eq!((info.disk_operations, info.entries), (0, 0));
}

#[test]
fn where_the_break_time_is_looked_at_on_entry_only_the_path_stays() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let image = Image::written(&host, BYTES);
    let setting = Setting::new(45);
    let Some(runner) = setting.runner(&host) else {
        return;
    };
    let served = start(&runner, &image.path, "recheck");
    let _guest = Guest::attach(&served);
    served.wait_disk();
    setting.set(4);
    std::thread::sleep(LONG);
    assert!(served.info().on_disk);
}
