//! The stress of the disk path: a guest with random requests, while everybody
//! who can reach the image, its file system, its disk or the process that
//! serves it does what he can, for as long as is wanted. No sector may be
//! wrong, stale or another file's, and no other file may be touched. Without
//! the guard the same must go wrong.
//!
//! `EXTENTD_TEST_STORM_SECONDS` says how long each takes, and
//! `EXTENTD_TEST_STORM_SEED` what the random numbers begin with.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use front_end::Session;
use front_end::codes::feature;
use rig::file_systems::{EXT4, EXT4_1K, EXT4_BIGALLOC, Made, Mounted, XFS, XFS_1K, XFS_4KN, sync};
use rig::files::{open_direct, read_direct, write_direct};
use rig::image::{FIRST, Image, MIXED, SECTORS};
use rig::model::{Found, Model, SECTOR, content};
use rig::program::run;

use crate::break_time::{BreakTime, SHORT};
use crate::client::{Client, owner};
use crate::disturb::{self, Stopper};
use crate::length::Length;
use crate::requests::Habits;
use crate::served::{Guest, QUEUES, Served};

use disturber::{Copies, Scene, Storm};
use guest::Guests;
use ioctls::Mapped;
use pace::{Pace, Work};
use process::{HAND_OVERS, KILLS, LONG, Process, RESIZES};

mod blocks;
mod disturber;
mod guest;
mod hosts;
mod ioctls;
mod names;
mod neighbours;
mod opens;
mod pace;
mod process;
mod snapshots;

/// Seconds of a storm, if the environment does not say.
const SECONDS: u64 = 8;
/// In a storm this long everybody has his turn.
const THOROUGH: Duration = Duration::from_secs(300);
/// Bytes at the beginning of the image that hold the same for ever.
const STILL: usize = 8 << 20;
/// The shortest and the longest that the image becomes, in bytes.
const LEAST: usize = 24 << 20;
const MOST: usize = 60 << 20;
/// How soon a lost lease is asked for again, in milliseconds.
const LEASE_DELAY: &str = "10";

/// Blocks of 4 KiB also where the tool would choose smaller ones.
const EXT4_4K: Made = Made {
    mkfs: &["mkfs.ext4", "-q", "-F", "-b", "4096"],
    ..EXT4
};

const HABITS: Habits = Habits {
    seed: 0,
    all: 80,
    writes: 34,
    reads: 38,
    discards: 2,
    zeroings: 3,
    ragged: 8,
    long: 3,
    still: STILL / SECTOR,
};

/// A storm: where, and how the image is served there.
#[derive(Clone, Copy)]
struct Kind {
    made: Made,
    swap: bool,
    guarded: bool,
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    kind: &'static str,
    seed: u64,
    requests: usize,
    pardoned: usize,
    work: Work,
    kills: usize,
    hand_overs: usize,
    resizes: usize,
    /// In what the guest read, and in the image at the end.
    found: Found,
    /// Other files that were touched.
    others: usize,
    checked: usize,
    /// What was wrong, in words.
    wrong: Vec<String>,
    /// Who has never disturbed.
    idle: Vec<&'static str>,
}

impl Outcome {
    fn summary(&self) -> String {
        let Found {
            wrong,
            stale,
            foreign,
        } = self.found;
        format!(
            "storm on {}: {} requests, {} without room, {} % raw, {} entries, {} kills, \
             {} hand-overs, {} resizes; {wrong} wrong, {stale} stale, {foreign} foreign sectors, \
             {} of {} other files touched; seed {}",
            self.kind,
            self.requests,
            self.pardoned,
            self.work.share(),
            self.work.entries,
            self.kills,
            self.hand_overs,
            self.resizes,
            self.others,
            self.checked,
            self.seed
        )
    }

    fn is_clean(&self) -> bool {
        self.found == Found::default() && self.others == 0 && self.wrong.is_empty()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn length() -> Duration {
    Duration::from_secs(number("EXTENTD_TEST_STORM_SECONDS").unwrap_or(SECONDS))
}

fn seed() -> u64 {
    number("EXTENTD_TEST_STORM_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos())
    })
}

/// For one of the threads, never 0.
fn seed_of(seed: u64, thread: u64) -> u64 {
    (seed << 8 | thread).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The part that never changes gets its content, and so does another file.
fn make_still(host: &Mounted, image: &mut Image) -> Vec<u8> {
    let bytes = content(FIRST, 0..STILL / SECTOR);
    write_direct(&open_direct(&image.path), &bytes, 0);
    image.values[..STILL / SECTOR].fill(FIRST);
    std::fs::write(host.path("still"), &bytes).unwrap();
    sync(host);
    bytes
}

fn storm(kind: Kind) -> Option<Outcome> {
    let _short = BreakTime::seconds(SHORT)?;
    let seed = seed();
    let name = kind.made.name;
    eprintln!("storm on {name}: EXTENTD_TEST_STORM_SEED={seed}");
    let host = Mounted::new(Made {
        megabytes: 448,
        ..kind.made
    })?;
    let mut image = Image::in_gaps(&host, &MIXED);
    let still = make_still(&host, &mut image);
    let mut copies = Copies::default();
    for path in image.twin.iter().cloned().chain([host.path("still")]) {
        copies.files.keep(path);
    }
    let block = run(Command::new("stat").args(["-fc", "%S"]).arg(host.root()));

    let mut arguments = Vec::new();
    if kind.swap {
        arguments.push("--swap=best-effort");
    }
    // Swap-grade images have no snapshots, and ext4 cannot share blocks.
    let folder = (!kind.swap && kind.guarded && !host.is_ext4()).then(|| host.path("snapshots"));
    if let Some(folder) = &folder {
        std::fs::create_dir(folder).unwrap();
        // For each process of the storm.
        let folder = folder.to_str().unwrap().to_owned().leak();
        arguments.extend(["--snapshot-dir", folder]);
    }
    let mut variables = vec![("EXTENTD_TEST_LEASE_DELAY", LEASE_DELAY)];
    if !kind.guarded {
        variables.push(("EXTENTD_TEST_UNGUARDED", "1"));
    }
    let mapped = Mapped::new(&image.path, LEAST).unwrap();
    let served = Served::start(&image.path, &arguments, &variables);
    let Guest {
        session,
        memory,
        drivers,
    } = Guest::attach(&served);
    let storm = Storm::new(Scene {
        pace: Pace::new(served.control(), length()),
        image: image.path,
        still,
        block: block.unwrap().trim().parse().unwrap(),
        guarded: kind.guarded,
        snapshots: folder.map(|folder| (folder, served.control().to_owned())),
        length: Arc::new(Length::new(SECTORS)),
        copies,
        host,
    });
    let mut values = image.values;
    values.resize(MOST / SECTOR, 0);
    let offered = session.features & feature::DISCARD != 0;
    let habits = |queue: usize| Habits {
        seed: seed_of(seed, 10 + queue as u64),
        discards: if offered { HABITS.discards } else { 0 },
        ..HABITS
    };
    let client = |(queue, driver)| {
        let model = Model::without_crash(&values);
        Client::new((queue, driver), &memory, model, 0, &storm.full)
            .with(habits(queue), &storm.length)
    };
    let clients = drivers.into_iter().enumerate().map(client).collect();
    let guests = Guests::new(clients, memory.clone());
    let process = Process::new(
        (served, session),
        &storm,
        &guests,
        arguments,
        variables,
        mapped,
    );
    let served = blow(&storm, &guests, process, kind, seed);
    let clients = guests.into_clients();
    Some(judge(&storm, clients, served, kind, seed))
}

/// All of it at once, until the time is over or something is found.
fn blow(
    storm: &Storm,
    guests: &Guests<'_>,
    mut process: Process<'_, '_>,
    kind: Kind,
    seed: u64,
) -> (Served, Session) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopper = Stopper(&stop);
        for queue in 0..QUEUES {
            scope.spawn({
                let stop = &stop;
                move || {
                    let _ending = Ending(storm);
                    guests.play(queue, &storm.pace, || stop.load(Ordering::SeqCst));
                }
            });
        }
        let disturbers: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || {
                    let _ending = Ending(storm);
                    storm.disturb(thread == 2, seed_of(seed, thread));
                })
            })
            .collect();
        let stirrer = scope.spawn(|| {
            let _ending = Ending(storm);
            storm.stir(seed_of(seed, 4));
        });
        let _ending = Ending(storm);
        process.disturb(kind.swap, length() >= LONG, seed_of(seed, 5));
        // The guest goes on until nobody waits for it any more.
        for thread in disturbers.into_iter().chain([stirrer]) {
            thread.join().unwrap();
        }
        storm.pace.rest();
        drop(stopper);
    });
    process.end()
}

/// Ends the storm if its thread panics.
struct Ending<'a>(&'a Storm);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.pace.end();
        }
    }
}

/// Looks at everything once more: as it is, and after another mount.
fn judge(
    storm: &Storm,
    mut clients: Vec<Client<'_>>,
    (served, session): (Served, Session),
    kind: Kind,
    seed: u64,
) -> Outcome {
    for client in &mut clients {
        client.flush();
    }
    let (_, work) = storm.pace.look().unwrap();
    drop(session);
    if kind.guarded {
        assert!(served.daemon.terminate().unwrap().success());
    } else {
        // In an orderly end it would flush what is better left alone.
        served.daemon.kill().unwrap();
    }
    let mut outcome = Outcome {
        kind: kind.made.name,
        seed,
        requests: clients.iter().map(|client| client.ended).sum(),
        pardoned: clients.iter().map(|client| client.pardoned).sum(),
        work,
        kills: storm.times(KILLS),
        hand_overs: storm.times(HAND_OVERS),
        resizes: storm.times(RESIZES),
        found: Found::default(),
        others: 0,
        checked: 0,
        wrong: storm.violations.lock().unwrap().clone(),
        idle: storm.idle(),
    };
    let bytes = read_direct(&storm.image);
    if bytes.len() != storm.length.sectors() * SECTOR {
        outcome
            .wrong
            .push("the image has another length".to_owned());
    }
    for (sector, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
        let client = &mut clients[owner(sector)];
        for fault in client.model.faults(sector..sector + 1, bytes) {
            client.found.count(fault.kind);
            client.wrong.push(format!("at the end {}", fault.text));
        }
    }
    for client in &mut clients {
        outcome.found.add(client.found);
        outcome.wrong.append(&mut client.wrong);
    }
    let mut neighbours = storm.neighbours.lock().unwrap();
    let copies = storm.copies.lock().unwrap();
    neighbours.check();
    let mut spoilt = copies.files.spoilt();
    if kind.guarded {
        let root = storm.host.root();
        run(Command::new("umount").arg(&root)).unwrap();
        disturb::check(storm.host.is_ext4(), storm.host.device()).unwrap();
        run(Command::new("mount").arg(storm.host.device()).arg(&root)).unwrap();
        neighbours.check();
        spoilt.append(&mut copies.files.spoilt());
        if disturb::cat(&storm.image) != bytes {
            let text = "another mount shows another image";
            outcome.wrong.push(text.to_owned());
        }
    }
    spoilt.append(&mut neighbours.spoilt);
    outcome.others = spoilt.len();
    outcome.checked = neighbours.checked + copies.made;
    outcome.wrong.append(&mut spoilt);
    eprintln!("{}", outcome.summary());
    eprintln!("{}", storm.counts());
    if !outcome.is_clean() {
        eprintln!("{:#?}", storm.latest());
    }
    outcome
}

/// A few of many.
fn shorten(wrong: &mut Vec<String>) {
    wrong.truncate(20);
}

fn nothing_goes_wrong(made: Made, swap: bool) {
    let kind = Kind {
        made,
        swap,
        guarded: true,
    };
    let Some(mut outcome) = storm(kind) else {
        return;
    };
    shorten(&mut outcome.wrong);
    assert!(outcome.is_clean(), "{outcome:#?}");
    assert!(outcome.work.share() >= 50, "{outcome:#?}");
    assert!(outcome.kills > 0 && outcome.hand_overs > 0, "{outcome:#?}");
    assert!(outcome.resizes > 0 || swap, "{outcome:#?}");
    assert!(
        outcome.idle.is_empty() || length() < THOROUGH,
        "{outcome:#?}"
    );
}

/// How often the control is run before it counts as having seen nothing: it
/// takes chance for a block to change hands while it is used.
const CHANCES: usize = 5;

fn without_the_guard_something_goes_wrong(made: Made) {
    let kind = Kind {
        made,
        swap: false,
        guarded: false,
    };
    for _ in 0..CHANCES {
        let Some(outcome) = storm(kind) else {
            return;
        };
        if outcome.found != Found::default() || outcome.others > 0 {
            return;
        }
    }
    panic!("nothing was found in {CHANCES} storms");
}

#[test]
fn a_storm_finds_nothing_on_ext4() {
    nothing_goes_wrong(EXT4_4K, false);
}

#[test]
fn a_storm_finds_nothing_on_ext4_with_small_blocks() {
    nothing_goes_wrong(EXT4_1K, false);
}

#[test]
fn a_storm_finds_nothing_on_ext4_with_clusters() {
    nothing_goes_wrong(EXT4_BIGALLOC, false);
}

#[test]
fn a_storm_finds_nothing_on_xfs() {
    nothing_goes_wrong(XFS, false);
}

#[test]
fn a_storm_finds_nothing_on_xfs_with_small_blocks() {
    nothing_goes_wrong(XFS_1K, false);
}

#[test]
fn a_storm_finds_nothing_on_xfs_with_large_sectors() {
    nothing_goes_wrong(XFS_4KN, false);
}

#[test]
fn a_storm_finds_nothing_of_a_disk_to_swap_on_on_ext4() {
    nothing_goes_wrong(EXT4_4K, true);
}

#[test]
fn a_storm_finds_nothing_of_a_disk_to_swap_on_on_xfs() {
    nothing_goes_wrong(XFS, true);
}

#[test]
fn without_the_guard_a_storm_finds_something_on_ext4() {
    without_the_guard_something_goes_wrong(EXT4_4K);
}

#[test]
fn without_the_guard_a_storm_finds_something_on_xfs() {
    without_the_guard_something_goes_wrong(XFS);
}
