//! The process is killed at random instants under random requests, and
//! another goes on: every request ends once, and every byte is right.
//!
//! `EXTENTD_TEST_KILLS` says how often each of the four is killed.

use std::time::{Duration, Instant};

use front_end::codes::feature;
use front_end::{Inflight, Like};
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::files::read_direct;
use rig::image::Image;
use rig::lanes::Lanes;
use rig::operator;
use rig::place::{Place, guest};
use rig::random::Random;

/// How often each process is killed, if the environment does not say.
const KILLS: usize = 50;
/// Most microseconds that a process lives after it listens.
const LIFE: usize = 300_000;

fn kills() -> usize {
    std::env::var("EXTENTD_TEST_KILLS").map_or(KILLS, |text| text.parse().unwrap())
}

/// What became of the requests.
#[derive(Debug)]
struct Outcome {
    ended: usize,
    lost: usize,
    repeated: usize,
    wrong: Vec<String>,
    /// Operations of the last process that went past the file system.
    on_disk: u64,
}

/// One process's life under load. It ends at its own time, whatever is being
/// said to it then.
fn live(
    place: &Place,
    like: Like,
    lanes: &mut Lanes,
    inflight: &mut Option<Inflight>,
    life: Duration,
) {
    let daemon = place.start();
    let end = Instant::now() + life;
    let killer = std::thread::spawn(move || {
        // The subject is the instant itself.
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        daemon.kill().unwrap();
    });
    if let Some(mut session) = place.connect(like, feature::ALL) {
        session.inflight = inflight.take();
        let started = lanes.start(&mut session);
        *inflight = session.inflight.take();
        if started.is_ok() {
            lanes.run_until(end);
        }
    }
    killer.join().unwrap();
    lanes.reap();
}

/// Kills so often, and ends with requests that go one `way`; with `hand_over`,
/// each process gets the record of what the one before had in flight.
fn matrix(
    place: &Place,
    image: &Image,
    like: Like,
    kills: usize,
    hand_over: bool,
    way: Option<&str>,
) -> Outcome {
    let mut lanes = Lanes::new(guest(), &image.values, kills as u64);
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut inflight = None;
    for _ in 0..kills {
        let life = Duration::from_micros(random.below(LIFE) as u64);
        live(place, like, &mut lanes, &mut inflight, life);
        if !hand_over {
            inflight = None;
        }
        if !lanes.sound() {
            break;
        }
    }
    let daemon = place.start();
    let mut session = place.connect(like, feature::ALL).unwrap();
    session.inflight = inflight;
    lanes.start(&mut session).unwrap();
    if let Some(way) = way {
        // What follows is seen to go that way.
        operator::wait_path(&place.control, way);
    }
    lanes.run_until(Instant::now() + Duration::from_micros(LIFE as u64));
    let lost = lanes.settle(&mut session);
    let on_disk = place.disk()["operations"]["disk_operations"].as_u64();
    drop(session);
    assert!(daemon.terminate().unwrap().success());
    lanes.check(&read_direct(&image.path));
    Outcome {
        ended: lanes.ended,
        lost,
        repeated: lanes.repeated,
        wrong: lanes.wrong,
        on_disk: on_disk.unwrap(),
    }
}

/// Nothing is lost, and nothing done twice.
fn everything_ends_once(made: Made, io_path: &str, like: Like) {
    let Some(host) = Mounted::new(made) else {
        return;
    };
    let image = Image::scattered(&host);
    let place = Place::new(&rig::extentd!(), &image.path, &["--io-path", io_path]);
    let outcome = matrix(&place, &image, like, kills(), true, Some(io_path));
    eprintln!("{} kills, {like:?}, by {io_path}: {outcome:?}", kills());
    assert_eq!(
        (outcome.lost, outcome.repeated, &outcome.wrong[..]),
        (0, 0, &[][..])
    );
    assert!(outcome.ended > 10 * kills(), "{} requests", outcome.ended);
    assert_eq!(outcome.on_disk > 0, io_path == "disk");
}

/// Where nobody hands the record over, the same is seen to fail.
fn something_is_lost(like: Like) {
    let Some(host) = Mounted::new(EXT4) else {
        return;
    };
    let image = Image::scattered(&host);
    let place = Place::new(&rig::extentd!(), &image.path, &[]);
    let outcome = matrix(&place, &image, like, kills(), false, None);
    eprintln!("without the record, {like:?}: {outcome:?}");
    assert!(outcome.lost + outcome.repeated + outcome.wrong.len() > 0);
}

#[test]
fn vu_31_32_33_every_request_ends_once_over_kills_by_the_disk_on_ext4_like_qemu() {
    everything_ends_once(EXT4, "disk", Like::Qemu);
}

#[test]
fn vu_31_32_33_every_request_ends_once_over_kills_by_the_disk_on_xfs_like_cloud_hypervisor() {
    everything_ends_once(XFS, "disk", Like::CloudHypervisor);
}

#[test]
fn vu_31_32_33_every_request_ends_once_over_kills_by_file_on_ext4_like_cloud_hypervisor() {
    everything_ends_once(EXT4, "file", Like::CloudHypervisor);
}

#[test]
fn vu_31_32_33_every_request_ends_once_over_kills_by_file_on_xfs_like_qemu() {
    everything_ends_once(XFS, "file", Like::Qemu);
}

#[test]
fn without_the_record_kills_lose_or_repeat_requests_like_qemu() {
    something_is_lost(Like::Qemu);
}

#[test]
fn without_the_record_kills_lose_or_repeat_requests_like_cloud_hypervisor() {
    something_is_lost(Like::CloudHypervisor);
}
