//! What is used is what the limit allows.

use std::path::Path;
use std::thread;
use std::time::Duration;

use front_end::load::{Pattern, Plan};

use crate::rig::{Disk, beside, real};

/// How much more or less than the limit may be used.
const PRECISION: f64 = 0.02;
/// Saved up bursts are used within this time.
const SETTLED: Duration = Duration::from_millis(300);
/// Others may keep a process from its CPU; they do not each time.
const CHANCES: usize = 5;

/// A limit, a load that wants more, and how long to look.
#[derive(Clone)]
struct Cell {
    limit: &'static str,
    /// What the process counts, and how much of it a second brings.
    counter: &'static str,
    rate: u64,
    depth: u16,
    queues: u16,
    size: u32,
    time: Duration,
}

/// Nanoseconds for which threads of a process were ready, and others had the
/// CPU; `None` where the kernel does not count them.
fn kept_waiting(pid: u32) -> Option<u64> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut sum = 0;
    for thread in threads {
        let path = thread.ok()?.path().join("schedstat");
        let text = std::fs::read_to_string(Path::new(&path)).ok()?;
        sum += text.split(' ').nth(1)?.parse::<u64>().ok()?;
    }
    Some(sum)
}

/// The rate as it is measured, and the share of the time in which the process
/// was kept from its CPU.
fn measure(disk: &Disk, cell: &Cell) -> (f64, f64) {
    let plan = Plan {
        pattern: match cell.counter {
            "written_bytes" => Pattern::Randwrite,
            _ => Pattern::Randread,
        },
        size: cell.size,
        depth: cell.depth,
        queues: cell.queues,
        threads: 1,
        ..Plan::default()
    };
    beside(disk.socket(), plan, || {
        thread::sleep(SETTLED);
        let (before, waited) = (disk.stats(), kept_waiting(disk.daemon.pid()));
        thread::sleep(cell.time);
        let (after, waits) = (disk.stats(), kept_waiting(disk.daemon.pid()));
        let (count, seconds) = after.since(&before, cell.counter);
        let kept = waits.zip(waited).map_or(0, |(now, then)| now - then);
        (count / seconds, real(kept) / 1e9 / seconds)
    })
}

/// A cell's rate is never exceeded, and reached where the machine can.
fn check(cell: &Cell) {
    let name = format!(
        "{} at depth {} of {} queues",
        cell.limit, cell.depth, cell.queues
    );
    let disk = Disk::new(&[]);
    // What the same load gets without a limit, on this machine.
    let free = Cell {
        time: Duration::from_millis(300),
        ..cell.clone()
    };
    let (reach, _) = measure(&disk, &free);
    drop(disk);
    let rate = real(cell.rate);
    let mut last = 0.0;
    for _ in 0..CHANCES {
        let disk = Disk::new(&["--limit", cell.limit]);
        let (measured, kept) = measure(&disk, cell);
        eprintln!(
            "{name}: {measured:.0} of {rate:.0} ({:+.2} %; {reach:.0} without; kept from the CPU {:.1} %)",
            (measured / rate - 1.0) * 100.0,
            kept * 100.0
        );
        // Whatever the machine does.
        assert!(measured <= rate * (1.0 + PRECISION), "{name}: {measured}");
        if measured >= rate * (1.0 - PRECISION) {
            assert!(disk.stats().get("limit_waits") > 0, "{name}");
            return;
        }
        if reach < 2.0 * rate {
            eprintln!("SKIP: {name}: this machine does not do much more without a limit");
            return;
        }
        last = kept;
    }
    assert!(last > PRECISION, "{name}: the rate is not reached");
    eprintln!("SKIP: {name}: others had the CPU");
}

fn cell(
    limit: &'static str,
    counter: &'static str,
    rate: u64,
    (depth, queues): (u16, u16),
) -> Cell {
    Cell {
        limit,
        counter,
        rate,
        depth,
        queues,
        size: if rate >= 100_000_000 { 65536 } else { 4096 },
        time: Duration::from_secs(3),
    }
}

#[test]
fn rates_are_kept_to_two_percent() {
    if std::env::var_os("EXTENTD_TEST_LIMITS").is_some_and(|mode| mode == "long") {
        for (limit, counter, rate) in [
            ("iops=1000", "requests", 1000),
            ("read-iops=10000", "requests", 10_000),
            ("iops=100000", "requests", 100_000),
            ("read-bytes=10000000", "read_bytes", 10_000_000),
            ("bytes=100000000", "read_bytes", 100_000_000),
            ("write-bytes=100000000", "written_bytes", 100_000_000),
            ("bytes=1000000000", "read_bytes", 1_000_000_000),
        ] {
            for shape in [(1, 1), (32, 1), (1, 4), (32, 4)] {
                let mut cell = cell(limit, counter, rate, shape);
                cell.time = Duration::from_secs(10);
                check(&cell);
            }
        }
        return;
    }
    check(&cell("iops=1000", "requests", 1000, (1, 1)));
    check(&cell("iops=100000", "requests", 100_000, (32, 4)));
    check(&cell(
        "write-bytes=10000000",
        "written_bytes",
        10_000_000,
        (32, 1),
    ));
    check(&cell(
        "bytes=1000000000",
        "read_bytes",
        1_000_000_000,
        (32, 4),
    ));
}

/// Nothing is looked at again and again while a limit holds everything back.
#[test]
fn a_queue_that_waits_takes_no_cpu_time() {
    let disk = Disk::new(&["--limit", "iops=20"]);
    let plan = Plan {
        depth: 32,
        queues: 4,
        threads: 1,
        ..Plan::default()
    };
    let ticks = beside(disk.socket(), plan, || {
        thread::sleep(SETTLED);
        let before = disk.daemon.cpu_ticks().unwrap();
        thread::sleep(Duration::from_secs(2));
        let ticks = disk.daemon.cpu_ticks().unwrap() - before;
        // The load ends only when all that it has begun has.
        disk.set_iops(0);
        ticks
    });
    // Of a hundredth of a second each: less than 3 % of a CPU.
    assert!(ticks <= 6, "{ticks}");
}
