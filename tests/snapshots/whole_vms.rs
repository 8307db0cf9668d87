//! A guest that is saved whole — memory, rings, and its disks by snapshots of
//! one moment — and restored several times on clones of them, by front-ends
//! that carry where rings were in different ways.

use std::path::{Path, PathBuf};

use extentd::operator::control::Request;
use front_end::codes::{feature, protocol};
use front_end::{Daemon, Like, Session, Wanted};
use rig::file_systems::{BTRFS, Made, XFS};
use rig::operator::ask;
use tempfile::TempDir;

use crate::rig::{Disk, extentctl, extentd, mounted};
use crate::vm::{Guest, QUEUES, USED};

/// Guests that are restored.
const COPIES: usize = 4;

/// How a front-end saves and restores where rings were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By DEVICE_STATE alone: it tells no base, and keeps no record of
    /// requests in flight.
    State,
    /// cloud-hypervisor: rings are only disabled. Then it says that the rings
    /// go on at the end of the available ring, with a new record.
    CloudHypervisor,
    /// QEMU: rings are stopped. They go on at the end of the used ring, with a
    /// new record.
    Qemu,
}

impl Way {
    fn connect(self, socket: &Path) -> Session {
        let like = match self {
            Way::Qemu => Like::Qemu,
            Way::State | Way::CloudHypervisor => Like::CloudHypervisor,
        };
        let protocol = match self {
            Way::State => (protocol::ALL | protocol::DEVICE_STATE) & !protocol::INFLIGHT_SHMFD,
            Way::CloudHypervisor | Way::Qemu => protocol::ALL,
        };
        let wanted = Wanted {
            features: feature::ALL,
            protocol,
            queues: u16::try_from(QUEUES).unwrap(),
        };
        Session::open(socket, like, wanted).unwrap()
    }

    fn start(self, session: &mut Session, guest: &Guest, disk: usize) {
        match self {
            Way::State => guest.start_without_positions(session, disk),
            Way::CloudHypervisor | Way::Qemu => {
                session.start(&guest.memory, &guest.rings(disk)).unwrap();
            }
        }
    }

    /// Once this is back nothing is in flight; what is to be kept.
    fn pause(self, session: &Session) -> Vec<u8> {
        match self {
            Way::CloudHypervisor => session.enable(false).unwrap(),
            Way::Qemu | Way::State => drop(session.stop(QUEUES).unwrap()),
        }
        // Answered after all of that.
        session.connection.get_features().unwrap();
        match self {
            Way::State => session.connection.save_state().unwrap(),
            Way::CloudHypervisor | Way::Qemu => Vec::new(),
        }
    }

    fn resume(self, session: &mut Session, guest: &Guest, disk: usize) {
        match self {
            Way::CloudHypervisor => session.enable(true).unwrap(),
            Way::Qemu | Way::State => self.start(session, guest, disk),
        }
    }
}

/// A process on a clone.
struct Clone {
    image: PathBuf,
    control: PathBuf,
    socket: PathBuf,
    daemon: Daemon,
    _files: TempDir,
}

impl Clone {
    fn of(snapshot: &Path, image: &Path, more: &[&str]) -> Self {
        let paths = [snapshot, image].map(|path| path.to_str().unwrap());
        let done = extentctl(&[], &["clone", paths[0], paths[1]]);
        assert_eq!(done.status, Some(0), "{}", done.error);
        let files = rig::scratch::folder("snapshots");
        let [socket, control] = ["socket", "control"].map(|name| files.path().join(name));
        let mut arguments = vec!["--control-path", control.to_str().unwrap()];
        arguments.extend(["--num-queues", "2"]);
        arguments.extend(more);
        Self {
            daemon: Daemon::start(&extentd(), &socket, image, &arguments).unwrap(),
            image: image.to_owned(),
            control,
            socket,
            _files: files,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        rig::files::read_direct(&self.image)
    }

    /// Requests that it has answered.
    fn answered(&self) -> u64 {
        let stats = ask(&self.control, &Request::Stats {});
        stats["requests"].as_u64().unwrap()
    }
}

/// The guest of disks with a session for each.
struct Machine {
    guest: Guest,
    sessions: Vec<Session>,
}

impl Machine {
    fn new(way: Way, disks: &[Disk]) -> Self {
        let bytes = disks.iter().map(|disk| crate::rig::bytes(&disk.image));
        let guest = Guest::new(bytes.collect());
        let mut machine = Self {
            guest,
            sessions: disks.iter().map(|disk| way.connect(&disk.socket)).collect(),
        };
        for (disk, session) in machine.sessions.iter_mut().enumerate() {
            way.start(session, &machine.guest, disk);
        }
        machine
    }

    /// Pauses all, and has requests in each ring that were made available and
    /// not fetched, beside some that have ended and were not taken back.
    fn pause(&mut self, way: Way) -> Vec<Vec<u8>> {
        for disk in 0..self.sessions.len() {
            self.guest.submit(disk);
        }
        let states = self.sessions.iter().map(|session| way.pause(session));
        let states = states.collect();
        for disk in 0..self.sessions.len() {
            self.guest.reap(disk, 6);
            self.guest.submit(disk);
        }
        states
    }

    fn resume(&mut self, way: Way) {
        for (disk, session) in self.sessions.iter_mut().enumerate() {
            way.resume(session, &self.guest, disk);
        }
    }
}

/// Restored: its sessions and processes, and the guest where it was.
struct Restored {
    machine: Machine,
    clones: Vec<Clone>,
}

/// Saves a guest with that many disks, lets it go on, and restores it.
fn is_restored(made: Made, way: Way, count: usize) {
    let Some(mounted) = mounted(made) else { return };
    let named = |number: usize| {
        let more = ["--num-queues", "2"];
        Disk::new(&mounted, &format!("vm{number}"), &more)
    };
    let mut disks: Vec<Disk> = (0..count).map(named).collect();
    let mut machine = Machine::new(way, &disks);
    machine.guest.run(300);

    let states = machine.pause(way);
    let saved = machine.guest.copied(1);
    let controls: Vec<&Path> = disks.iter().map(|disk| disk.control.as_path()).collect();
    let taken = extentctl(&controls, &["snapshot", "whole"]);
    assert_eq!(taken.status, Some(0), "{}", taken.error);
    machine.resume(way);
    machine.guest.run(300);

    // What has ended by the instant, whether it was taken back or not.
    let mut instant = saved.copied(1);
    let (mut fetched, mut waiting) = (0, Vec::new());
    for (number, disk) in disks.iter().enumerate() {
        fetched += instant.reap(number, usize::MAX);
        waiting.push(instant.flying(number) as u64);
        let snapshot = disk.read("whole");
        assert!(snapshot == instant.sides[number].contents, "disk {number}");
        assert!(snapshot[..USED] != crate::rig::bytes(&disk.image)[..USED]);
    }
    assert!(fetched > 0 && waiting.iter().all(|&count| count > 0));

    let mut copies: Vec<Restored> = (0..COPIES)
        .map(|copy| {
            let clone = |disk: &Disk| {
                let image = disk.snapshots.join(format!("clone{copy}"));
                Clone::of(&disk.snapshots.join("whole"), &image, &[])
            };
            let clones: Vec<Clone> = disks.iter().map(clone).collect();
            let guest = saved.copied(2 + copy as u64);
            let mut sessions = Vec::new();
            for (disk, clone) in clones.iter().enumerate() {
                assert!(clone.bytes() == instant.sides[disk].contents);
                let mut session = way.connect(&clone.socket);
                if way == Way::State {
                    session.connection.load_state(&states[disk]).unwrap();
                }
                way.start(&mut session, &guest, disk);
                sessions.push(session);
            }
            let machine = Machine { guest, sessions };
            Restored { machine, clones }
        })
        .collect();
    // What was not fetched is done, once, and nothing else is.
    for copy in &mut copies {
        copy.machine.guest.settle();
        for (clone, waiting) in copy.clones.iter().zip(&waiting) {
            assert_eq!(clone.answered(), *waiting);
        }
    }
    // All go on at once, each with its own.
    for _ in 0..5 {
        machine.guest.run(40);
        for copy in &mut copies {
            copy.machine.guest.run(40);
        }
    }
    machine.guest.settle();
    drop(machine.sessions);
    for (number, disk) in disks.iter_mut().enumerate() {
        disk.daemon.signal(libc::SIGTERM).unwrap();
        disk.daemon.wait_within(front_end::limit()).unwrap();
        let live = crate::rig::bytes(&disk.image);
        assert!(live == machine.guest.sides[number].contents, "the live one");
        assert!(disk.read("whole") == instant.sides[number].contents);
    }
    let mut images = Vec::new();
    for mut copy in copies {
        copy.machine.guest.settle();
        drop(copy.machine.sessions);
        for (mut clone, side) in copy.clones.into_iter().zip(copy.machine.guest.sides) {
            clone.daemon.signal(libc::SIGTERM).unwrap();
            clone.daemon.wait_within(front_end::limit()).unwrap();
            let bytes = clone.bytes();
            assert!(bytes == side.contents, "{}", clone.image.display());
            assert!(!images.contains(&bytes), "each has its own");
            images.push(bytes);
        }
    }
}

#[test]
fn a_guest_is_restored_several_times_by_the_state_of_its_disk() {
    is_restored(XFS, Way::State, 1);
}

#[test]
fn a_guest_is_restored_several_times_as_by_cloud_hypervisor() {
    is_restored(XFS, Way::CloudHypervisor, 1);
}

#[test]
fn a_guest_is_restored_several_times_as_by_qemu() {
    is_restored(XFS, Way::Qemu, 1);
}

#[test]
fn a_guest_with_several_disks_is_restored_with_all_of_one_moment() {
    for way in [Way::State, Way::CloudHypervisor] {
        is_restored(BTRFS, way, 2);
    }
}

#[test]
fn a_state_goes_to_a_clone_of_its_size_and_serial_and_to_nothing_else() {
    let Some(mounted) = mounted(XFS) else { return };
    let more = ["--num-queues", "2", "--serial", "vm"];
    let disk = Disk::new(&mounted, "vm", &more);
    let way = Way::State;
    let mut machine = Machine::new(way, std::slice::from_ref(&disk));
    let running = machine.sessions[0].connection.save_state();
    assert!(running.is_err(), "rings run");
    machine.guest.run(50);
    let state = machine.pause(way).remove(0);
    assert_eq!(disk.extentctl(&["snapshot", "one"]).status, Some(0));
    let clone = |name: &str, more: &[&str]| {
        let image = disk.snapshots.join(name);
        Clone::of(&disk.snapshots.join("one"), &image, more)
    };
    let refused = |clone: &Clone, says: &str| {
        let session = way.connect(&clone.socket);
        assert!(session.connection.load_state(&state).is_err());
        let line = clone.daemon.wait_stderr(|line| line.contains(says));
        line.unwrap();
    };
    let serial = ["--serial", "vm"];
    let other = clone("other", &["--serial", "other"]);
    refused(&other, "another serial: give the same --serial");
    let longer = clone("longer", &serial);
    let more = (crate::rig::IMAGE + 4096).to_string();
    let resized = extentctl(&[&longer.control], &["resize", &more]);
    assert_eq!(resized.status, Some(0), "{}", resized.error);
    refused(
        &longer,
        "the state is of a disk of 16384 sectors, and this one has 16392",
    );
    let same = clone("same", &serial);
    // What is no state of its disks, and what was cut off.
    for wrong in [&b"no state"[..], &state[..20]] {
        let session = way.connect(&same.socket);
        assert!(session.connection.load_state(wrong).is_err());
    }
    // What was refused has spoilt nothing, and a clone of it goes on.
    let mut session = way.connect(&same.socket);
    session.connection.load_state(&state).unwrap();
    let mut guest = machine.guest.copied(9);
    way.start(&mut session, &guest, 0);
    guest.settle();
}
