//! A disk that fails, in places or at times: the right status for the right request, counted, and
//! logged ever more rarely.

use std::time::Instant;

use front_end::codes::status;
use front_end::{LIMIT, Op};
use rig::asker::{Asker, REQUESTS, even, sectors};
use rig::model::SECTOR;
use rig::operator;

use crate::inside::{self, Stage};
use crate::mapped::Mapped;

const PATHS: [(&str, &[&str]); 2] = [("disk", &[]), ("file", &["--io-path", "file"])];

#[test]
fn a_disk_that_fails_fails_the_requests_that_it_fails_and_no_others() {
    inside::play(&["fails in places", "fails at times"]);
}

/// A guest of a process, once its requests take this path.
fn attach(mapped: &Mapped, path: &str, arguments: &[&str]) -> Asker {
    let mut asker = Asker::new(&rig::extentd!(), &mapped.image(), arguments);
    operator::wait_path(&asker.place.control, path);
    let ended = asker.all(Op::Write, 0..REQUESTS);
    assert!(ended.iter().all(|(_, status)| *status == status::OK));
    asker
}

/// The requests that failed.
fn failed(ended: &[(usize, u8)]) -> Vec<usize> {
    let mut failed = Vec::new();
    for &(request, status) in ended {
        match status {
            status::OK => {}
            status::IOERR => failed.push(request),
            other => panic!("request {request} ended with status {other}"),
        }
    }
    failed
}

/// Everything works again, and what was ever written is there.
fn recovers(mut asker: Asker, errors: usize) {
    assert_eq!(asker.place.errors(), errors as u64);
    let complaints = asker.complaints();
    // Each time that there are twice as many.
    let most = errors.ilog2() as usize + 1;
    assert!((1..=most).contains(&complaints), "{complaints} of {errors}");
    for op in [Op::Write, Op::Read] {
        assert!(failed(&asker.all(op, 0..REQUESTS)).is_empty());
    }
    assert!((0..REQUESTS).all(|request| asker.holds(request, 9)));
    println!("{errors} requests failed, {complaints} lines said so");
    assert!(asker.daemon.terminate().unwrap().success());
}

pub fn fails_in_places(stage: &Stage) {
    let mapped = Mapped::new("first", &stage.devices[0]);
    for (path, arguments) in PATHS {
        let mut asker = attach(&mapped, path, arguments);
        let odd: Vec<usize> = (1..REQUESTS).step_by(2).collect();
        let bytes = |request: &usize| {
            let sectors = sectors(*request);
            (sectors.start * SECTOR) as u64..(sectors.end * SECTOR) as u64
        };
        mapped.change(&mapped.failing(&asker.place.image, odd.iter().map(bytes)));
        let rounds = 8;
        for _ in 0..rounds {
            for op in [Op::Write, Op::Read] {
                assert_eq!(failed(&asker.all(op, 0..REQUESTS)), odd, "{op:?}");
            }
            assert!(even().all(|request| asker.holds(request, 9)));
        }
        mapped.change(&mapped.linear());
        recovers(asker, rounds * 2 * odd.len());
    }
}

pub fn fails_at_times(stage: &Stage) {
    let mapped = Mapped::new("first", &stage.devices[0]);
    for (path, arguments) in PATHS {
        let mut asker = attach(&mapped, path, arguments);
        // A second of each.
        mapped.change(&mapped.table(&format!("flakey {} 0 1 1", mapped.under())));
        let (mut errors, mut turns, mut failing) = (0, 0, false);
        let start = Instant::now();
        while turns < 4 {
            assert!(start.elapsed() < LIMIT, "it does not fail at times");
            for op in [Op::Write, Op::Read] {
                let ended = asker.all(op, 0..REQUESTS);
                let failed = failed(&ended);
                errors += failed.len();
                if op == Op::Read {
                    let read = |request: &usize| !failed.contains(request);
                    assert!((0..REQUESTS).filter(read).all(|r| asker.holds(r, 9)));
                }
                turns += usize::from(failing == failed.is_empty());
                failing = !failed.is_empty();
            }
        }
        mapped.change(&mapped.linear());
        recovers(asker, errors);
    }
}
