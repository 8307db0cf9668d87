//! The program that runs inside the guests: O_DIRECT I/O with verification. The tests compile it on
//! its own, statically linked, and pack it into the initramfs.
//!
//! - `verifier random DEVICE THREADS SECONDS` reads and writes at random places, checks every read,
//!   and prints the number of operations and the digest of what the disk must hold. The file
//!   /tmp/stop ends it early.
//! - `verifier reread DEVICE` writes some parts of the disk and then reads one after the other into
//!   the same memory, which only the device writes to, and checks it after each part, until the
//!   file /tmp/stop is there.
//! - `verifier flush DEVICE SECTORS ROUNDS` writes generation 1, 2, 3... to the first sectors and
//!   prints each generation once it was flushed.
//! - `verifier memory MEBIBYTES ROUNDS` fills so much memory round after round, and checks all of
//!   every page of the round before; it prints each round.

#![forbid(unsafe_code)]

mod pattern;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pattern::SECTOR;

const O_DIRECT: i32 = 0o40000;
/// Sectors that belong to one thread together; the next ones belong to the next thread.
const UNIT: u64 = 128;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["random", device, threads, seconds] => random(device, number(threads), number(seconds)),
        ["reread", device] => reread(device),
        ["flush", device, sectors, rounds] => flush(device, number(sectors), number(rounds)),
        ["memory", mebibytes, rounds] => memory(number(mebibytes), number(rounds)),
        _ => Err(
            "usage: verifier random DEVICE THREADS SECONDS | reread DEVICE | flush DEVICE SECTORS ROUNDS | memory MEBIBYTES ROUNDS"
                .to_owned(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("verifier: {message}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

fn open(device: &str) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(O_DIRECT);
    options
        .open(device)
        .map_err(|error| format!("cannot open {device}: {error}"))
}

fn random(device: &str, threads: u64, seconds: u64) -> Result<(), String> {
    let sectors = open(device)?
        .seek(SeekFrom::End(0))
        .map_err(|error| error.to_string())?
        / SECTOR as u64;
    let end = Instant::now() + Duration::from_secs(seconds);
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            let device = device.to_owned();
            std::thread::spawn(move || worker(&device, thread, threads, sectors, end))
        })
        .collect();
    let (mut operations, mut digest) = (0, 0);
    for worker in workers {
        let (count, share) = worker
            .join()
            .map_err(|_| "a thread panicked".to_owned())??;
        operations += count;
        digest ^= share;
    }
    open(device)?
        .sync_all()
        .map_err(|error| format!("flush: {error}"))?;
    println!("operations {operations}");
    println!("digest {digest:016x}");
    Ok(())
}

/// Memory of `length` bytes in `memory`, aligned to a sector but, with `skew`, not to a page.
fn aligned(memory: &mut [u8], skew: u64, length: usize) -> &mut [u8] {
    let start = memory.as_ptr().align_offset(4096) + skew as usize * SECTOR;
    &mut memory[start..start + length]
}

/// Works on every `threads`-th unit of the disk until `end`; returns operations done and its share
/// of the digest.
fn worker(
    device: &str,
    thread: u64,
    threads: u64,
    sectors: u64,
    end: Instant,
) -> Result<(u64, u64), String> {
    let file = open(device)?;
    let units = (sectors / UNIT - thread).div_ceil(threads);
    let mut generations = vec![0_u64; (units * UNIT) as usize];
    let mut random = Random(thread * 7919 + 104_729);
    let mut memory = vec![0_u8; UNIT as usize * SECTOR + 2 * 4096];
    let mut operations = 0;
    while Instant::now() < end && !(operations % 16 == 0 && Path::new("/tmp/stop").exists()) {
        let unit = random.below(units);
        let first = random.below(UNIT);
        let most = if random.below(4) == 0 {
            UNIT - first
        } else {
            (UNIT - first).min(8)
        };
        let count = 1 + random.below(most);
        let sector = (unit * threads + thread) * UNIT + first;
        let mine = &mut generations[(unit * UNIT + first) as usize..][..count as usize];
        let buffer = aligned(&mut memory, random.below(8), count as usize * SECTOR);
        if random.below(2) == 0 {
            for ((sector, bytes), generation) in
                (sector..).zip(buffer.chunks_exact_mut(SECTOR)).zip(mine)
            {
                *generation += 1;
                pattern::fill(bytes, sector, *generation);
            }
            file.write_all_at(buffer, sector * SECTOR as u64)
                .map_err(|error| format!("write of sector {sector}: {error}"))?;
        } else {
            file.read_exact_at(buffer, sector * SECTOR as u64)
                .map_err(|error| format!("read of sector {sector}: {error}"))?;
            for ((sector, bytes), generation) in
                (sector..).zip(buffer.chunks_exact(SECTOR)).zip(mine)
            {
                let found = pattern::generation(bytes, sector)?;
                if found != *generation {
                    return Err(format!(
                        "sector {sector} holds generation {found} instead of {generation}"
                    ));
                }
            }
        }
        operations += 1;
    }
    let digest = generations
        .iter()
        .zip(0..)
        .fold(0, |digest, (&generation, index)| {
            digest
                ^ pattern::digest(
                    (index / UNIT * threads + thread) * UNIT + index % UNIT,
                    generation,
                )
        });
    Ok((operations, digest))
}

/// Parts that `reread` uses, and the sectors of each.
const PARTS: u64 = 8;
const PART: u64 = 4096;

fn reread(device: &str) -> Result<(), String> {
    let file = open(device)?;
    let mut memory = vec![0_u8; PART as usize * SECTOR + 4096];
    let buffer = aligned(&mut memory, 0, PART as usize * SECTOR);
    for part in 0..PARTS {
        let sectors = part * PART..;
        for (sector, bytes) in sectors.zip(buffer.chunks_exact_mut(SECTOR)) {
            pattern::fill(bytes, sector, part + 1);
        }
        file.write_all_at(buffer, part * PART * SECTOR as u64)
            .map_err(|error| format!("write of part {part}: {error}"))?;
    }
    println!("begun");
    let mut passes = 0;
    while !Path::new("/tmp/stop").exists() {
        let part = passes % PARTS;
        let unit = UNIT as usize * SECTOR;
        let starts = (part * PART..).step_by(UNIT as usize);
        for (sector, bytes) in starts.zip(buffer.chunks_exact_mut(unit)) {
            file.read_exact_at(bytes, sector * SECTOR as u64)
                .map_err(|error| format!("read of sector {sector}: {error}"))?;
        }
        let sectors = part * PART..;
        for (sector, bytes) in sectors.zip(buffer.chunks_exact(SECTOR)) {
            let found = pattern::generation(bytes, sector)?;
            if found != part + 1 {
                return Err(format!("sector {sector} holds generation {found}"));
            }
        }
        passes += 1;
    }
    println!("passes {passes}");
    Ok(())
}

fn flush(device: &str, sectors: u64, rounds: u64) -> Result<(), String> {
    let file = open(device)?;
    let mut memory = vec![0_u8; UNIT as usize * SECTOR + 4096];
    for round in 1..=rounds {
        for first in (0..sectors).step_by(UNIT as usize) {
            let buffer = aligned(&mut memory, 0, UNIT as usize * SECTOR);
            for (sector, bytes) in (first..).zip(buffer.chunks_exact_mut(SECTOR)) {
                pattern::fill(bytes, sector, round);
            }
            file.write_all_at(buffer, first * SECTOR as u64)
                .map_err(|error| format!("write of sector {first}: {error}"))?;
        }
        file.sync_all().map_err(|error| format!("flush: {error}"))?;
        println!("{round}");
    }
    Ok(())
}

/// Bytes of a page.
const PAGE: usize = 4096;

/// Every sector of every page says where it belongs and in which round it was written.
fn memory(mebibytes: u64, rounds: u64) -> Result<(), String> {
    let mut memory = vec![0_u8; mebibytes as usize * (1 << 20)];
    let per_page = (PAGE / SECTOR) as u64;
    for round in 0..=rounds {
        for (page, bytes) in (0..).zip(memory.chunks_exact_mut(PAGE)) {
            for (sector, bytes) in (page * per_page..).zip(bytes.chunks_exact_mut(SECTOR)) {
                if round > 0 {
                    let found = pattern::generation(bytes, sector)?;
                    if found != round {
                        return Err(format!("page {page} is of round {found}, not {round}"));
                    }
                }
                pattern::fill(bytes, sector, round + 1);
            }
        }
        println!("round {round}");
    }
    Ok(())
}
