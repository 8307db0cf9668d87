//! System calls of the process per request, as strace counts them over
//! its whole life. Tracing
//! slows the process down, so that batches are as large as the depth allows:
//! the figures are those of a loaded back-end, and they repeat well.
//!
//! To see them: `cargo test --test counting system_calls -- --nocapture`.

use std::process::Command;

use front_end::load::{Pattern, Plan, Waiting};

use crate::served::{Image, WARM_UP, Way, have, plan, ratio, run, warmed_up};

/// So many that start and end hardly count.
const REQUESTS: u64 = 40_000;

/// Calls of a whole life with so many requests: all, writes, and ioctls.
fn total(image: &Image, plan: &Plan, requests: u64) -> (u64, u64, u64) {
    total_with(image, plan, requests, "")
}

/// As [`total`], of a process that is started by a command.
fn total_with(image: &Image, plan: &Plan, requests: u64, command: &str) -> (u64, u64, u64) {
    // The tracer writes when the process has ended; a FIFO tells when.
    let out = image.files.path().join("strace");
    let made = Command::new("mkfifo").arg(&out).status().unwrap();
    assert!(made.success());
    let strace = format!(
        "{command} strace -D -f -c -U name,calls -o '{}'",
        out.display()
    );
    let table = std::thread::spawn({
        let out = out.clone();
        move || std::fs::read_to_string(out).unwrap()
    });
    let daemon = image.serve(&image.wrapper(&strace));
    let mut client = warmed_up(daemon.socket(), plan.clone());
    run(&mut client, requests);
    client.close().unwrap();
    assert!(daemon.terminate().unwrap().success());
    let table = table.join().unwrap();
    std::fs::remove_file(&out).unwrap();
    let calls = |wanted: &str| {
        let row = table.lines().find_map(|line| {
            let (name, calls) = line.trim().rsplit_once(char::is_whitespace)?;
            (name.trim() == wanted).then(|| calls.parse().ok())?
        });
        row.unwrap_or(0)
    };
    eprintln!("{table}");
    (calls("total"), calls("write"), calls("ioctl"))
}

/// A side that others keep from its CPU sees smaller batches: that is no
/// property of ours, and does not come each time.
const CHANCES: usize = 5;

/// Calls per request, and writes among them: what goes to eventfds.
struct Counted {
    calls: f64,
    writes: f64,
}

fn count(way: Way, pattern: Pattern, depth: u16, waiting: Waiting) -> Option<Counted> {
    if !have("strace") {
        return None;
    }
    let mut plan = plan(pattern, depth);
    plan.waiting = waiting;
    // A new image each: the kernel lets go of the last one a little late.
    let (calls, writes, _) = total(&Image::new(way)?, &plan, REQUESTS);
    let counted = Counted {
        calls: ratio(calls, WARM_UP + REQUESTS),
        writes: ratio(writes, WARM_UP + REQUESTS),
    };
    eprintln!(
        "{way:?}, {pattern:?}, depth {depth}, {waiting:?}: {:.4} calls per request, {:.4} writes",
        counted.calls, counted.writes
    );
    Some(counted)
}

fn check((way, pattern, depth, waiting): (Way, Pattern, u16, Waiting), calls: f64, writes: f64) {
    let what = format!("{way:?}, {pattern:?}, depth {depth}, {waiting:?}");
    for chance in 1..=CHANCES {
        let Some(counted) = count(way, pattern, depth, waiting) else {
            return;
        };
        // Something was counted at all: the kernel is told of each batch.
        assert!(counted.calls > 0.5 / f64::from(depth), "{what}");
        if counted.calls <= calls && counted.writes <= writes {
            return;
        }
        let (calls, writes) = (counted.calls, counted.writes);
        assert!(chance < CHANCES, "{what}: {calls} calls, {writes} writes");
    }
}

#[test]
fn a_batch_of_reads_costs_few_calls() {
    // Measured: 0.185 to 0.239 and 0.0005.
    check(
        (Way::File, Pattern::Randread, 32, Waiting::Poll),
        0.35,
        0.01,
    );
    // Measured: 0.315 to 0.375 and 0.0006.
    check((Way::Disk, Pattern::Randread, 32, Waiting::Poll), 0.5, 0.01);
}

#[test]
fn a_batch_of_writes_costs_few_calls() {
    // Measured: 0.68 to 0.93 and none; 0.34 to 0.56 before raw I/O was given
    // to the kernel without waiting, right behind a look at the clock.
    check(
        (Way::Disk, Pattern::Randwrite, 32, Waiting::Poll),
        1.1,
        0.01,
    );
}

#[test]
fn a_guest_that_sleeps_is_woken_once_for_a_batch() {
    // Measured: 0.297 to 0.428 and 0.110 to 0.156; 0.294 to 0.471 and 0.066 to
    // 0.075 when a turn was up to 64 requests, and driver and worker worked in
    // turns.
    check(
        (Way::Disk, Pattern::Randread, 32, Waiting::Call),
        0.65,
        0.19,
    );
}

#[test]
fn a_guest_that_sleeps_is_woken_less_than_once_a_request_at_small_depths() {
    // Measured: 0.548 to 0.885 and 0.243 to 0.305.
    check((Way::Disk, Pattern::Randread, 8, Waiting::Call), 1.4, 0.45);
}

#[test]
fn a_single_request_costs_few_calls() {
    // Measured: 5.3 to 7.5 and 1.0.
    check((Way::Disk, Pattern::Randread, 1, Waiting::Call), 9.0, 1.01);
}

/// Each FIEMAP is an ioctl, and with it goes another that asks for the file's
/// attributes; the rest is the start.
#[test]
fn first_writes_cost_hardly_any_fiemap() {
    if !have("strace") {
        return;
    }
    let random = plan(Pattern::Randwrite, 16);
    let sequential = Plan {
        size: 16 << 10,
        ..plan(Pattern::Write, 8)
    };
    // Few enough that most of the image is written for the first time, and to the end of it.
    for (plan, requests) in [(random, 24_000), (sequential, 8_000 - WARM_UP)] {
        let Some(image) = Image::sparse(Way::Disk) else {
            return;
        };
        // However long others have the CPU in between, no window that is being filled becomes
        // quiet.
        let (_, _, ioctls) = total_with(&image, &plan, requests, "env EXTENTD_TEST_QUIET=3600000");
        let each = ratio(ioctls, WARM_UP + requests);
        eprintln!("{:?}: {each:.4} ioctls per first write", plan.pattern);
        assert!(ioctls > 0, "nothing was counted");
        // Measured: 0.005 and 0.007; 0.04 for random ones if windows that are
        // being filled are loaded as others are.
        assert!(each < 0.02, "{:?}: {each} ioctls a request", plan.pattern);
    }
}
