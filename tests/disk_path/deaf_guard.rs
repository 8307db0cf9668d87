//! The guard does not turn any more: it does not see that somebody asks for
//! the image, and the kernel lets them in when the lease has been asked for
//! long enough. No raw request may come after that: whoever makes one looks at
//! the lease itself.

use std::fs::OpenOptions;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use front_end::LIMIT;
use rig::file_systems::{EXT4, Made, Mounted, XFS};
use rig::image::Image;
use rig::model::{SECTOR, Value};

use crate::break_time::{BreakTime, SHORT};
use crate::disturb::{Others, Stopper};
use crate::lane::STEP;
use crate::served::{Guest, Served};

/// Bytes of the image, and its sectors.
const BYTES: usize = 32 << 20;
const SECTORS: usize = BYTES / SECTOR;
/// What the guest writes.
const LATER: Value = 2;
/// Requests that a queue makes after others have got the image's blocks: more
/// than once around.
const AFTER: u64 = 2 * (SECTORS / STEP) as u64;

/// Takes the image away from a process whose guard is deaf while one queue of
/// its guest writes and another pauses; what became of other files.
fn take_away(made: Made, left_out: &str) -> Option<Vec<String>> {
    let host = Mounted::new(made)?;
    let image = Image::written(&host, BYTES);
    let served = Served::start_without(&image.path, &[], left_out);
    let mut guest = Guest::attach(&served);
    served.wait_disk();
    guest.load(&served, 0..SECTORS);
    // Where two queues wait for each other's blocks, one would pause.
    let (first, second) = (0..SECTORS / 2, SECTORS / 2..SECTORS);
    let mut lanes = guest.lanes();
    let mut pausing = lanes.pop().unwrap();
    let mut writing = lanes.pop().unwrap();
    pausing.fill(second.clone(), LATER);

    let _short = BreakTime::seconds(SHORT)?;
    let mut others = Others::default();
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| writing.write_until(&stop, first, LATER, LIMIT, &count));
        let stopper = Stopper(&stop);
        served.wait("requests", |_| count.load(Ordering::Relaxed) > AFTER);
        // Waits until the kernel takes the lease away.
        let foreign = OpenOptions::new().write(true).open(&image.path).unwrap();
        foreign.set_len(0).unwrap();
        foreign.set_len(BYTES as u64).unwrap();
        others.occupy(&host, "new");
        let before = count.load(Ordering::Relaxed);
        served.wait("requests afterwards", |_| {
            count.load(Ordering::Relaxed) > before + AFTER
        });
        drop(stopper);
    });
    for at in second.step_by(STEP) {
        pausing.write(at..at + STEP, LATER);
    }
    let disk = served.disk();
    if !left_out.contains("look") {
        assert_eq!(disk["guard"]["late"], true, "{disk}");
        assert!(
            disk["guard"]["turned_ms_ago"].as_u64() > Some(1000 * SHORT),
            "{disk}"
        );
    }
    // In an orderly end it would wait for the guard.
    served.daemon.kill().unwrap();
    Some(others.spoilt())
}

fn others_are_spared(made: Made) {
    if let Some(spoilt) = take_away(made, "deaf") {
        assert_eq!(spoilt, Vec::<String>::new());
    }
}

/// How often a control is run before it counts as having seen nothing: others'
/// files may happen to get blocks that the guest does not write any more.
const CHANCES: usize = 3;

fn others_would_be_spoilt(made: Made) {
    for _ in 0..CHANCES {
        match take_away(made, "deaf,look,clock") {
            Some(spoilt) if spoilt.is_empty() => {}
            _ => return,
        }
    }
    panic!("nothing was spoilt in {CHANCES} runs");
}

#[test]
fn a_deaf_guard_lets_no_raw_request_come_late_on_ext4() {
    others_are_spared(EXT4);
}

#[test]
fn a_deaf_guard_lets_no_raw_request_come_late_on_xfs() {
    others_are_spared(XFS);
}

#[test]
fn where_only_a_deaf_guard_looks_at_the_lease_ext4_is_corrupted() {
    others_would_be_spoilt(EXT4);
}

#[test]
fn where_only_a_deaf_guard_looks_at_the_lease_xfs_is_corrupted() {
    others_would_be_spoilt(XFS);
}
