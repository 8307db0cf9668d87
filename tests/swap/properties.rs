//! Every property, as `info` shows it and as the kernel tells.

use extentd::operator::control::Request;
use front_end::codes::feature;
use rig::attached::DATA;
use rig::file_systems::{EXT4, Made, XFS};

use crate::served::{Guest, IMAGE, Served, extentctl, has_sys_resource, mounted};

/// What needs a privilege that the tests may not have.
const PRIVILEGED: [&str; 2] = ["io_flusher", "oom_protected"];

fn all_held(made: Made) {
    let Some(fs) = mounted(made) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    // Before a guest is there, and while it is.
    for guest in [false, true] {
        let mut attached = guest.then(|| Guest::attach(&served));
        if let Some(guest) = &mut attached {
            guest.load(1000);
        }
        let swap = served.swap();
        for (name, property) in swap["properties"].as_object().unwrap() {
            let expected = has_sys_resource() || !PRIVILEGED.contains(&name.as_str());
            assert_eq!(property["held"], expected, "{name}: {property}");
        }
        assert_eq!(swap["holds"], has_sys_resource());
    }
}

#[test]
fn all_properties_hold_on_ext4() {
    all_held(EXT4);
}

#[test]
fn all_properties_hold_on_xfs() {
    all_held(XFS);
}

#[test]
fn memory_is_locked_but_not_the_guests() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let guest = Guest::attach(&served);
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", served.daemon.pid())).unwrap();
    let (mut header, mut guests, mut locked) = ("", 0, 0);
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let is_locked = flags.split(' ').any(|flag| flag == "lo");
            if header.contains("memfd:guest") {
                assert!(!is_locked, "guest memory is locked: {header}");
                guests += 1;
            } else if is_locked {
                locked += 1;
            }
        } else if !line.split(' ').next().unwrap().ends_with(':') {
            header = line;
        }
    }
    assert!(guests > 0 && locked > 10, "{guests} {locked}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.daemon.pid())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    let kilobytes: u64 = locked
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(kilobytes > 4096, "VmLck {kilobytes} kB");
    drop(guest);
}

#[test]
fn the_flags_of_every_thread_and_the_oom_score_are_set_where_that_is_allowed() {
    let allowed = has_sys_resource();
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let process = format!("/proc/{}", served.daemon.pid());
    let score = std::fs::read_to_string(format!("{process}/oom_score_adj")).unwrap();
    assert_eq!(score.trim() == "-1000", allowed, "{score}");
    for task in std::fs::read_dir(format!("{process}/task")).unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let flags: u64 = fields[6].parse().unwrap();
        // PF_MEMALLOC_NOIO
        assert_eq!(flags & 0x8_0000 != 0, allowed, "{stat}");
    }
}

#[test]
fn nothing_that_frees_blocks_is_offered_and_zeros_are_written() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let mut guest = Guest::attach(&served);
    assert_eq!(guest.features() & feature::DISCARD, 0);
    guest.write(0, &[7; 65536]);
    for (sector, sectors) in [(8, 16), (33, 3)] {
        let segment = front_end::Segment {
            sector,
            sectors,
            flags: 1,
        };
        let done = guest
            .driver
            .segments(front_end::Op::WriteZeroes, DATA, &[segment])
            .unwrap();
        assert_eq!(done.status, front_end::codes::status::OK);
    }
    let bytes = guest.read(0, 65536);
    for (sector, bytes) in (0..).zip(bytes.chunks_exact(512)) {
        let zero = (8..24).contains(&sector) || (33..36).contains(&sector);
        let expected = if zero { 0 } else { 7 };
        assert!(
            bytes.iter().all(|&byte| byte == expected),
            "sector {sector}"
        );
    }
    assert!(served.holds("extents_written"));
}

#[test]
fn the_self_test_tells_by_its_status() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let control = served.control.to_str().unwrap();
    let output = extentctl(&["--control-path", control, "selftest"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.success(), has_sys_resource(), "{text}");
    for name in ["paths agree", "counters flat", "memory locked"] {
        let line = text.lines().find(|line| line.contains(name)).unwrap();
        assert!(line.contains(" held: "), "{line}");
    }
    // Somebody has the image: that it is ours does not hold any more.
    let reader = std::fs::File::open(fs.path("disk")).unwrap();
    served.wait_path("file");
    let output = extentctl(&["--control-path", control, "selftest"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains("lease held"))
        .unwrap();
    assert!(line.contains("NOT HELD: "), "{line}");
    drop(reader);
}

#[test]
fn a_swap_grade_disk_is_not_resized() {
    let Some(fs) = mounted(EXT4) else { return };
    fs.create("disk").set_len(IMAGE).unwrap();
    let served = Served::start(&fs.path("disk"), &[]);
    let resize = Request::Resize { bytes: 2 * IMAGE };
    let answer =
        extentd::operator::control::ask(&served.control, &resize, front_end::LIMIT).unwrap();
    match answer {
        extentd::operator::control::Answer::Error(failure) => {
            assert!(failure.message.contains("extentctl prepare"), "{failure}")
        }
        extentd::operator::control::Answer::Result(value) => panic!("{value}"),
    }
}
