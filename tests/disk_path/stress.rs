//! Random requests of all alignments while others disturb in every way: no
//! byte may be wrong, in the image or in any other file. Without the guard the
//! same must go wrong, or it would prove nothing.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::files::read_direct;
use rig::image::{BYTES, Image, SECTORS};
use rig::model::{Model, SECTOR, holds};
use rig::program::run;

use crate::client::{Client, owner};
use crate::disturb::{self, Others, Stopper};
use crate::served::{Guest, Served};

const BIG_EXT4: Made = Made {
    mkfs: &["mkfs.ext4", "-q", "-F", "-b", "4096"],
    megabytes: 224,
    ..EXT4
};

/// Most copies that are made of an image until one is spoilt.
const COPIES: usize = 20;

/// What was wrong in the end.
#[derive(Debug, Default)]
struct Outcome {
    /// In what the guest read.
    reads: Vec<String>,
    /// In the image, as the host has it.
    image: Vec<String>,
    /// In other files.
    others: Vec<String>,
}

impl Outcome {
    fn wrong(&self) -> usize {
        self.reads.len() + self.image.len() + self.others.len()
    }

    /// A few of each.
    fn shorten(&mut self) {
        for list in [&mut self.reads, &mut self.image, &mut self.others] {
            list.truncate(5);
        }
    }
}

/// Lets the guest use the disk path for a while.
fn use_disk(served: &Served) {
    let before = served.wait_disk();
    served.wait("requests by the disk", |now| {
        now.disk_operations > before.disk_operations + 1000
    });
}

/// Everything, with the disk path in use before and after each.
fn disturb(host: &Mounted, image: &Image, served: &Served, others: &mut Others, full: &AtomicBool) {
    let path = &image.path;
    let timed = |what: &str, disturbance: &mut dyn FnMut()| {
        let start = Instant::now();
        use_disk(served);
        let used = start.elapsed();
        disturbance();
        let took = start.elapsed() - used;
        eprintln!("{what} took {took:?}, {used:?} after the one before");
    };
    for round in 0..2 {
        timed("freezing", &mut || disturb::freeze(host));
        timed("remounting", &mut || disturb::remount(host));
        timed("other files", &mut || disturb::churn(host));
        timed("filling", &mut || {
            disturb::fill_up(host, full, || {
                let before = served.info();
                served.wait("requests while it is full", |now| {
                    now.requests > before.requests + 2000
                });
            });
        });
        timed("defragmenting", &mut || disturb::defragment(host, path));
        others
            .write(host.path(&format!("after-{round}")), 8 << 20)
            .unwrap();
        timed("opening", &mut || drop(File::open(path).unwrap()));
        timed("reading", &mut || drop(disturb::cat(path)));
        timed("truncating", &mut || disturb::try_truncate(path));
        if !host.is_ext4() {
            timed("sharing", &mut || {
                others.keep(disturb::reflink(path, host.path(&format!("copy-{round}"))));
            });
        }
    }
    use_disk(served);
}

/// What has blocks of the image given to others, without asking for the lease.
fn give_away(host: &Mounted, image: &Image, served: &Served, others: &mut Others) {
    use_disk(served);
    disturb::defragment(host, &image.path);
    // A copy is spoilt by whoever still believes that its blocks are the
    // image's alone, which the map does only until it has read them again.
    for round in (0..COPIES).filter(|_| !host.is_ext4()) {
        others.keep(disturb::reflink(
            &image.path,
            host.path(&format!("copy-{round}")),
        ));
        use_disk(served);
        if !others.spoilt().is_empty() {
            break;
        }
    }
    let mut count = 0;
    while others
        .write(host.path(&format!("new-{count}")), 4 << 20)
        .is_some()
    {
        count += 1;
    }
    use_disk(served);
}

fn stress(made: Made, guarded: bool) -> Option<Outcome> {
    let host = Mounted::new(made)?;
    let mut others = Others::default();
    others.write(host.path("before"), 8 << 20).unwrap();
    let image = Image::scattered(&host);
    if let Some(twin) = &image.twin {
        others.keep(twin.clone());
    }
    let pieces = disturb::extents(&image.path);
    assert!(pieces > 100, "the image is in {pieces} pieces only");

    let variables: &[(&str, &str)] = if guarded {
        &[]
    } else {
        &[("EXTENTD_TEST_UNGUARDED", "1")]
    };
    // e4defrag leaves a locked file alone.
    let served = Served::start(&image.path, &["--lock", "off"], variables);
    let Guest {
        session,
        memory,
        drivers,
    } = Guest::attach(&served);
    let (stop, full) = (AtomicBool::new(false), AtomicBool::new(!guarded));
    let mut clients: Vec<_> = drivers
        .into_iter()
        .enumerate()
        .map(|queue| Client::new(queue, &memory, Model::new(&image.values), SECTORS, &full))
        .collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| client.run(&stop));
        }
        let stopper = Stopper(&stop);
        if guarded {
            disturb(&host, &image, &served, &mut others, &full);
        } else {
            give_away(&host, &image, &served, &mut others);
        }
        drop(stopper);
    });
    for client in &mut clients {
        client.flush();
    }
    let info = served.info();
    let ended: usize = clients.iter().map(|client| client.ended).sum();
    let pardoned: usize = clients.iter().map(|client| client.pardoned).sum();
    eprintln!(
        "{}: {ended} requests, {pardoned} without room; {info:?}",
        made.name
    );
    drop(session);
    if guarded {
        // Four disturbances of each round, or five, take the lease away.
        let breaks = if host.is_ext4() { 8 } else { 10 };
        assert!(info.entries > breaks, "{info:?}");
        assert!(pardoned > 0, "the file system was never full");
        assert!(served.daemon.terminate().unwrap().success());
    } else {
        // In an orderly end it would flush what is better left alone.
        served.daemon.kill().unwrap();
    }

    let mut outcome = Outcome {
        others: others.spoilt(),
        ..Outcome::default()
    };
    let bytes = read_direct(&image.path);
    assert_eq!(bytes.len(), BYTES);
    for (sector, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
        let may = clients[owner(sector)].model.now(sector);
        if !may.iter().any(|&value| holds(value, sector, bytes)) {
            outcome
                .image
                .push(format!("sector {sector} is not {may:?}"));
        }
    }
    for client in &mut clients {
        outcome.reads.append(&mut client.wrong);
    }
    if guarded {
        run(Command::new("umount").arg(host.root())).unwrap();
        disturb::check(host.is_ext4(), host.device()).unwrap();
        run(Command::new("mount").arg(host.device()).arg(host.root())).unwrap();
        outcome.others.append(&mut others.spoilt());
        if disturb::cat(&image.path) != bytes {
            outcome
                .image
                .push("another mount shows another image".to_owned());
        }
    }
    Some(outcome)
}

fn nothing_goes_wrong(made: Made) {
    if let Some(mut outcome) = stress(made, true) {
        let wrong = outcome.wrong();
        outcome.shorten();
        assert_eq!(wrong, 0, "{outcome:#?}");
    }
}

/// How often the control is run before it counts as having seen nothing: it
/// takes chance for a block to change hands while it is written.
const CHANCES: usize = 5;

fn the_unguarded_path_corrupts(made: Made) {
    for _ in 0..CHANCES {
        let Some(outcome) = stress(made, false) else {
            return;
        };
        let (reads, image, others) = (
            outcome.reads.len(),
            outcome.image.len(),
            outcome.others.len(),
        );
        eprintln!("wrong: {reads} reads, {image} sectors, {others} other files");
        if image + others > 0 {
            return;
        }
    }
    panic!("nothing was corrupted in {CHANCES} runs");
}

#[test]
fn nothing_goes_wrong_on_ext4_whatever_others_do() {
    nothing_goes_wrong(BIG_EXT4);
}

#[test]
fn nothing_goes_wrong_on_xfs_whatever_others_do() {
    nothing_goes_wrong(XFS);
}

#[test]
fn without_the_guard_ext4_is_corrupted() {
    the_unguarded_path_corrupts(BIG_EXT4);
}

#[test]
fn without_the_guard_xfs_is_corrupted() {
    the_unguarded_path_corrupts(XFS);
}
