//! The map's figures: `cargo bench -p extentd-mapping`. The table in the crate's README is made of them.
//!
//! Lookups are measured by the processor time of their thread, so that others who use the machine disturb
//! them as little as may be; the time to the first answer by the clock on the wall.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mapping::{Config, Extent, ExtentSource, Filler, Kind, Lookup, Map, Reader, Sink};

/// Time that this thread was running.
struct CpuTime;

impl CpuTime {
    fn now() -> Duration {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is writable for the call.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        assert_eq!(result, 0);
        Duration::new(
            time.tv_sec.try_into().unwrap(),
            time.tv_nsec.try_into().unwrap(),
        )
    }
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        CpuTime::now()
    }

    fn end(&self, start: Duration) -> Duration {
        CpuTime::now() - start
    }

    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// Written extents of one block with a hole after each, evenly spread over the image.
#[derive(Clone, Copy)]
struct Comb {
    size: u64,
    step: u64,
}

impl Comb {
    fn new(size: u64, extents: u64) -> Comb {
        Comb {
            size,
            step: size / extents,
        }
    }
}

impl ExtentSource for Comb {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let first = range.start.next_multiple_of(self.step);
        for start in (first..range.end.min(self.size)).step_by(self.step as usize) {
            if sink(Extent {
                start,
                len: 4096,
                disk: start ^ (1 << 40),
                kind: Kind::Written,
            })
            .is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

const SIZE: u64 = 64 << 30;

fn full_map(extents: u64) -> Map {
    let map = Map::new(
        SIZE,
        Config {
            budget: 1 << 30,
            ..Config::default()
        },
    )
    .unwrap();
    map.enable();
    map.load(&Comb::new(SIZE, extents), 0..SIZE).unwrap();
    map
}

/// The same extents in a sorted vector, searched by halving: what an eager map would be.
fn sorted(extents: u64) -> Vec<(u64, u64)> {
    let comb = Comb::new(SIZE, extents);
    (0..extents)
        .map(|at| (at * comb.step, 4096 | (at * comb.step) << 16))
        .collect()
}

/// The extent at `offset`, or the hole there.
fn search(sorted: &[(u64, u64)], offset: u64) -> Extent {
    let behind = sorted.partition_point(|extent| extent.0 <= offset);
    let before = behind.checked_sub(1).and_then(|at| sorted.get(at));
    match before {
        Some(&(start, place)) if offset - start < place & 0xffff => Extent {
            start,
            len: place & 0xffff,
            disk: place >> 16,
            kind: Kind::Written,
        },
        _ => {
            let start = before.map_or(0, |&(start, place)| start + (place & 0xffff));
            let end = sorted.get(behind).map_or(SIZE, |extent| extent.0);
            Extent {
                start,
                len: end - start,
                disk: 0,
                kind: Kind::Hole,
            }
        }
    }
}

struct Random(u64);

impl Random {
    fn offset(&mut self) -> u64 {
        self.offset_after(0)
    }

    /// The next offset, known only once the answer before is: between the lookups of requests lies so much
    /// else that the processor never does several at a time.
    fn offset_after(&mut self, answer: u64) -> u64 {
        self.0 ^= answer >> 63;
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % SIZE) & !511
    }
}

fn random(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("random lookup");
    group.throughput(Throughput::Elements(1));
    for extents in [1_000, 100_000, 1_000_000] {
        let map = full_map(extents);
        let mut reader = map.reader().unwrap();
        let mut at = Random(7);
        let mut answer = 0;
        group.bench_function(BenchmarkId::new("map", extents), |bench| {
            bench.iter(|| {
                answer = match black_box(reader.lookup(at.offset_after(answer))) {
                    Lookup::Found(extent) => extent.start,
                    Lookup::Missing => 0,
                };
            });
        });
        let vector = sorted(extents);
        group.bench_function(BenchmarkId::new("sorted vector", extents), |bench| {
            bench.iter(|| {
                answer = black_box(search(&vector, at.offset_after(answer))).start;
            });
        });
    }
    group.finish();
}

fn sequential(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("sequential lookup");
    group.throughput(Throughput::Elements(1));
    for extents in [1_000, 1_000_000] {
        let map = full_map(extents);
        let mut reader = map.reader().unwrap();
        let mut at = 0;
        group.bench_function(BenchmarkId::new("map", extents), |bench| {
            bench.iter(|| {
                at = if at >= SIZE - 4096 { 0 } else { at + 4096 };
                black_box(reader.lookup(at))
            });
        });
    }
    group.finish();
}

fn quiescent(criterion: &mut Criterion<CpuTime>) {
    let map = full_map(1_000);
    let mut reader = map.reader().unwrap();
    reader.lookup(0);
    criterion.bench_function("quiescent point", |bench| {
        bench.iter(|| black_box(&mut reader).quiescent())
    });
}

fn holds(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("hold and release");
    for extents in [1_000, 1_000_000] {
        let map = full_map(extents);
        group.bench_function(BenchmarkId::new("4 KiB", extents), |bench| {
            let mut at = Random(3);
            bench.iter(|| {
                let block = at.offset() & !4095;
                drop(black_box(map.hold(block..block + 4096)));
            });
        });
    }
    group.finish();
}

/// The extents of [`Comb`] on a file system that answers only once it is let.
struct Stuck {
    comb: Comb,
    let_go: Arc<AtomicBool>,
}

impl ExtentSource for Stuck {
    fn fill(&self, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        while !self.let_go.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(100));
        }
        self.comb.fill(range, sink)
    }
}

/// Dropped before the filler, which waits for its source.
struct LetGo(Arc<AtomicBool>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// From nothing to the first answer, while the file system does not answer at all.
fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("from open to the first answer");
    group.sample_size(50);
    group.bench_function("64 GiB, 1M extents, lazy", |bench| {
        bench.iter_batched(
            || {
                let let_go = Arc::new(AtomicBool::new(false));
                let source = Stuck {
                    comb: Comb::new(SIZE, 1_000_000),
                    let_go: Arc::clone(&let_go),
                };
                (Arc::new(source), LetGo(let_go))
            },
            |(source, let_go)| {
                let map = Map::new(SIZE, Config::default()).unwrap();
                map.enable();
                let filler = Filler::spawn(&map, source).unwrap();
                let mut reader = map.reader().unwrap();
                assert_eq!(reader.lookup(SIZE / 3), Lookup::Missing);
                (let_go, map, filler, reader)
            },
            BatchSize::PerIteration,
        );
    });
    group.sample_size(10);
    group.bench_function("64 GiB, 1M extents, all of it first", |bench| {
        bench.iter(|| full_map(1_000_000))
    });
    group.finish();
}

/// A map that was filled by what it missed is as fast as one that was filled at once.
fn steady(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("steady state, 1M extents");
    let run = |reader: &mut Reader, at: &mut Random| black_box(reader.lookup(at.offset()));
    let full = full_map(1_000_000);
    let mut reader = full.reader().unwrap();
    group.bench_function("filled at once", |bench| {
        let mut at = Random(5);
        bench.iter(|| run(&mut reader, &mut at));
    });
    let lazy = Map::new(
        SIZE,
        Config {
            budget: 1 << 30,
            ..Config::default()
        },
    )
    .unwrap();
    lazy.enable();
    let _filler = Filler::spawn(&lazy, Arc::new(Comb::new(SIZE, 1_000_000))).unwrap();
    let mut reader = lazy.reader().unwrap();
    let (mut at, end) = (Random(5), Instant::now() + Duration::from_secs(60));
    while lazy.stats().resident_windows < SIZE >> 22 && Instant::now() < end {
        for _ in 0..10_000 {
            let _ = black_box(reader.lookup(at.offset()));
        }
        reader.quiescent();
    }
    group.bench_function("filled by misses", |bench| {
        let mut at = Random(5);
        bench.iter(|| run(&mut reader, &mut at));
    });
    group.finish();
    let stats = lazy.stats();
    let extents = stats.extents[Kind::Written.index()];
    let tib = (1u64 << 40) as f64 / SIZE as f64;
    eprintln!(
        "memory: {:.2} bytes per extent, table {:.2} MiB per TiB",
        stats.resident_bytes as f64 / extents as f64,
        stats.table_bytes as f64 * tib / 1_048_576.0
    );
}

criterion_group! {
    name = lookups;
    config = Criterion::default().with_measurement(CpuTime);
    targets = random, sequential, quiescent, holds, steady
}
criterion_group!(first, open);
criterion_main!(lookups, first);
