//! Instructions of the process per request, in user space, as callgrind counts
//! them: the difference of two runs, so that start and end do not count. All
//! is slow there but the client, so that batches are as large as the depth.
//!
//! To see them: `cargo test --test counting instructions -- --nocapture`;
//! where they go: `callgrind_annotate` on the output file of a process that
//! is run so and loaded by `extentd-load`.
//!
//! valgrind 3.19 never lets another thread run while one sleeps in io_uring,
//! and knows no cachestat(2), without which there is no disk path. So this
//! counts the way by the file, with plain system calls for io_uring: rings,
//! requests and planning are the same.

use front_end::load::Pattern;
use rig::plain::forbid_io_uring;

use crate::served::{Image, Way, have, plan, ratio, run, warmed_up};

/// Requests by which the longer run is longer.
const REQUESTS: u64 = 8000;
/// Looking for work in vain counts too, and depends on who else has the CPUs.
const CHANCES: usize = 8;

/// Instructions of a whole life with so many requests.
fn total(image: &Image, pattern: Pattern, requests: u64) -> u64 {
    let out = image.files.path().join("callgrind");
    let valgrind = format!(
        "valgrind -q --tool=callgrind --callgrind-out-file='{}'",
        out.display()
    );
    let daemon = image.serve(&image.wrapper(&valgrind));
    let mut client = warmed_up(daemon.socket(), plan(pattern, 32));
    run(&mut client, requests);
    client.close().unwrap();
    assert!(daemon.terminate().unwrap().success());
    let text = std::fs::read_to_string(&out).unwrap();
    let totals = text.lines().find_map(|line| {
        let count = line.strip_prefix("totals: ")?;
        count.trim().parse().ok()
    });
    totals.expect("callgrind has written no total")
}

/// Instructions per request, on a thread of its own that forbids io_uring.
fn each(pattern: Pattern) -> Option<f64> {
    if !have("valgrind") {
        return None;
    }
    let image = Image::new(Way::File)?;
    let counted = std::thread::spawn(move || {
        forbid_io_uring();
        let short = total(&image, pattern, REQUESTS);
        let long = total(&image, pattern, 2 * REQUESTS);
        ratio(long.saturating_sub(short), REQUESTS)
    });
    Some(counted.join().unwrap())
}

fn check(pattern: Pattern, unoptimized: f64, optimized: f64) {
    let ceiling = if cfg!(debug_assertions) {
        unoptimized
    } else {
        optimized
    };
    for chance in 1..=CHANCES {
        let Some(each) = each(pattern) else {
            return;
        };
        eprintln!("{pattern:?}: {each:.0} instructions per request");
        // Less than this, and nothing was counted.
        assert!(each > 50.0, "{pattern:?}: {each:.0} is absurd");
        if each <= ceiling {
            return;
        }
        assert!(chance < CHANCES, "{pattern:?}: {each:.0} instructions");
    }
}

#[test]
fn reads_take_few_instructions() {
    // Measured: 2362 to 2425; optimized 1764 to 1777. Some 35 of them say what the thread is at, as
    // many look whether memory was lost and count descriptors, and some 15 count kinds of requests
    // and choose the ones that are timed.
    check(Pattern::Randread, 2480.0, 1800.0);
}

#[test]
fn writes_take_few_instructions() {
    // Measured: 2414 to 2473; optimized 1810 to 1831.
    check(Pattern::Randwrite, 2530.0, 1850.0);
}
