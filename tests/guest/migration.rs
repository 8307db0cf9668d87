//! Live migration of a guest under load between two QEMUs, each with its own
//! process on the same image. `EXTENTD_TEST_MIGRATIONS` says how often.

use std::path::PathBuf;

use crate::common::{EXT4, Mounted};
use crate::daemon::Daemon;
use crate::host::{self, Scratch};
use crate::load::printed;
use crate::vm::{Guest, Machine};

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

/// The image that all hosts share.
struct Image {
    path: PathBuf,
    variables: &'static [(&'static str, &'static str)],
}

impl Image {
    fn side(&self, begin: impl FnOnce(Machine, &Scratch) -> Guest) -> Side {
        let scratch = Scratch::new();
        let socket = scratch.path("disk.sock");
        let arguments = ["--num-queues", "2"];
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

fn image(disk: &Mounted, variables: &'static [(&'static str, &'static str)]) -> Image {
    let path = disk.path("image");
    std::fs::write(&path, vec![0; 64 << 20]).unwrap();
    Image { path, variables }
}

#[test]
fn vu_36_37_38_39_migrations_under_load_lose_nothing() {
    let (Some(_), Some(disk)) = (host::boot_files(), Mounted::new(EXT4)) else {
        return;
    };
    let migrations = std::env::var("EXTENTD_TEST_MIGRATIONS");
    let migrations = migrations.map_or(MIGRATIONS, |text| text.parse().unwrap());
    let image = image(&disk, &[]);
    let mut side = begin(&image, "verifier random /dev/vda 16 3600");
    let mut downtimes = Vec::new();
    for _ in 0..migrations {
        // The image is ours alone again, and the load is under way there.
        side.daemon
            .wait_stderr(|line| line.contains("go by the disk"))
            .unwrap();
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

/// Migrates a guest that reads other data into the same memory again and
/// again; what it found wrong, after so many migrations.
fn reread(variables: &'static [(&'static str, &'static str)]) -> Option<Result<(), String>> {
    let (Some(_), Some(disk)) = (host::boot_files(), Mounted::new(EXT4)) else {
        return None;
    };
    let image = image(&disk, variables);
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
    if !cfg!(debug_assertions) {
        println!("SKIP: only debug builds can leave pages unmarked");
        return;
    }
    if let Some(result) = reread(&[("EXTENTD_TEST_NO_DIRTY", "1")]) {
        let said = result.unwrap_err();
        println!("noticed {said}");
        assert!(said.contains("verifier: "), "{said}");
    }
}
