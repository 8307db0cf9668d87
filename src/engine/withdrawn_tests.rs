//! What the kernel has been shown and may not carry out any more ends
//! withdrawn, and changes nothing.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use mapping::path::Permit;

use super::manner::Manner;
use super::sync::Sync;
use super::uring::Uring;
use super::{Engine, Files, Target, Vector, WITHDRAWN, Work};

const LEN: usize = 4096;

/// Memory that direct I/O takes.
#[repr(align(4096))]
struct Block([u8; LEN]);

/// A file that stands for a device: its block can be written without waiting.
fn device() -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let file = options.open(file.path()).unwrap();
    file.write_all_at(&Block([1; LEN]).0, 0).unwrap();
    file.sync_all().unwrap();
    file
}

fn files(device: &File, device_manner: Manner) -> Files {
    Files {
        image: device.as_raw_fd(),
        image_manner: Manner::Queued,
        device: Some(device.as_raw_fd()),
        device_manner,
        tail: None,
        keeper: None,
    }
}

/// Writes to the device; the result.
fn write(engine: &mut impl Engine, value: u8, may: &mut impl FnMut() -> Option<Permit>) -> i32 {
    let mut block = Block([value; LEN]);
    let entry = libc::iovec {
        iov_base: block.0.as_mut_ptr().cast(),
        iov_len: LEN,
    };
    let work = Work::Write {
        target: Target::Device,
        vector: Vector {
            iov: &raw const entry,
            count: 1,
            offset: 0,
            bytes: LEN as u64,
        },
        stable: false,
    };
    // SAFETY: the entry and the block outlive the loop that awaits the result.
    unsafe { engine.push(7, work) };
    engine.submit(may);
    let mut told = None;
    while told.is_none() {
        engine.completions(|token, result| told = Some((token, result)));
        engine.wait(Some(std::time::Duration::from_millis(1)), may);
    }
    let (token, result) = told.unwrap();
    assert_eq!(token, 7);
    result
}

fn content(file: &File) -> u8 {
    let mut block = Block([0; LEN]);
    file.read_exact_at(&mut block.0, 0).unwrap();
    assert!(block.0.iter().all(|byte| *byte == block.0[0]));
    block.0[0]
}

/// A permit whose thread was interrupted since it looked.
fn interrupted() -> Permit {
    let permit = Permit::begin();
    std::thread::sleep(std::time::Duration::from_millis(1));
    permit
}

fn withdraws(mut engine: impl Engine, file: &File) {
    assert_eq!(write(&mut engine, 2, &mut || None), WITHDRAWN);
    assert_eq!(content(file), 1);
    // Interrupted, and not allowed any more: the kernel was shown it by then.
    let mut looks = 0;
    let mut may = || {
        looks += 1;
        (looks == 1).then(interrupted)
    };
    assert_eq!(write(&mut engine, 3, &mut may), WITHDRAWN);
    assert_eq!((content(file), looks >= 2), (1, true));
    // Interrupted, and allowed again.
    looks = 0;
    let mut may = || {
        looks += 1;
        Some(if looks == 1 {
            interrupted()
        } else {
            Permit::begin()
        })
    };
    let written = i32::try_from(LEN).unwrap();
    assert_eq!(write(&mut engine, 4, &mut may), written);
    assert_eq!((content(file), looks >= 2), (4, true));
    let mut always = || Some(Permit::unconditional());
    assert_eq!(write(&mut engine, 5, &mut always), written);
    assert_eq!(content(file), 5);
}

/// Whether a wait without end of work came to its end before its time.
fn is_woken(engine: &mut impl Engine) -> bool {
    let limit = std::time::Duration::from_millis(200);
    let start = std::time::Instant::now();
    engine.wait(Some(limit), &mut || None);
    engine.completions(|_, _| {});
    start.elapsed() < limit
}

/// Who reads an event of somebody else may wait for ever.
fn reads_no_event(mut engine: impl Engine) {
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    engine.watch(3, Some(event.as_raw_fd()));
    event.write(1).unwrap();
    assert!(is_woken(&mut engine));
    // It may return early, but not each time.
    assert!(
        (0..9).any(|_| !is_woken(&mut engine)),
        "a signal wakes once"
    );
    event.write(1).unwrap();
    assert!(is_woken(&mut engine));
    assert_eq!(event.read().unwrap(), 2);
    engine.watch(3, None);
    event.write(1).unwrap();
    assert!((0..9).any(|_| !is_woken(&mut engine)));
}

#[test]
fn what_wakes_an_engine_is_not_read() {
    let file = device();
    reads_no_event(Uring::new(files(&file, Manner::Queued), 8).unwrap());
    reads_no_event(Sync::new(files(&file, Manner::Queued), 8).unwrap());
}

#[test]
fn a_ring_withdraws_what_it_was_shown() {
    let file = device();
    withdraws(Uring::new(files(&file, Manner::Queued), 8).unwrap(), &file);
}

#[test]
fn what_is_carried_out_at_once_is_withdrawn_too() {
    let file = device();
    withdraws(Uring::new(files(&file, Manner::Inline), 8).unwrap(), &file);
    let file = device();
    withdraws(Sync::new(files(&file, Manner::Queued), 8).unwrap(), &file);
}
