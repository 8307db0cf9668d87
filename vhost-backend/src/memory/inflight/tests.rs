use std::os::unix::fs::FileExt;

use super::*;

const SHAPE: Shape = Shape {
    queues: 2,
    entries: 8,
};

fn buffer() -> File {
    create(SHAPE).unwrap()
}

fn open(file: &File) -> Result<Inflight, InflightError> {
    Inflight::open(file.try_clone().unwrap(), 0, SHAPE.bytes(), SHAPE)
}

fn put(file: &File, at: usize, bytes: &[u8]) {
    file.write_all_at(bytes, at as u64).unwrap();
}

fn u16_of(file: &File, at: usize) -> u16 {
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, at as u64).unwrap();
    u16::from_ne_bytes(bytes)
}

/// Whether each head is recorded as in flight.
fn in_flight(file: &File) -> Vec<u8> {
    (0..SHAPE.entries)
        .map(|head| {
            let mut byte = [0];
            let at = Region::entry(head, IN_FLIGHT_AT) as u64;
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        })
        .collect()
}

fn take_over(file: &File, used: u16) -> Option<(Record, Vec<u16>)> {
    open(file).ok()?.region(0)?.recover(SHAPE.entries, used)
}

#[test]
fn vu_30_the_buffer_has_a_region_of_whole_lines_for_each_queue_and_is_sealed() {
    for (queues, entries, bytes) in [
        (1, 1, 64),
        (1, 3, 64),
        (1, 4, 128),
        (2, 128, 2 * 2112),
        (256, 32768, 256 * (524_288 + 64)),
    ] {
        assert_eq!(Shape { queues, entries }.bytes(), bytes);
    }
    let file = buffer();
    assert_eq!(file.metadata().unwrap().len(), SHAPE.bytes());
    file.set_len(0).unwrap_err();
    file.set_len(2 * SHAPE.bytes()).unwrap_err();
}

#[test]
fn vu_31_the_fields_are_where_the_specification_has_them() {
    let file = buffer();
    let (mut record, heads) = take_over(&file, 7).unwrap();
    assert!(heads.is_empty());
    assert_eq!([8, 10, 12, 14].map(|at| u16_of(&file, at)), [1, 8, 0, 7]);
    record.fetched(3);
    record.fetched(5);
    let region = || open(&file).unwrap().region(0).unwrap();
    assert!(region().has_requests());
    assert_eq!(in_flight(&file), [0, 0, 0, 1, 0, 1, 0, 0]);
    assert_eq!(u16_of(&file, 16 + 16 * 5 + 8), 1, "counter");
    record.answered(5);
    record.answered(3);
    assert_eq!(u16_of(&file, 12), 3, "last_batch_head");
    assert_eq!(u16_of(&file, 16 + 16 * 3 + 6), 5, "next");
    assert_eq!(in_flight(&file), [0, 0, 0, 1, 0, 1, 0, 0]);
    record.published(2, 9);
    assert!(!region().has_requests());
    assert_eq!(in_flight(&file), [0; 8]);
    assert_eq!(u16_of(&file, 14), 9, "used_idx");
    // The other queue's region was not touched.
    let mut other = [1; 144];
    file.read_exact_at(&mut other, SHAPE.region() as u64)
        .unwrap();
    assert_eq!(other, [0; 144]);
}

#[test]
fn vu_32_heads_come_back_in_the_order_in_which_they_were_fetched() {
    let file = buffer();
    let (mut record, _) = take_over(&file, 0xfffe).unwrap();
    for head in [6, 1, 7, 0] {
        record.fetched(head);
    }
    record.answered(1);
    record.answered(7);
    record.published(2, 0);
    drop(record);
    let (mut record, heads) = take_over(&file, 0).unwrap();
    assert_eq!(heads, [6, 0]);
    // New ones come behind them, whoever fetches them.
    record.fetched(1);
    drop(record);
    assert_eq!(take_over(&file, 0).unwrap().1, [6, 0, 1]);
    // A batch of two was shown to the driver but not recorded.
    let (mut record, _) = take_over(&file, 0).unwrap();
    record.answered(0);
    record.answered(1);
    drop(record);
    assert_eq!(take_over(&file, 2).unwrap().1, [6]);
    assert_eq!(u16_of(&file, 14), 2);
}

#[test]
fn vu_32_what_is_in_a_record_that_nobody_has_used_says_nothing() {
    let file = buffer();
    let garbage = vec![0xff; usize::try_from(SHAPE.bytes()).unwrap()];
    put(&file, 0, &garbage);
    for queue in 0..SHAPE.queues {
        let at = usize::from(queue) * SHAPE.region() + VERSION_AT;
        put(&file, at, &[0, 0]);
    }
    let (mut record, heads) = take_over(&file, 7).unwrap();
    assert!(heads.is_empty());
    record.fetched(3);
    // Its successor finds that one.
    assert_eq!(take_over(&file, 7).unwrap().1, [3]);
}

#[test]
fn vu_34_a_damaged_record_is_refused() {
    let head_3 = Region::entry(3, 0);
    let damages: [(usize, &[u8]); 9] = [
        (FEATURES_AT, &[1]),
        (VERSION_AT, &[2]),
        (VERSION_AT + 1, &[1]),
        (ENTRIES_AT, &[7]),
        (ENTRIES_AT, &[9]),
        (LAST_BATCH_AT, &[8]),
        (LAST_BATCH_AT, &[0xff, 0xff]),
        (head_3 + IN_FLIGHT_AT, &[2]),
        (head_3 + NEXT_AT, &[8]),
    ];
    for (at, bytes) in damages {
        for queue in [0, 1] {
            let file = buffer();
            let inflight = open(&file).unwrap();
            for queue in [0, 1] {
                inflight.region(queue).unwrap().recover(8, 0).unwrap();
            }
            open(&file).unwrap();
            put(&file, queue * SHAPE.region() + at, bytes);
            assert!(
                matches!(open(&file), Err(InflightError::Damaged(bad)) if usize::from(bad) == queue),
                "{at} {bytes:?}"
            );
            // Also where it was damaged after it was handed over.
            let region = inflight.region(u16::try_from(queue).unwrap()).unwrap();
            assert!(region.recover(8, 0).is_none(), "{at} {bytes:?}");
        }
    }
}

#[test]
fn vu_34_indices_that_do_not_fit_the_ring_are_refused() {
    let file = buffer();
    let (mut record, _) = take_over(&file, 0).unwrap();
    record.fetched(7);
    drop(record);
    assert!(
        take_over(&file, 9).is_none(),
        "a batch larger than the ring"
    );
    assert!(take_over(&file, 0xffff).is_none(), "the index went back");
    let region = || open(&file).unwrap().region(0).unwrap();
    assert!(
        region().recover(16, 0).is_none(),
        "VU-35: for smaller rings"
    );
    assert!(region().recover(4, 0).is_none(), "no such head");
    assert_eq!(region().recover(8, 0).unwrap().1, [7]);
}

#[test]
fn vu_35_a_record_without_requests_serves_another_ring() {
    let file = buffer();
    let (mut record, _) = take_over(&file, 0).unwrap();
    record.fetched(7);
    record.answered(7);
    record.published(1, 1);
    drop(record);
    let region = open(&file).unwrap().region(0).unwrap();
    let (_, heads) = region.recover(4, 0).unwrap();
    assert!(heads.is_empty());
    assert_eq!(u16_of(&file, USED_AT), 0);
}

#[test]
fn vu_34_links_that_lead_out_or_round_stay_within_the_buffer() {
    for next in [8_u16, 0xffff, 2] {
        let file = buffer();
        let (mut record, _) = take_over(&file, 0).unwrap();
        record.fetched(2);
        record.answered(2);
        let before = in_flight(&file);
        put(&file, Region::entry(2, NEXT_AT), &next.to_ne_bytes());
        record.published(0xffff, 3);
        assert_eq!(before, [0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(in_flight(&file), [0; 8]);
        put(&file, LAST_BATCH_AT, &next.to_ne_bytes());
        record.published(1, 4);
        assert_eq!(u16_of(&file, USED_AT), 4);
    }
}

#[test]
fn vu_34_the_buffer_fits_its_file_and_its_message() {
    let file = buffer();
    let open = |offset, size, queues, entries| {
        let shape = Shape { queues, entries };
        Inflight::open(file.try_clone().unwrap(), offset, size, shape).map(|_| ())
    };
    let size = SHAPE.bytes();
    open(0, size, 2, 8).unwrap();
    open(64, size, 1, 8).unwrap();
    open(0, size + 1, 2, 8).unwrap();
    assert!(matches!(open(0, size - 1, 2, 8), Err(InflightError::Short)));
    assert!(matches!(open(0, size, 3, 8), Err(InflightError::Short)));
    assert!(matches!(open(4, size, 1, 8), Err(InflightError::Unaligned)));
    for (queues, entries) in [(0, 8), (2, 0)] {
        let refused = open(0, size, queues, entries);
        assert!(matches!(refused, Err(InflightError::Shape(..))));
    }
    for (offset, queues) in [(8, 2), (size, 1), (u64::MAX - 7, 1)] {
        let refused = open(offset, size, queues, 8);
        assert!(matches!(refused, Err(InflightError::Shared(_))), "{offset}");
    }
    assert!(open_other_kind().is_err());
}

/// A descriptor that is no file.
fn open_other_kind() -> Result<Inflight, InflightError> {
    let (reader, _writer) = std::io::pipe().unwrap();
    let file = File::from(std::os::fd::OwnedFd::from(reader));
    Inflight::open(file, 0, SHAPE.bytes(), SHAPE)
}

#[test]
fn vu_20_a_buffer_that_is_cut_short_is_survived() {
    let file = tempfile();
    let inflight = open(&file).unwrap();
    let (mut record, _) = inflight.region(0).unwrap().recover(8, 0).unwrap();
    file.set_len(0).unwrap();
    record.fetched(1);
    record.answered(1);
    record.published(1, 1);
}

/// A file that can shrink.
fn tempfile() -> File {
    // SAFETY: the name is a C string; a fresh descriptor is owned here.
    let file = unsafe {
        use std::os::fd::FromRawFd;
        File::from_raw_fd(libc::memfd_create(c"inflight".as_ptr(), libc::MFD_CLOEXEC))
    };
    file.set_len(SHAPE.bytes()).unwrap();
    file
}
