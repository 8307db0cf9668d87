//! A planned upgrade under load: the process becomes another binary, the
//! front-end connects again, and nothing is lost.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use front_end::codes::feature;
use front_end::{Daemon, LIMIT, Like, wait_readable};
use rig::file_systems::{EXT4, Mounted};
use rig::files::read_direct;
use rig::image::Image;
use rig::lanes::Lanes;
use rig::place::{Place, guest};

const UPGRADES: usize = 5;

/// Puts a file where the binary is, as a package manager does: under another
/// name first.
fn install(from: &Path, to: &Path) {
    let part = to.with_extension("part");
    fs::copy(from, &part).unwrap();
    fs::rename(part, to).unwrap();
}

/// The file that a process runs.
fn runs(daemon: &Daemon) -> u64 {
    let path = format!("/proc/{}/exe", daemon.pid());
    fs::metadata(path).unwrap().ino()
}

/// Copies of the binary, where they can be replaced.
fn copy(host: &Mounted) -> PathBuf {
    let path = host.path("extentd");
    install(&rig::extentd!(), &path);
    path
}

/// What takes a privilege that the tests may not have.
const PRIVILEGED: [&str; 2] = ["io_flusher", "oom_protected"];

/// Keeps the load up until the process has the disk path, and with it every
/// property that is not privileged.
fn swap_grade_again(place: &Place, lanes: &mut Lanes) {
    let start = Instant::now();
    while place.disk()["path"] != "disk" {
        assert!(start.elapsed() < LIMIT, "requests do not go by the disk");
        lanes.run_until(Instant::now() + Duration::from_millis(5));
    }
    let info = place.info();
    for (name, property) in info["swap"]["properties"].as_object().unwrap() {
        let privileged = PRIVILEGED.contains(&name.as_str());
        assert!(property["held"] == true || privileged, "{name}: {property}");
    }
}

fn upgrade_under_load(like: Like, swap: bool) {
    upgrade(like, swap, |_| {});
}

/// Upgrades under load, after a change of what has the image's name.
fn upgrade(like: Like, swap: bool, change: impl Fn(&Path)) {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let binary = copy(&host);
    let image = Image::scattered(&host);
    let grade = ["--swap=best-effort"];
    // Another name, by which the image is found in the end.
    let kept = host.path("kept");
    fs::hard_link(&image.path, &kept).unwrap();
    let place = Place::new(&rig::extentd!(), &image.path, &grade[..usize::from(swap)]);
    let daemon = place.start_from(&binary);
    let mut lanes = Lanes::new(guest(), &image.values, 7);
    lanes.discards = !swap;
    let mut session = place.connect(like, feature::ALL).unwrap();
    lanes.start(&mut session).unwrap();
    let mut pauses = Vec::new();
    change(&image.path);
    for _ in 0..UPGRADES {
        lanes.proceed();
        install(&rig::extentd!(), &binary);
        let before = runs(&daemon);
        daemon.signal(libc::SIGUSR2).unwrap();
        // It serves on until it has seen that the new one can be run.
        let mut last = Instant::now();
        while wait_readable(session.connection.stream(), Duration::ZERO).is_err() {
            last = Instant::now();
            lanes.run_until(last + Duration::from_millis(1));
        }
        let inflight = session.inflight.take();
        session = place.connect(like, feature::ALL).unwrap();
        session.inflight = inflight;
        lanes.start(&mut session).unwrap();
        let ended = lanes.ended;
        while lanes.ended == ended && lanes.sound() {
            lanes.run_until(Instant::now() + Duration::from_millis(1));
        }
        pauses.push(last.elapsed());
        assert_ne!(runs(&daemon), before, "it is what it was");
        if swap {
            swap_grade_again(&place, &mut lanes);
        }
    }
    eprintln!("{like:?}, --swap {swap}: pauses of {pauses:?}");
    lanes.proceed();
    assert_eq!(lanes.settle(&mut session), 0);
    drop(session);
    assert!(daemon.terminate().unwrap().success());
    assert!(!place.socket.exists() && !place.control.exists());
    lanes.check(&read_direct(&kept));
    assert_eq!((lanes.repeated, &lanes.wrong[..]), (0, &[][..]));
}

#[test]
fn a_disk_stays_the_image_that_it_was_when_another_file_gets_its_name() {
    upgrade(Like::Qemu, false, |image| {
        let other = image.with_extension("other");
        fs::write(&other, [7; 4096]).unwrap();
        fs::rename(&other, image).unwrap();
    });
}

#[test]
fn a_disk_stays_the_image_that_it_was_when_its_name_is_removed() {
    upgrade(Like::CloudHypervisor, false, |image| {
        fs::remove_file(image).unwrap();
    });
}

#[test]
fn an_upgrade_under_load_loses_nothing_like_qemu() {
    upgrade_under_load(Like::Qemu, false);
}

#[test]
fn an_upgrade_under_load_loses_nothing_like_cloud_hypervisor() {
    upgrade_under_load(Like::CloudHypervisor, false);
}

#[test]
fn a_swap_grade_disk_is_swap_grade_after_an_upgrade_under_load() {
    upgrade_under_load(Like::Qemu, true);
}

#[test]
fn a_binary_that_cannot_run_takes_nothing_over() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let binary = copy(&host);
    let image = Image::scattered(&host);
    let place = Place::new(&rig::extentd!(), &image.path, &[]);
    let daemon = place.start_from(&binary);
    let mut lanes = Lanes::new(guest(), &image.values, 7);
    let mut session = place.connect(Like::Qemu, feature::ALL).unwrap();
    lanes.start(&mut session).unwrap();
    let broken = host.path("broken");
    fs::write(&broken, "#!/bin/false\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let before = runs(&daemon);
    install(&broken, &binary);
    daemon.signal(libc::SIGUSR2).unwrap();
    daemon
        .wait_stderr(|line| line.contains("no handover"))
        .unwrap();
    lanes.run_until(Instant::now() + Duration::from_millis(100));
    assert_eq!(runs(&daemon), before);
    assert_eq!(lanes.settle(&mut session), 0);
    assert!(lanes.sound(), "{:?}", lanes.wrong);
    assert!(daemon.terminate().unwrap().success());
}
