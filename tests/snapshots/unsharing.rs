//! The end of sharing while a guest uses the disk: what moves, what does not, and
//! what ends it early.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use extentd::protocol::client::Client;
use extentd::protocol::events::EventKind;
use front_end::limit;
use mapping::{ExtentSource, Fiemap, Kind};
use rig::file_systems::{BTRFS, EXT4, Made, Mounted, XFS, XFS_1K, occupy, sync};
use rig::files::pattern;
use rig::operator::{wait_info, wait_path};
use serde_json::Value;

use crate::making::{guest, next, refused};
use crate::rig::{Disk, IMAGE, extentctl, mounted, remove};
use crate::stamps::{Numbers, Stamps, USED, assert_one_moment};

/// So slow that it is under way for as long as a test needs.
const SLOWLY: &[&str] = &["unshare", "--rate", "256K"];

/// Bytes that a file shares. It may be in use by nobody who holds its lease.
fn shared(file: &Path) -> u64 {
    let source = Fiemap::new(Arc::new(File::open(file).unwrap()));
    let mut bytes = 0;
    let told = source.fill(0..IMAGE, &mut |extent| {
        if extent.kind == Kind::Shared {
            let range = extent.range();
            bytes += range.end - range.start;
        }
        ControlFlow::Continue(())
    });
    told.unwrap();
    bytes
}

fn ends(disk: &Disk) -> Client {
    let mut client = Client::connect(&disk.control, limit()).unwrap();
    client
        .subscribe(Some(vec![EventKind::UnshareEnded]))
        .unwrap();
    client
}

/// Begins it, and returns when some was copied and more is to be.
fn begin(disk: &Disk) {
    let begun = disk.json(SLOWLY);
    assert_eq!(
        (&begun["running"], &begun["rate"]),
        (&true.into(), &(256 << 10).into())
    );
    wait_info(&disk.control, "the first piece", |info| {
        info["unshare"]["unshared_bytes"].as_u64() > Some(0)
    });
}

fn wait_waits(disk: &Disk, why: &Value) {
    wait_info(&disk.control, "what it waits for", |info| {
        info["unshare"]["waits"] == *why
    });
}

/// It is still under way, and cancelled.
fn cancel(disk: &Disk) {
    let mut events = ends(disk);
    let done = disk.json(&["unshare", "--cancel"]);
    assert!(done["unshared_bytes"].as_u64() > Some(0));
    let event = next(&mut events);
    let reason = event["reason"].as_str().unwrap();
    assert_eq!(reason, "unshare: given up: an operator has cancelled it");
}

fn stop(disk: &mut Disk) {
    disk.daemon.signal(libc::SIGTERM).unwrap();
    disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
}

fn all_is_there(disk: &Disk, end: &[Numbers]) {
    let bytes = crate::rig::bytes(&disk.image);
    assert_one_moment(&bytes, end, end);
    let quiet = usize::try_from(USED).unwrap();
    assert_eq!(bytes[quiet..2 * quiet], pattern(5, USED, quiet));
}

fn under_load(made: Made) {
    let Some(mounted) = mounted(made) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    let stamps = Stamps::start(&disk.socket);
    let mut unshared = 0;
    for round in 0..5 {
        wait_path(&disk.control, "disk");
        stamps.go_on(20);
        let name = format!("snapshot-{round}");
        disk.json(&["snapshot", &name]);
        let before = disk.read(&name);
        let ended = disk.json(&["unshare", "--wait"]);
        assert_eq!(
            (&ended["left_bytes"], &ended["error"]),
            (&0.into(), &Value::Null)
        );
        let bytes = |key: &str| ended[key].as_u64().unwrap();
        // The quiet half at least was shared, and was copied by nobody else.
        assert!((USED..=bytes("shared_bytes")).contains(&bytes("unshared_bytes")));
        unshared += bytes("unshared_bytes");
        stamps.go_on(20);
        assert!(disk.read(&name) == before, "{name} has changed");
    }
    // Every block has its place, and every request goes by the disk again.
    let operations = || {
        let stats = disk.json(&["stats"]);
        ["disk_operations", "file_operations"].map(|key| stats[key].as_u64().unwrap())
    };
    wait_path(&disk.control, "disk");
    let (mut before, mut after) = (operations(), [0; 2]);
    for _ in 0..20 {
        stamps.go_on(100);
        after = operations();
        if after[1] == before[1] {
            break;
        }
        before = after;
    }
    assert_eq!(after[1], before[1], "by the file");
    assert!(after[0] - before[0] >= 100 * 16, "by the disk");
    let end = stamps.end();
    stop(&mut disk);
    assert_eq!(shared(&disk.image), 0);
    all_is_there(&disk, &end);
    println!("{unshared} bytes were unshared");
}

#[test]
fn under_load_all_becomes_the_images_own_and_snapshots_stay_what_they_are() {
    under_load(XFS);
}

#[test]
fn under_load_blocks_of_a_kibibyte_become_the_images_own() {
    under_load(XFS_1K);
}

#[test]
fn it_can_be_cancelled_and_goes_on_where_it_was() {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    let stamps = Stamps::start(&disk.socket);
    refused(
        &disk.extentctl(&["unshare", "--cancel"]),
        "it is not under way",
    );
    assert!(disk.json(&["info"])["unshare"].is_null());
    disk.json(&["snapshot", "one"]);
    begin(&disk);
    stamps.go_on(20);
    refused(&disk.extentctl(&["unshare"]), "it is under way");
    cancel(&disk);
    let first = disk.json(&["info"])["unshare"].clone();
    assert_eq!(first["running"], false);
    stamps.go_on(20);
    let second = disk.extentctl(&["unshare"]).out;
    assert!(second.contains("become the image's own"), "{second}");
    let info = wait_info(&disk.control, "the end", |info| {
        info["unshare"]["running"] == false
    });
    let second = &info["unshare"];
    let bytes = |one: &Value, key: &str| one[key].as_u64().unwrap();
    assert!(
        bytes(second, "shared_bytes") + bytes(&first, "unshared_bytes")
            <= bytes(&first, "shared_bytes")
    );
    assert_eq!(second["left_bytes"], 0);
    let end = stamps.end();
    stop(&mut disk);
    all_is_there(&disk, &end);
}

#[test]
fn a_full_file_system_ends_it_and_the_disk_is_right_and_served() {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    let mut guest = guest(&disk);
    disk.json(&["snapshot", "one"]);
    let one = disk.read("one");
    let mut events = ends(&disk);
    begin(&disk);
    sync(&mounted);
    drop(occupy(&mounted, "filler"));
    let event = next(&mut events);
    let reason = event["reason"].as_str().unwrap();
    assert!(
        reason.contains("make room on the image's file system"),
        "{reason}"
    );
    let now = disk.json(&["info"])["unshare"].clone();
    assert_eq!(
        (&now["running"], &now["error"]),
        (&false.into(), &reason.into())
    );
    let quiet = usize::try_from(USED).unwrap();
    for at in [0, USED, IMAGE - (64 << 10)] {
        let expected = if at < USED {
            vec![0; 4096]
        } else {
            pattern(5, at, 4096)
        };
        assert_eq!(guest.read(at / 512, 4096), expected);
    }
    // What was unshared is written without room.
    guest.write((IMAGE - 4096) / 512, &[9; 4096]);
    refused(&disk.extentctl(&["unshare"]), "make room on it");
    remove(&mounted, &mounted.path("filler"), 2 * IMAGE);
    assert_eq!(disk.json(&["unshare", "--wait"])["left_bytes"], 0);
    assert_eq!(guest.read((IMAGE - 4096) / 512, 4096), [9; 4096]);
    assert!(disk.read("one") == one);
    drop(guest);
    stop(&mut disk);
    let mut expected = one;
    let end = expected.len() - 4096;
    expected[end..].fill(9);
    assert!(crate::rig::bytes(&disk.image) == expected);
    assert_eq!(expected[quiet..quiet + 4096], pattern(5, USED, 4096));
}

#[test]
fn a_kill_in_the_middle_loses_nothing_and_the_next_process_goes_on() {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    for round in 0..6_u64 {
        let stamps = Stamps::start_at(&disk.socket, (round + 1) << 32);
        stamps.go_on(20);
        let name = format!("snapshot-{round}");
        disk.json(&["snapshot", &name]);
        let before = disk.read(&name);
        // Between pieces, and in one: without a rate half of the time is one's.
        if round % 2 == 0 {
            begin(&disk);
        } else {
            disk.json(&["unshare"]);
        }
        stamps.go_on(round % 3);
        disk.daemon.signal(libc::SIGKILL).unwrap();
        disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
        let end = stamps.numbers();
        stamps.lose();
        all_is_there(&disk, &end);
        assert!(disk.read(&name) == before, "{name}");
        disk.start_again();
    }
    let _stamps = Stamps::start_at(&disk.socket, 7 << 32);
    assert_eq!(disk.json(&["unshare", "--wait"])["left_bytes"], 0);
}

#[test]
fn a_snapshot_in_the_middle_is_made_first_and_is_of_one_moment() {
    let Some(mounted) = mounted(XFS) else { return };
    let rests = &[("EXTENTD_TEST_CLONE_REST", "100")];
    let mut disk = Disk::without(&mounted, "vm", &[], rests);
    let stamps = Stamps::start(&disk.socket);
    stamps.go_on(20);
    disk.json(&["snapshot", "one"]);
    let one = disk.read("one");
    begin(&disk);
    let mut events = disk.events();
    let (before, after) = std::thread::scope(|scope| {
        let before = stamps.numbers();
        let asked = scope.spawn(|| disk.json(&["snapshot", "two"]));
        assert_eq!(next(&mut events)["kind"], "snapshot-begun");
        let after = stamps.numbers();
        wait_waits(&disk, &"a snapshot is being made".into());
        let waits = disk.json(&["info"])["unshare"]["unshared_bytes"].clone();
        stamps.go_on(5);
        let info = disk.json(&["info"]);
        if info["snapshot"].is_object() {
            assert_eq!(info["unshare"]["unshared_bytes"], waits);
        }
        asked.join().unwrap();
        (before, after)
    });
    wait_waits(&disk, &Value::Null);
    assert_eq!(disk.json(&["info"])["unshare"]["running"], true);
    cancel(&disk);
    let two = disk.read("two");
    assert_one_moment(&two, &before, &after);
    // What that one shares is unshared too, if it is asked for after it.
    assert_eq!(disk.json(&["unshare", "--wait"])["left_bytes"], 0);
    let end = stamps.end();
    stop(&mut disk);
    assert_eq!(shared(&disk.image), 0);
    assert!(disk.read("one") == one && disk.read("two") == two);
    all_is_there(&disk, &end);
}

#[test]
fn a_stop_and_a_new_binary_end_it_between_two_pieces() {
    let Some(mounted) = mounted(XFS) else { return };
    for signal in [libc::SIGTERM, libc::SIGUSR2] {
        let mut disk = Disk::new(&mounted, &format!("vm-{signal}"), &[]);
        let stamps = Stamps::start(&disk.socket);
        stamps.go_on(20);
        disk.json(&["snapshot", "one"]);
        let one = disk.read("one");
        begin(&disk);
        disk.daemon.signal(signal).unwrap();
        let says = |line: &str| line.contains("unshare: given up: extentd ends");
        disk.daemon.wait_stderr(says).unwrap();
        if signal == libc::SIGTERM {
            disk.daemon.wait_within(Duration::from_secs(20)).unwrap();
        } else {
            let taken = |line: &str| line.contains("taken over after");
            disk.daemon.wait_stderr(taken).unwrap();
            assert!(disk.json(&["info"])["unshare"].is_null());
        }
        let end = stamps.numbers();
        stamps.lose();
        assert!(disk.read("one") == one);
        assert!(shared(&disk.image) > 0);
        all_is_there(&disk, &end);
    }
}

#[test]
fn it_waits_while_nobody_uses_the_disk_and_while_it_is_held_still() {
    let Some(mounted) = mounted(XFS) else { return };
    let disk = Disk::new(&mounted, "vm", &[]);
    disk.json(&["snapshot", "one"]);
    disk.json(SLOWLY);
    wait_waits(&disk, &"no guest uses the disk".into());
    let copied = || disk.json(&["info"])["unshare"]["unshared_bytes"].clone();
    assert_eq!(copied(), 0);
    let mut stamps = Stamps::start(&disk.socket);
    for _ in 0..2 {
        wait_waits(&disk, &Value::Null);
        wait_info(&disk.control, "a piece", |info| {
            info["unshare"]["unshared_bytes"].as_u64() > Some(0)
        });
        assert_eq!(disk.extentctl(&["quiesce"]).status, Some(0));
        wait_waits(&disk, &"the disk is held still".into());
        let before = copied();
        assert_eq!(disk.extentctl(&["quiesce"]).status, Some(1), "it is held");
        assert_eq!(copied(), before);
        assert_eq!(disk.extentctl(&["resume"]).status, Some(0));
        stamps.go_on(5);
        // A guest goes, and another one comes.
        drop(stamps);
        wait_waits(&disk, &"no guest uses the disk".into());
        stamps = Stamps::start(&disk.socket);
    }
    cancel(&disk);
}

#[test]
fn others_may_open_the_image_and_the_way_may_change_meanwhile() {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    let stamps = Stamps::start(&disk.socket);
    disk.json(&["snapshot", "one"]);
    let one = disk.read("one");
    disk.json(&["unshare", "--rate", "1M"]);
    let quiet = usize::try_from(USED).unwrap();
    let mut rounds = 0;
    while disk.json(&["info"])["unshare"]["running"] == true {
        // Which takes the lease away, and brings pages into the page cache.
        let bytes = crate::rig::bytes(&disk.image);
        assert_eq!(bytes[quiet..], pattern(5, USED, quiet));
        let way = if rounds % 2 == 0 { "file" } else { "auto" };
        assert_eq!(disk.extentctl(&["io-path", way]).status, Some(0));
        stamps.go_on(5);
        rounds += 1;
    }
    assert!(rounds > 1);
    let ended = disk.json(&["info"])["unshare"].clone();
    assert_eq!(
        (&ended["left_bytes"], &ended["error"]),
        (&0.into(), &Value::Null)
    );
    let end = stamps.end();
    stop(&mut disk);
    all_is_there(&disk, &end);
    assert!(disk.read("one") == one);
}

#[test]
fn the_length_may_change_meanwhile() {
    let Some(mounted) = mounted(XFS) else { return };
    let mut disk = Disk::new(&mounted, "vm", &[]);
    let stamps = Stamps::start(&disk.socket);
    disk.json(&["snapshot", "one"]);
    begin(&disk);
    // Most of what is to come is cut off, and comes back as zeros.
    for length in [USED + (64 << 10), 2 * IMAGE] {
        let done = disk.extentctl(&["resize", &length.to_string()]);
        assert_eq!(done.status, Some(0), "{}", done.error);
        stamps.go_on(5);
    }
    cancel(&disk);
    assert_eq!(disk.json(&["unshare", "--wait"])["left_bytes"], 0);
    let end = stamps.end();
    stop(&mut disk);
    let bytes = crate::rig::bytes(&disk.image);
    assert_one_moment(&bytes, &end, &end);
    assert_eq!(bytes.len() as u64, 2 * IMAGE);
    let kept = usize::try_from(USED).unwrap() + (64 << 10);
    assert!(bytes[kept..].iter().all(|byte| *byte == 0));
}

#[test]
fn where_it_is_impossible_that_is_said() {
    let (Some(xfs), Some(ext4)) = (mounted(XFS), mounted(EXT4)) else {
        return;
    };
    let folder = rig::scratch::folder("snapshots");
    let [socket, control] = ["socket", "control"].map(|name| folder.path().join(name));
    let image = |mounted: &Mounted| {
        let image = mounted.path("image");
        rig::files::write_direct(&rig::files::create(&image, IMAGE), &[1; 4096], 0);
        image
    };
    let (there, here) = (image(&xfs), image(&ext4));
    let only_xfs = "only XFS (made with reflink=1) can: copy the image whole";
    for (image, option, says) in [
        (there.as_path(), "--read-only", "the disk is read-only"),
        (&there, "--swap=best-effort", "the disk is swap-grade"),
        (&here, "--lock=on", only_xfs),
        (
            Path::new(ext4.device()),
            "--read-only",
            "a block device, which shares no blocks",
        ),
    ] {
        let arguments = ["--control-path", control.to_str().unwrap(), option];
        let _daemon = rig::attached::serve(&crate::rig::extentd(), &socket, image, &arguments);
        refused(&extentctl(&[&control], &["unshare"]), says);
    }
    let none = extentctl(&[&control], &["unshare", "--rate", "0"]);
    refused(&none, "nothing would be copied");
    if let Some(btrfs) = mounted(BTRFS) {
        let disk = Disk::new(&btrfs, "vm", &[]);
        refused(&disk.extentctl(&["unshare"]), only_xfs);
    }
}
