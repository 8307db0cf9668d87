//! Memory of the process beside the guest's, under load: bounce buffers, slots, the map, code and
//! stacks.

use front_end::load::{Pattern, Plan};

use crate::served::{Image, Way, binary, plan, run, warmed_up};

/// Kibibytes of a line of /proc/PID/status.
fn kibibytes(status: &str, name: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.unwrap().trim().strip_suffix(" kB").unwrap();
    number.trim().parse().unwrap()
}

#[test]
fn beside_the_guests_memory_it_takes_less_than_3_mib_and_its_code() {
    for way in [Way::File, Way::Disk] {
        let Some(image) = Image::new(way) else {
            continue;
        };
        let daemon = image.serve(&binary());
        let load = Plan {
            queues: 2,
            ..plan(Pattern::Randrw, 128)
        };
        let mut client = warmed_up(daemon.socket(), load);
        run(&mut client, 5000);
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let own = kibibytes(&status, "RssAnon");
        let all = kibibytes(&status, "VmRSS");
        // The guest's memory is what is shared.
        let shared = kibibytes(&status, "RssShmem");
        eprintln!(
            "{way:?}: {own} KiB of its own, {} with its code",
            all - shared
        );
        // Measured: 1952 to 2384 KiB. With the code, which all processes have together, 8.4 to
        // 9.1 MiB unoptimized, and 6.3 to 6.7 MiB of a release build (by EXTENTD).
        assert!(own > 100, "{way:?}: {own} KiB is absurd");
        assert!(own < 3 << 10, "{way:?}: {own} KiB");
        assert!(all - shared < 10 << 10, "{way:?}: {} KiB", all - shared);
        client.close().unwrap();
    }
}
