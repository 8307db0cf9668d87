//! Random requests of any alignment against a byte-level model, through both
//! engines and through one that moves less than it is asked to.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::*;
use crate::engine::{Files, Slot, Vector, manner::Manner, sync::Sync, uring::Uring};
use crate::host::sys::DirectAlign;

const BYTES: usize = 1 << 20;
const SLOTS: usize = 16;

/// Passes on to a real engine, but only part of what it may move, and now and
/// then an interruption instead.
struct Grudging {
    engine: Sync,
    /// Boxed, so that they stay where they are as the list grows.
    #[allow(clippy::vec_box)]
    entries: Vec<Box<libc::iovec>>,
    turn: u32,
    interrupted: Vec<u32>,
}

impl Grudging {
    fn less(&mut self, vector: Vector) -> Vector {
        // SAFETY: the pusher keeps at least one entry valid.
        let mut entry = unsafe { *vector.iov };
        if entry.iov_len > 512 && self.turn.is_multiple_of(2) {
            entry.iov_len = (entry.iov_len / 2).next_multiple_of(512);
        }
        self.entries.push(Box::new(entry));
        let iov = self
            .entries
            .last()
            .map_or(vector.iov, |entry| &raw const **entry);
        Vector {
            iov,
            count: 1,
            offset: vector.offset,
            bytes: entry.iov_len as u64,
        }
    }
}

impl Engine for Grudging {
    unsafe fn push(&mut self, token: u32, work: Work) {
        self.turn += 1;
        if self.turn.is_multiple_of(5) {
            self.interrupted.push(token);
            return;
        }
        let work = match work {
            Work::Read(target, vector) => Work::Read(target, self.less(vector)),
            Work::Write {
                target,
                vector,
                stable,
            } => Work::Write {
                target,
                vector: self.less(vector),
                stable,
            },
            other => other,
        };
        // SAFETY: the entries are ours until the test ends, the memory is the pusher's.
        unsafe { self.engine.push(token, work) };
    }

    fn submit(&mut self, may: &mut impl FnMut() -> Option<Permit>) {
        self.engine.submit(may);
    }

    fn has_queued(&self) -> bool {
        self.engine.has_queued()
    }

    fn completions(&mut self, mut done: impl FnMut(u32, i32)) {
        for token in std::mem::take(&mut self.interrupted) {
            done(token, -libc::EINTR);
        }
        self.engine.completions(done);
    }

    fn has_ended(&mut self) -> bool {
        !self.interrupted.is_empty() || self.engine.has_ended()
    }

    fn clone_buffers(&mut self, ring: RawFd, slots: &[Slot]) -> std::io::Result<()> {
        self.engine.clone_buffers(ring, slots)
    }

    fn drop_buffers(&mut self) {
        self.engine.drop_buffers();
    }

    fn watch(&mut self, index: usize, fd: Option<RawFd>) {
        self.engine.watch(index, fd);
    }

    fn wait(&mut self, timeout: Option<Duration>, may: &mut impl FnMut() -> Option<Permit>) {
        if self.interrupted.is_empty() {
            self.engine.wait(timeout, may);
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

fn image() -> File {
    let file = tempfile::tempfile_in("/var/tmp").unwrap();
    file.set_len(BYTES as u64).unwrap();
    file
}

fn files(file: &File) -> Files {
    Files {
        image: file.as_raw_fd(),
        image_manner: Manner::Queued,
        device: None,
        device_manner: Manner::Queued,
        tail: None,
        keeper: None,
    }
}

fn run<E: Engine>(io: &mut BlockIo<E>, op: Op, data: &[libc::iovec]) -> Status {
    // SAFETY: the tests keep their buffers until the request has ended.
    unsafe { io.submit(Tag(3), op, data) };
    loop {
        io.flush_submissions();
        let mut status = None;
        io.reap(&mut |completion| {
            assert_eq!(completion.tag, Tag(3));
            assert!(status.replace(completion.status).is_none(), "ended twice");
        });
        if let Some(status) = status {
            return status;
        }
        io.wait(None);
    }
}

/// Cuts `len` bytes of `memory` into ragged pieces.
fn pieces(memory: &mut [u8], len: usize, random: &mut Random) -> Vec<libc::iovec> {
    let mut rest = &mut memory[random.below(64)..];
    let mut left = len;
    let mut list = Vec::new();
    while left > 0 {
        let part = if random.below(3) == 0 {
            left
        } else {
            left.min(1 + random.below(5000))
        };
        let (piece, after) = rest.split_at_mut(part);
        list.push(libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: part,
        });
        rest = after;
        left -= part;
    }
    list
}

fn bytes_of(pieces: &[libc::iovec]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|p| {
            // SAFETY: the pieces are of a live vector.
            unsafe { std::slice::from_raw_parts(p.iov_base.cast::<u8>(), p.iov_len) }.to_vec()
        })
        .collect()
}

fn agrees_with_a_model<E: Engine>(engine: E, file: &File, align: u32) {
    let shared = Arc::new(Shared::new(DirectAlign::all(align), 4096));
    let mut io = BlockIo::new(engine, shared, None, None, SLOTS).unwrap();
    io.room(SLOTS);
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(align));
    let mut model = vec![0u8; BYTES];
    let mut memory = vec![0u8; 600_000];
    for turn in 0..400u32 {
        let start = random.below(BYTES / 512);
        let longest = (BYTES / 512 - start).min(1000);
        let len = (1 + random.below(longest)) * 512;
        let offset = (start * 512) as u64;
        let range = start * 512..start * 512 + len;
        match random.below(5) {
            0 | 1 => {
                memory.fill((turn % 251) as u8 + 1);
                let data = pieces(&mut memory, len, &mut random);
                let status = run(
                    &mut io,
                    Op::Write {
                        offset,
                        stable: turn % 7 == 0,
                    },
                    &data,
                );
                assert_eq!(status, Status::Ok);
                model[range].fill((turn % 251) as u8 + 1);
            }
            2 => {
                let unmap = turn % 2 == 0;
                let op = Op::WriteZeroes {
                    offset,
                    len: len as u64,
                    unmap,
                    stable: turn % 3 == 0,
                };
                assert_eq!(run(&mut io, op, &[]), Status::Ok);
                model[range].fill(0);
            }
            3 => {
                assert_eq!(
                    run(
                        &mut io,
                        Op::Discard {
                            offset,
                            len: len as u64
                        },
                        &[]
                    ),
                    Status::Ok
                );
                // What a discarded range holds is the file's to say.
                file.read_exact_at(&mut model[range], offset).unwrap();
            }
            _ => {
                memory.fill(0xee);
                let data = pieces(&mut memory, len, &mut random);
                assert_eq!(run(&mut io, Op::Read { offset }, &data), Status::Ok);
                assert!(
                    bytes_of(&data) == model[range],
                    "a read at {offset} of {len} bytes"
                );
            }
        }
    }
    assert_eq!(run(&mut io, Op::Flush, &[]), Status::Ok);
    let mut found = vec![0u8; BYTES];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == model, "the image is not what was written");
}

#[test]
fn blk_17_io_uring_agrees_with_a_model() {
    for align in [1, 512, 4096] {
        let file = image();
        match Uring::new(files(&file), SLOTS) {
            Ok(engine) => agrees_with_a_model(engine, &file, align),
            Err(error) => println!("SKIP: no io_uring: {error}"),
        }
    }
}

/// The image's file cannot be polled, or its device has no queue for that.
#[test]
fn what_refuses_to_be_polled_is_used_without() {
    for (flags, align) in [(0, 512), (libc::O_DIRECT, 4096)] {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(flags)
            .open(folder.path().join("image"))
            .unwrap();
        file.set_len(BYTES as u64).unwrap();
        let files = Files {
            image_manner: Manner::Polled,
            ..files(&file)
        };
        let plain = File::open(folder.path().join("image")).unwrap();
        match Uring::new(files, SLOTS) {
            Ok(engine) => agrees_with_a_model(engine, &plain, align),
            Err(error) => println!("SKIP: no io_uring: {error}"),
        }
    }
}

#[test]
fn blk_17_plain_calls_agree_with_a_model() {
    for align in [1, 512, 4096] {
        let file = image();
        agrees_with_a_model(Sync::new(files(&file), SLOTS).unwrap(), &file, align);
    }
}

#[test]
fn blk_17_short_and_interrupted_operations_are_continued() {
    for align in [1, 512, 4096] {
        let file = image();
        let engine = Grudging {
            engine: Sync::new(files(&file), SLOTS).unwrap(),
            entries: Vec::new(),
            turn: 0,
            interrupted: Vec::new(),
        };
        agrees_with_a_model(engine, &file, align);
    }
}

#[test]
fn blk_17_a_read_past_the_end_of_the_image_is_an_error() {
    let file = image();
    let align = DirectAlign::all(512);
    let mut io = BlockIo::new(
        Sync::new(files(&file), SLOTS).unwrap(),
        Arc::new(Shared::new(align, 4096)),
        None,
        None,
        SLOTS,
    )
    .unwrap();
    io.room(SLOTS);
    file.set_len(512).unwrap();
    let mut memory = vec![0u8; 2048];
    let data = pieces(&mut memory, 1024, &mut Random(7));
    assert_eq!(run(&mut io, Op::Read { offset: 0 }, &data), Status::IoErr);
}

#[test]
fn two_tasks_that_write_parts_of_one_block_keep_both() {
    let file = image();
    let align = DirectAlign {
        memory: 1,
        offset: 4096,
        read_offset: 4096,
    };
    let shared = Arc::new(Shared::new(align, 4096));
    let mut one = BlockIo::new(
        Sync::new(files(&file), SLOTS).unwrap(),
        Arc::clone(&shared),
        None,
        None,
        SLOTS,
    )
    .unwrap();
    let mut two = BlockIo::new(
        Sync::new(files(&file), SLOTS).unwrap(),
        shared,
        None,
        None,
        SLOTS,
    )
    .unwrap();
    one.room(SLOTS);
    two.room(SLOTS);
    let (mut a, mut b) = ([1u8; 512], [2u8; 512]);
    let piece = |memory: &mut [u8; 512]| libc::iovec {
        iov_base: memory.as_mut_ptr().cast(),
        iov_len: 512,
    };
    let (first, second) = ([piece(&mut a)], [piece(&mut b)]);
    // Both have begun before either goes on: the second must wait its turn.
    let write = |offset| Op::Write {
        offset,
        stable: false,
    };
    // SAFETY: both buffers live until both have ended.
    unsafe {
        one.submit(Tag(0), write(0), &first);
        two.submit(Tag(0), write(512), &second);
    }
    let mut ended = 0;
    while ended < 2 {
        for io in [&mut two, &mut one] {
            io.flush_submissions();
            io.reap(&mut |completion| {
                assert_eq!(completion.status, Status::Ok);
                ended += 1;
            });
        }
    }
    let mut found = [0u8; 1024];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(
        (found[0], found[511], found[512], found[1023]),
        (1, 1, 2, 2)
    );
}
