//! Instructions of the process per request, in user space, as callgrind counts
//! them: the difference of two runs, so that start and end do not count. All
//! is slow there but the client, so that batches are as large as the depth.
//!
//! To see them: `cargo test --test counting instructions -- --nocapture`;
//! where they go: `callgrind_annotate` on the output file of a process that
//! is run so and loaded by `extentd-load`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use front_end::load::Pattern;

use crate::served::{Image, Way, binary, have, plan, ratio, run, warmed_up};

/// Requests by which the longer run is longer.
const REQUESTS: u64 = 8000;

/// A program that runs the process under callgrind with the same arguments.
fn wrapper(dir: &Path, out: &Path) -> std::path::PathBuf {
    let path = dir.join("under-callgrind");
    let script = format!(
        "#!/bin/sh\nexec valgrind -q --tool=callgrind --callgrind-out-file='{}' '{}' \"$@\"\n",
        out.display(),
        binary().display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Instructions of a whole life with so many requests.
fn total(image: &Image, pattern: Pattern, requests: u64) -> u64 {
    let out = image.files.path().join("callgrind");
    let daemon = image.serve(&wrapper(image.files.path(), &out));
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

fn check(way: Way, pattern: Pattern, unoptimized: f64, optimized: f64) {
    if !have("valgrind") {
        return;
    }
    let Some(image) = Image::new(way) else {
        return;
    };
    let short = total(&image, pattern, REQUESTS);
    let long = total(&image, pattern, 2 * REQUESTS);
    let each = ratio(long.saturating_sub(short), REQUESTS);
    eprintln!("{way:?}, {pattern:?}: {each:.0} instructions per request");
    let ceiling = if cfg!(debug_assertions) {
        unoptimized
    } else {
        optimized
    };
    // A request cannot be had for less than its three descriptors cost.
    assert!(
        each > 50.0,
        "{way:?}, {pattern:?}: {each:.0}, which is absurd"
    );
    assert!(
        each <= ceiling,
        "{way:?}, {pattern:?}: {each:.0} instructions"
    );
}

#[test]
fn reads_by_the_file_take_few_instructions() {
    check(Way::File, Pattern::Randread, 1e6, 1e6);
}

#[test]
fn reads_and_writes_by_the_disk_take_few_instructions() {
    check(Way::Disk, Pattern::Randread, 1e6, 1e6);
    check(Way::Disk, Pattern::Randwrite, 1e6, 1e6);
}
