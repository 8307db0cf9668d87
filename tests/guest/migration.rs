//! Live migration of a guest under load between two QEMUs, each with its own
//! process on the same image. `EXTENTD_TEST_MIGRATIONS` says how often.

use std::path::PathBuf;

use rig::file_systems::{EXT4, Mounted};
use rig::qemu::vm::{Guest, Machine};
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;
use crate::load::printed;
use crate::swap::swap_info;

/// How often, if the environment does not say.
const MIGRATIONS: usize = 6;
/// Migrations of memory that only the disk writes to.
const REREADS: usize = 3;

/// Requests that the guest's disk has completed.
const DONE: &str = "awk '{ print $1 + $5 }' /sys/block/vda/stat";

/// One host: its QEMU with the process beside it.
struct Side {
    guest: Guest,
    daemon: Daemon,
    scratch: Scratch,
}

/// The image that all hosts share, and how it is served there.
struct Image {
    path: PathBuf,
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
}

impl Image {
    fn side(&self, begin: impl FnOnce(Machine, &Scratch) -> Guest) -> Side {
        let scratch = Scratch::new();
        let socket = scratch.path("disk.sock");
        let control = scratch.path("control");
        let mut arguments = vec!["--num-queues", "2"];
        arguments.extend(["--control-path", control.to_str().unwrap()]);
        arguments.extend(self.arguments);
        let daemon = Daemon::start_with(&socket, &self.path, &arguments, self.variables);
        let machine = Machine::new(2, 256).disk(&daemon, "vd0", 2);
        Side {
            guest: begin(machine, &scratch),
            daemon,
            scratch,
        }
    }
}

/// Moves a guest to a new QEMU with a new process; the milliseconds that it
/// stood still.
fn migrate(image: &Image, mut from: Side) -> (Side, u64) {
    let files = host::boot_files().unwrap();
    let mut to = image.side(|machine, scratch| machine.await_guest(files, scratch));
    let socket = to.scratch.path("migration");
    let downtime = from.guest.migrate(&mut to.guest, &socket);
    from.guest.quit();
    assert!(from.daemon.terminate().success());
    (to, downtime)
}

/// Begins a load on a first host.
fn begin(image: &Image, load: &str) -> Side {
    let files = host::boot_files().unwrap();
    let mut side = image.side(|machine, scratch| machine.boot(files, scratch));
    side.guest.spawn("load", load);
    side
}

fn image(
    disk: &Mounted,
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
) -> Image {
    let path = disk.path("image");
    std::fs::write(&path, vec![0; 64 << 20]).unwrap();
    Image {
        path,
        arguments,
        variables,
    }
}

/// Migrates a guest under load again and again, each time once its process has
/// the disk path and `settled` holds.
fn migrate_under_load(
    arguments: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
    settled: fn(&Side),
) {
    let (Some(_), Some(disk)) = (host::boot_files(), Mounted::new(EXT4)) else {
        return;
    };
    let migrations = std::env::var("EXTENTD_TEST_MIGRATIONS");
    let migrations = migrations.map_or(MIGRATIONS, |text| text.parse().unwrap());
    let image = image(&disk, arguments, variables);
    let mut side = begin(&image, "verifier random /dev/vda 16 3600");
    let mut downtimes = Vec::new();
    for _ in 0..migrations {
        // The image is ours alone again, and the load is under way there.
        side.daemon
            .wait_stderr(|line| line.contains("go by the disk"))
            .unwrap();
        settled(&side);
        let before: u64 = side.guest.run(DONE).parse().unwrap();
        side.guest
            .wait_for(&format!("[ $({DONE}) -gt {} ]", before + 200));
        let (next, downtime) = migrate(&image, side);
        side = next;
        downtimes.push(downtime);
    }
    let before: u64 = side.guest.run(DONE).parse().unwrap();
    side.guest
        .wait_for(&format!("[ $({DONE}) -gt {} ]", before + 200));
    side.guest.run("touch /tmp/stop");
    let output = side.guest.join("load");
    println!(
        "{migrations} migrations, {} operations, down times in ms: {downtimes:?}",
        printed(&output, "operations")
    );
    side.guest.power_off();
    assert!(side.daemon.terminate().success());
    assert_eq!(host::digest(&image.path), printed(&output, "digest"));
}

#[test]
fn vu_36_37_38_39_migrations_under_load_lose_nothing() {
    migrate_under_load(&[], &[], |_| {});
}

/// What takes a privilege that the tests may not have.
const PRIVILEGED: [&str; 2] = ["io_flusher", "oom_protected"];

/// Every other property holds.
fn swap_grade(side: &Side) {
    let info = swap_info(&side.scratch.path("control"));
    for (name, property) in info["properties"].as_object().unwrap() {
        let privileged = PRIVILEGED.contains(&name.as_str());
        assert!(property["held"] == true || privileged, "{name}: {property}");
    }
}

#[test]
fn a_swap_grade_disk_migrates_under_load_and_is_swap_grade_again() {
    // What takes the privilege is left out; all else is demanded.
    let variables = &[("EXTENTD_TEST_WITHOUT", "flusher,oom")];
    migrate_under_load(&["--swap"], variables, swap_grade);
}

/// Migrates a guest that reads other data into the same memory again and
/// again; what it found wrong, after so many migrations.
fn reread(variables: &'static [(&'static str, &'static str)]) -> Option<Result<(), String>> {
    let (Some(_), Some(disk)) = (host::boot_files(), Mounted::new(EXT4)) else {
        return None;
    };
    let image = image(&disk, &[], variables);
    let mut side = begin(&image, "verifier reread /dev/vda");
    let ended = "[ -e /tmp/load.status ]";
    side.guest.wait_for("[ \"$(cat /tmp/load.log)\" = begun ]");
    for migration in 0..=REREADS {
        let before: u64 = side.guest.run(DONE).parse().unwrap();
        side.guest
            .wait_for(&format!("{ended} || [ $({DONE}) -gt {} ]", before + 100));
        if side.guest.try_run(ended).0 == 0 {
            let said = side.guest.run("cat /tmp/load.log");
            return Some(Err(format!("after {migration} migrations: {said}")));
        }
        if migration < REREADS {
            side = migrate(&image, side).0;
        }
    }
    side.guest.run("touch /tmp/stop");
    side.guest.join("load");
    side.guest.power_off();
    Some(Ok(()))
}

#[test]
fn vu_39_what_is_read_while_the_guest_migrates_arrives() {
    if let Some(result) = reread(&[]) {
        result.unwrap();
    }
}

#[test]
fn a_page_that_is_not_marked_is_noticed() {
    if let Some(result) = reread(&[("EXTENTD_TEST_NO_DIRTY", "1")]) {
        let said = result.unwrap_err();
        println!("noticed {said}");
        assert!(said.contains("verifier: "), "{said}");
    }
}
