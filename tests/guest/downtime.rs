//! How long a guest under load stands still when it migrates, beside the same with
//! qemu-storage-daemon as the back-end of both QEMUs. `EXTENTD_TEST_DOWNTIMES` says how many
//! rounds. Nothing is asserted on the times. With qemu-storage-daemon a guest may hang after a
//! migration, which is counted.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use front_end::LIMIT;
use rig::file_systems::{EXT4, Mounted};
use rig::process::{signal, wait_exit};
use rig::qemu::vm::{Guest, Machine};
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;
use crate::load::printed;

/// How many rounds, if the environment does not say.
const ROUNDS: usize = 2;
/// Migrations of each back-end in a round.
const MIGRATIONS: usize = 2;

/// Requests that the guest's disk has completed.
const DONE: &str = "awk '{ print $1 + $5 }' /sys/block/vda/stat";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Extentd,
    StorageDaemon,
}

/// A running back-end; killed when dropped.
enum BackEnd {
    Extentd(Daemon),
    StorageDaemon(Running),
}

struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl BackEnd {
    fn start(kind: Kind, socket: &Path, image: &Path) -> Self {
        match kind {
            Kind::Extentd => Self::Extentd(Daemon::start(socket, image, &["--num-queues", "2"])),
            Kind::StorageDaemon => Self::StorageDaemon(storage_daemon(socket, image)),
        }
    }

    /// The state in which it is to be migrated away from.
    fn settle(&self) {
        if let Self::Extentd(daemon) = self {
            daemon
                .wait_stderr(|line| line.contains("go by the disk"))
                .unwrap();
        }
    }

    fn terminate(self) {
        let status = match self {
            Self::Extentd(daemon) => daemon.terminate(),
            Self::StorageDaemon(mut running) => {
                let child = running.0.take().unwrap();
                signal(child.id(), "TERM");
                wait_exit(child)
            }
        };
        assert!(status.success(), "{status}");
    }
}

/// As it is used for speed. Its export lets others write the image, as the destination does.
fn storage_daemon(socket: &Path, image: &Path) -> Running {
    let (image, socket_path) = (image.display(), socket.display());
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-storage-daemon"])
        .args(["--object", "iothread,id=io0", "--blockdev"])
        .arg(format!(
            "driver=file,node-name=f,filename={image},cache.direct=on,aio=io_uring,discard=unmap"
        ))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket_path},writable=on,num-queues=2,iothread=io0"
        ))
        .stdin(Stdio::null());
    let mut running = Running(Some(command.spawn().unwrap()));
    let start = Instant::now();
    while !socket.exists() {
        let ended = running.0.as_mut().unwrap().try_wait().unwrap();
        assert_eq!(ended, None, "qemu-storage-daemon ended at its start");
        assert!(start.elapsed() < LIMIT, "qemu-storage-daemon is stuck");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running
}

/// One host: its QEMU with the back-end beside it.
struct Side {
    guest: Guest,
    back_end: BackEnd,
    scratch: Scratch,
}

fn side(kind: Kind, image: &Path, begin: impl FnOnce(Machine, &Scratch) -> Guest) -> Side {
    let scratch = Scratch::new();
    let socket = scratch.path("disk.sock");
    let back_end = BackEnd::start(kind, &socket, image);
    let machine = Machine::new(2, 256).disk_at(&socket, "vd0", 2);
    Side {
        guest: begin(machine, &scratch),
        back_end,
        scratch,
    }
}

/// Waits until a condition holds; whether it did within 20 s, which is very long for what is waited
/// for here.
fn soon(guest: &mut Guest, condition: &str) -> bool {
    let wait = "sleep 0.1; tries=$((tries + 1)); [ $tries -lt 200 ] || exit 1";
    guest
        .try_run(&format!("(tries=0; until {condition}; do {wait}; done)"))
        .0
        == 0
}

/// Waits for some requests; whether they came.
fn proceeds(guest: &mut Guest) -> bool {
    let before: u64 = guest.run(DONE).parse().unwrap();
    soon(guest, &format!("[ $({DONE}) -gt {} ]", before + 200))
}

/// What became of a guest.
enum Outcome {
    /// What its load said at the end.
    Ended(String),
    /// It has a request that is never answered.
    Hangs,
}

/// The down times of some migrations in milliseconds, and what became of the guest.
fn migrate(kind: Kind, image: &Path) -> (Vec<u64>, Outcome) {
    let files = host::boot_files().unwrap();
    let mut from = side(kind, image, |machine, scratch| machine.boot(files, scratch));
    from.guest.spawn("load", "verifier random /dev/vda 16 3600");
    let mut times = Vec::new();
    for _ in 0..MIGRATIONS {
        from.back_end.settle();
        if !proceeds(&mut from.guest) {
            return (times, Outcome::Hangs);
        }
        let await_guest = |machine: Machine, scratch: &Scratch| machine.await_guest(files, scratch);
        let mut to = side(kind, image, await_guest);
        let socket = to.scratch.path("migration");
        times.push(from.guest.migrate(&mut to.guest, &socket));
        from.guest.quit();
        from.back_end.terminate();
        from = to;
    }
    let goes_on = proceeds(&mut from.guest);
    from.guest.run("touch /tmp/stop");
    if !goes_on || !soon(&mut from.guest, "[ -e /tmp/load.status ]") {
        return (times, Outcome::Hangs);
    }
    let output = from.guest.join("load");
    from.guest.power_off();
    from.back_end.terminate();
    (times, Outcome::Ended(output))
}

#[test]
fn down_times_beside_qemu_storage_daemon() {
    let (Some(_), Some(disk)) = (host::boot_files(), Mounted::new(EXT4)) else {
        return;
    };
    let rounds = std::env::var("EXTENTD_TEST_DOWNTIMES");
    let rounds = rounds.map_or(ROUNDS, |text| text.parse().unwrap());
    let image = disk.path("image");
    let (mut ours, mut theirs, mut hung) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        for kind in [Kind::Extentd, Kind::StorageDaemon] {
            std::fs::write(&image, vec![0; 64 << 20]).unwrap();
            let (times, outcome) = migrate(kind, &image);
            let hangs = matches!(outcome, Outcome::Hangs);
            if let Outcome::Ended(output) = outcome {
                assert_eq!(host::digest(&image), printed(&output, "digest"), "{kind:?}");
            }
            if kind == Kind::Extentd {
                assert!(!hangs, "a request is never answered");
                ours.extend(times);
            } else {
                hung += usize::from(hangs);
                theirs.extend(times);
            }
        }
    }
    let median = |times: &mut Vec<u64>| {
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    };
    let medians = (median(&mut ours), median(&mut theirs));
    println!(
        "down times in ms: extentd median {:?} of {ours:?}; qemu-storage-daemon median {:?} of {theirs:?}, with which {hung} of {rounds} guests hung after a migration",
        medians.0, medians.1
    );
}
