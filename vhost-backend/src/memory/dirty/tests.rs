use std::os::unix::fs::FileExt;

use super::*;
use crate::sys;
use crate::testing::guest::Guest;

/// A log of so many bytes, and its file.
pub(crate) fn log(bytes: u64) -> (Arc<Log>, File) {
    let file = sys::sealed_memory(c"log", bytes).unwrap();
    let log = Log::open(file.try_clone().unwrap(), 0, bytes).unwrap();
    (Arc::new(log), file)
}

/// Takes the marked pages away, as a front-end does.
pub(crate) fn take_pages(file: &File) -> Vec<u64> {
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).unwrap();
    file.write_all_at(&vec![0; len], 0).unwrap();
    let marked = |page: &u64| {
        let byte = bytes[usize::try_from(page / 8).unwrap()];
        byte & (1 << (page % 8)) != 0
    };
    (0..8 * len as u64).filter(marked).collect()
}

#[test]
fn vu_37_every_page_of_a_range_is_marked_and_no_other() {
    let (log, file) = log(16);
    for first in 0..24_u64 {
        for pages in 0..24_u64 {
            for (from, to) in [(0, 0), (PAGE - 1, 1), (1, PAGE - 1)] {
                let (start, end) = (first * PAGE + from, (first + pages) * PAGE + to);
                if end < start {
                    continue;
                }
                log.mark(start, end - start);
                let touched: Vec<u64> = (start..end)
                    .step_by(1024)
                    .chain(end.checked_sub(1))
                    .filter(|at| (start..end).contains(at))
                    .map(|at| at / PAGE)
                    .collect();
                let mut touched = touched;
                touched.dedup();
                assert_eq!(take_pages(&file), touched, "{start:#x} {end:#x}");
            }
        }
    }
}

#[test]
fn vu_37_a_bit_that_is_set_stays_set() {
    let (log, file) = log(4);
    log.mark(3 * PAGE, 1);
    log.mark(5 * PAGE, PAGE);
    assert_eq!(take_pages(&file), [3, 5]);
}

#[test]
fn vu_36_pages_beyond_the_log_are_left_out() {
    let file = sys::sealed_memory(c"log", 4096).unwrap();
    // The second of three bytes within a page of the file.
    let log = Log::open(file.try_clone().unwrap(), 1, 1).unwrap();
    for (start, len) in [
        (0, u64::MAX),
        (7 * PAGE, 2 * PAGE),
        (8 * PAGE, PAGE),
        (u64::MAX, 1),
        (u64::MAX - 5, u64::MAX),
    ] {
        log.mark(start, len);
    }
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes[..3], [0, 0xff, 0]);
    assert!(bytes[3..].iter().all(|byte| *byte == 0));
}

#[test]
fn vu_36_a_log_fits_its_file() {
    let file = || sys::sealed_memory(c"log", 64).unwrap();
    Log::open(file(), 8, 56).unwrap();
    assert!(matches!(
        Log::open(file(), 0, 65),
        Err(SharedError::BeyondFile)
    ));
    assert!(matches!(
        Log::open(file(), 8, 57),
        Err(SharedError::BeyondFile)
    ));
    assert!(matches!(Log::open(file(), 0, 0), Err(SharedError::Range)));
    assert!(matches!(
        Log::open(file(), u64::MAX, 2),
        Err(SharedError::Range)
    ));
}

#[test]
fn vu_38_the_used_ring_is_logged_where_its_log_address_says() {
    let (log, file) = log(16);
    let used = UsedLog {
        log,
        at: 9 * PAGE - 2,
    };
    used.mark(0, 2);
    assert_eq!(take_pages(&file), [8]);
    used.mark(2, 2);
    assert_eq!(take_pages(&file), [9]);
    used.mark(u64::MAX, 8);
    assert!(take_pages(&file).is_empty());
}

/// A piece of host memory for guest memory.
fn piece(guest: &Guest, at: u64, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: guest.memory.host(at, len as u64).unwrap().cast(),
        iov_len: len,
    }
}

#[test]
fn vu_37_vu_39_a_request_is_marked_when_it_has_ended_in_the_log_of_then() {
    let guest = Guest::new(&[(0, 0x10_0000), (0x40_0000, 0x1000)]);
    let ((old, old_file), (new, new_file)) = (log(256), log(256));
    let mut tracker = Tracker::new(old, 4, 0);
    let data = [piece(&guest, 0x2ff0, 0x20), piece(&guest, 0x40_0000, 1)];
    tracker.note(2, &guest.memory, &data);
    tracker.note(3, &guest.memory, &[piece(&guest, 0x9000, 1)]);
    tracker.replace_log(new);
    assert!(take_pages(&new_file).is_empty());
    tracker.mark(2);
    assert_eq!(take_pages(&new_file), [2, 3, 0x400]);
    tracker.mark(2);
    assert!(take_pages(&new_file).is_empty(), "it has ended already");
    tracker.mark(3);
    assert_eq!(take_pages(&new_file), [9]);
    assert!(take_pages(&old_file).is_empty());
}

#[test]
fn vu_37_there_is_room_for_one_more_request_or_it_is_said() {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let (log, file) = log(64);
    let (tags, most) = (2, 40);
    let mut tracker = Tracker::new(log, tags, most);
    let in_all = tags * RANGES_PER_REQUEST + most;
    for round in 0..3 {
        assert!(tracker.has_room());
        // Every other page: nothing can be joined.
        let pages: Vec<u64> = (0..in_all as u64 - 39).map(|i| 2 * i).collect();
        for page in &pages {
            assert!(tracker.has_room(), "{round} {page}");
            tracker.note(1, &guest.memory, &[piece(&guest, page * PAGE, 1)]);
        }
        assert!(!tracker.has_room());
        // Whoever was let in before still has it.
        let rest: Vec<u64> = (0..39).map(|i| 128 + 2 * i).collect();
        for page in &rest {
            tracker.note(0, &guest.memory, &[piece(&guest, page * PAGE, 1)]);
        }
        assert_eq!((tracker.free, tracker.free_count), (NONE, 0));
        tracker.mark(0);
        assert_eq!(take_pages(&file), rest, "{round}: and nothing between");
        tracker.mark(1);
        assert_eq!(take_pages(&file), pages, "{round}");
        assert_eq!(tracker.free_count, in_all);
    }
}

#[test]
fn vu_37_adjacent_pieces_take_one_place() {
    let guest = Guest::new(&[(0, 0x10_0000)]);
    let (log, file) = log(64);
    let mut tracker = Tracker::new(log, 1, 0);
    for page in 0..64 {
        tracker.note(0, &guest.memory, &[piece(&guest, page * PAGE, 4096)]);
    }
    assert_eq!(tracker.free, 1);
    tracker.mark(0);
    assert_eq!(take_pages(&file), (0..64).collect::<Vec<_>>());
}
