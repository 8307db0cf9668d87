//! A service manager that keeps descriptors: the process ends and another one goes
//! on with the same connection, of which the front-end notices nothing.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use front_end::codes::{feature, protocol};
use front_end::{Daemon, LIMIT, Like, Session, wait_readable};
use rig::file_systems::{EXT4, Mounted};
use rig::files::read_direct;
use rig::image::Image;
use rig::lanes::Lanes;
use rig::place::guest;
use rig::random::Random;
use rig::service_manager::ServiceManager;

const RESTARTS: usize = 5;
const KILLS: usize = 20;
/// Most microseconds that a process lives after its session is kept.
const LIFE: usize = 100_000;

/// What a front-end has to have for a process that may end at any time.
const RECORDED: u64 = u64::MAX;
const UNRECORDED: u64 = !protocol::INFLIGHT_SHMFD;

/// A guest under load whose front-end has one connection.
struct Guest {
    manager: ServiceManager,
    image: Image,
    lanes: Lanes,
    session: Session,
}

impl Guest {
    fn new(host: &Mounted, like: Like, wanted: u64) -> (Self, Daemon) {
        let image = Image::scattered(host);
        let manager = ServiceManager::new(&rig::extentd!(), &image.path);
        let daemon = manager.start(&[]);
        let mut lanes = Lanes::new(guest(), &image.values, 7);
        let mut session = manager.connect(like, feature::ALL, wanted);
        lanes.start(&mut session).unwrap();
        lanes.proceed();
        let guest = Self {
            manager,
            image,
            lanes,
            session,
        };
        (guest, daemon)
    }

    fn is_connected(&self) -> bool {
        wait_readable(self.session.connection.stream(), Duration::ZERO).is_err()
    }

    /// The front-end hears that its connection has ended.
    fn wait_hung_up(&self) {
        wait_readable(self.session.connection.stream(), LIMIT).unwrap();
        assert!(self.session.connection.receive().is_err());
    }

    /// Ends the process as a restart does, under load.
    fn end(&mut self, mut daemon: Daemon) {
        daemon.signal(libc::SIGTERM).unwrap();
        let status = loop {
            if let Ok(status) = daemon.wait_within(Duration::ZERO) {
                break status;
            }
            let soon = Instant::now() + Duration::from_millis(1);
            self.lanes.run_until(soon);
        };
        assert!(status.success());
        assert!(self.is_connected(), "the restart was noticed");
    }

    /// All that was asked for has come, once and as it was to be.
    fn check(mut self, daemon: Daemon) {
        assert_eq!(self.lanes.settle(&mut self.session), 0);
        drop(self.session);
        self.manager.wait_empty();
        assert!(daemon.terminate().unwrap().success());
        assert_eq!((self.lanes.repeated, &self.lanes.wrong[..]), (0, &[][..]));
        self.lanes.check(&read_direct(&self.image.path));
    }
}

fn restarts_under_load(like: Like, wanted: u64) {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, mut daemon) = Guest::new(&host, like, wanted);
    for round in 0..RESTARTS {
        let began = Instant::now();
        if round % 2 == 1 {
            // What was answered last is not done again where nothing follows.
            assert_eq!(guest.lanes.settle(&mut guest.session), 0);
            guest.lanes.start(&mut guest.session).unwrap();
            assert!(daemon.terminate().unwrap().success());
        } else {
            guest.end(daemon);
        }
        daemon = guest.manager.start(&[]);
        let ended = guest.lanes.ended;
        while guest.lanes.ended == ended && guest.lanes.sound() {
            let soon = Instant::now() + Duration::from_millis(1);
            guest.lanes.run_until(soon);
        }
        eprintln!("{like:?}: answered again after {:?}", began.elapsed());
        guest.lanes.proceed();
        assert!(guest.is_connected(), "the restart was noticed");
        // The connection itself is served as well.
        assert_eq!(guest.lanes.settle(&mut guest.session), 0);
        guest.lanes.start(&mut guest.session).unwrap();
    }
    guest.check(daemon);
}

#[test]
fn a_restart_keeps_the_connection_and_every_request_like_qemu() {
    restarts_under_load(Like::Qemu, RECORDED);
}

#[test]
fn a_restart_keeps_the_connection_and_every_request_like_cloud_hypervisor() {
    restarts_under_load(Like::CloudHypervisor, RECORDED);
}

#[test]
fn a_restart_keeps_the_connection_without_a_record_of_requests_in_flight() {
    restarts_under_load(Like::Qemu, UNRECORDED);
}

#[test]
fn a_stop_ends_the_connection() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    guest.end(daemon);
    guest.manager.wait_settled();
    guest.manager.release();
    guest.wait_hung_up();
}

#[test]
fn a_killed_process_leaves_the_connection_to_the_next_one() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, mut daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    let mut random = Random(0x1234_5678_9abc_def1);
    guest.manager.wait_stored(0);
    for _ in 0..KILLS {
        guest.manager.wait_settled();
        let life = Duration::from_micros(random.below(LIFE) as u64);
        guest.lanes.run_until(Instant::now() + life);
        let puts = guest.manager.puts();
        daemon.kill().unwrap();
        daemon = guest.manager.start(&[]);
        guest.manager.wait_stored(puts);
        guest.lanes.proceed();
        assert!(guest.is_connected(), "the end was noticed");
    }
    guest.check(daemon);
}

#[test]
fn a_killed_process_without_a_record_ends_the_connection() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, daemon) = Guest::new(&host, Like::Qemu, UNRECORDED);
    // It has seen what there is of the session, and was quiet.
    guest
        .lanes
        .run_until(Instant::now() + Duration::from_millis(300));
    assert_eq!(guest.manager.puts(), 0);
    daemon.kill().unwrap();
    guest.wait_hung_up();
}

#[test]
fn a_process_that_ends_amid_a_message_is_not_gone_on_with() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (guest, daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    guest.manager.wait_stored(0);
    guest.manager.wait_settled();
    // A request without its payload: it is received, and the rest waited for.
    let header = [11_u32, 1, 8].map(u32::to_ne_bytes).concat();
    guest.session.connection.send_bytes(&header, &[]).unwrap();
    let start = Instant::now();
    while unread(&guest.session) > 0 {
        assert!(start.elapsed() < LIMIT, "it is not received");
    }
    daemon.kill().unwrap();
    let daemon = guest.manager.start(&[]);
    guest.wait_hung_up();
    guest.manager.wait_empty();
    connects_again(guest, daemon);
}

/// What was sent and the other end has not received, as the kernel counts it.
fn unread(session: &Session) -> i32 {
    let mut count = 0;
    let socket = session.connection.stream().as_raw_fd();
    // SAFETY: the request writes one number.
    let result = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut count) };
    assert_eq!(result, 0);
    count
}

fn connects_again(mut guest: Guest, daemon: Daemon) {
    let inflight = guest.session.inflight.take();
    guest.session = guest.manager.connect(Like::Qemu, feature::ALL, RECORDED);
    guest.session.inflight = inflight;
    guest.lanes.start(&mut guest.session).unwrap();
    guest.lanes.proceed();
    guest.check(daemon);
}

#[test]
fn a_front_end_that_hung_up_in_between_is_forgotten() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    guest.end(daemon);
    let stream = guest.session.connection.stream();
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    let daemon = guest.manager.start(&[]);
    guest.manager.wait_empty();
    connects_again(guest, daemon);
}

/// Something else happens to the image's name while no process has the image.
fn stays_the_image(changes: impl Fn(&Path), killed: bool) {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, mut daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    let (name, kept) = (guest.image.path.clone(), host.path("kept"));
    fs::hard_link(&name, &kept).unwrap();
    let mut puts = 0;
    for round in 0..2 {
        if killed {
            guest.manager.wait_stored(puts);
            guest.manager.wait_settled();
            puts = guest.manager.puts();
            daemon.kill().unwrap();
        } else {
            guest.end(daemon);
        }
        if round == 0 {
            changes(&name);
        }
        daemon = guest.manager.start(&[]);
        daemon
            .wait_stderr(|line| line.contains("is another file by now, or none"))
            .unwrap();
        guest.lanes.proceed();
        assert!(guest.is_connected(), "the restart was noticed");
    }
    guest.image.path = kept;
    guest.check(daemon);
}

#[test]
fn a_disk_stays_the_image_that_it_was_when_another_file_gets_its_name() {
    let replace = |name: &Path| {
        let other = name.with_extension("other");
        let length = fs::metadata(name).unwrap().len();
        File::create(&other).unwrap().set_len(length).unwrap();
        fs::rename(&other, name).unwrap();
    };
    stays_the_image(replace, false);
    stays_the_image(replace, true);
}

#[test]
fn a_disk_stays_the_image_that_it_was_when_its_name_is_removed() {
    stays_the_image(|name| fs::remove_file(name).unwrap(), false);
}

#[test]
fn a_guest_that_comes_later_gets_what_has_the_name() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    guest.end(daemon);
    drop(guest.session);
    let other = host.path("other");
    fs::copy(&guest.image.path, &other).unwrap();
    let inode = fs::metadata(&other).unwrap().ino();
    fs::rename(&other, &guest.image.path).unwrap();
    let daemon = guest.manager.start(&[]);
    guest.manager.wait_empty();
    let opened = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let mut opened = opened.filter_map(|entry| fs::metadata(entry.unwrap().path()).ok());
    assert!(
        opened.any(|file| file.ino() == inode),
        "it has another file"
    );
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn a_disk_that_has_become_another_one_is_not_gone_on_with() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    guest.end(daemon);
    let image = OpenOptions::new().write(true).open(&guest.image.path);
    let image = image.unwrap();
    let before = image.metadata().unwrap().len();
    image.set_len(before + 4096).unwrap();
    let daemon = guest.manager.start(&[]);
    guest.wait_hung_up();
    daemon
        .wait_stderr(|line| line.contains("the process before has to connect again"))
        .unwrap();
    assert!(daemon.terminate().unwrap().success());
    image.set_len(before).unwrap();
    let daemon = guest.manager.start(&[]);
    connects_again(guest, daemon);
}

#[test]
fn what_the_manager_does_not_keep_is_said() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (mut guest, daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    guest.manager.wait_stored(0);
    guest.manager.wait_settled();
    guest.manager.go_deaf();
    assert_eq!(guest.lanes.settle(&mut guest.session), 0);
    guest.lanes.start(&mut guest.session).unwrap();
    let said = |words: &str| daemon.wait_stderr(|line| line.contains(words)).unwrap();
    said("connection is not kept for a next process");
    drop(guest.session);
    said("the service manager keeps what is of no use any more");
    assert!(daemon.terminate().unwrap().success());
}

#[test]
fn a_binary_that_is_upgraded_in_place_leaves_nothing_behind() {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let (guest, daemon) = Guest::new(&host, Like::Qemu, RECORDED);
    guest.manager.wait_stored(0);
    daemon.signal(libc::SIGUSR2).unwrap();
    guest.wait_hung_up();
    guest.manager.wait_empty();
    connects_again(guest, daemon);
}
