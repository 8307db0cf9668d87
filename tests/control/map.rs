//! `map`: the extents of the image, and what the map has of them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use crate::rig::{HOLE, IMAGE, Rig, UNWRITTEN, WINDOW, content};

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap()
}

fn of_kind<'a>(map: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let extents = map["extents"].as_array().unwrap().iter();
    extents.filter(move |extent| extent["kind"] == kind)
}

#[test]
fn the_extents_are_where_the_device_has_the_data_and_nothing_is_loaded() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let _guest = rig.attach_to_disk();
    rig.json(&["advise", "dontneed", "all"]);
    let before = rig.json(&["stats"]);
    let map = rig.json(&["map"]);
    let mut at = 0;
    for extent in map["extents"].as_array().unwrap() {
        assert_eq!(number(extent, "start"), at, "no gaps");
        assert_eq!(extent["resident"], 0);
        at += number(extent, "len");
    }
    assert_eq!((at, number(&map, "size_bytes")), (IMAGE, IMAGE));
    let sum = |kind: &str| of_kind(&map, kind).map(|e| number(e, "len")).sum::<u64>();
    assert_eq!(sum("written"), HOLE);
    assert_eq!(sum("hole"), UNWRITTEN - HOLE);
    assert_eq!(sum("unwritten"), IMAGE - UNWRITTEN);
    assert!(of_kind(&map, "hole").all(|hole| hole["disk"].is_null()));

    let device = File::open(rig.device()).unwrap();
    for extent in of_kind(&map, "written") {
        let mut bytes = vec![0; usize::try_from(number(extent, "len")).unwrap()];
        device
            .read_exact_at(&mut bytes, number(extent, "disk"))
            .unwrap();
        assert!(bytes == content(number(extent, "start"), bytes.len()));
    }
    let after = rig.json(&["stats"]);
    for name in ["loads", "resident_windows", "evictions"] {
        assert_eq!(before["map"][name], after["map"][name], "{name}");
    }
    assert_eq!(after["path_entries"], 1, "looking does not break the lease");
}

#[test]
fn what_the_map_has_in_memory_is_shown() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let _guest = rig.attach_to_disk();
    rig.json(&["advise", "dontneed", "all"]);
    rig.json(&["advise", "pin", "0..4M"]);
    let map = rig.json(&["map"]);
    assert_eq!(map["resident"], serde_json::json!([[0, WINDOW]]));
    let resident: u64 = map["extents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| number(extent, "resident"))
        .sum();
    assert_eq!(resident, WINDOW);

    let text = rig.extentctl(&["map"]).text();
    let last = text.lines().last().unwrap();
    assert!(
        last.ends_with("12 MiB of 12 MiB; 4 MiB in memory"),
        "{text}"
    );
    let hole = text.lines().find(|line| line.contains("hole")).unwrap();
    let cells: Vec<_> = hole.split_whitespace().collect();
    let (len, loaded) = (UNWRITTEN - HOLE, WINDOW - HOLE);
    assert_eq!(
        cells,
        [
            &HOLE.to_string(),
            &len.to_string(),
            "-",
            "hole",
            &loaded.to_string(),
            "bytes"
        ]
    );
}

#[test]
fn lines_are_bounded_and_a_part_can_be_asked_for() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    let text = rig.extentctl(&["map", "--limit", "1"]).text();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(
        text.contains("\nthere is more: go on with the range "),
        "{text}"
    );
    let part = rig.json(&["map", "3M..4M"]);
    let extents = part["extents"].as_array().unwrap();
    assert_eq!(extents.len(), 1);
    assert_eq!(
        (number(&extents[0], "start"), number(&extents[0], "len")),
        (3 << 20, 1 << 20)
    );
    let line = rig.extentctl(&["map", "0..1G"]).refusal();
    assert!(
        line.starts_with("extentctl: map: the range ends at byte"),
        "{line}"
    );
}

#[test]
fn the_strip_shows_kinds_and_what_is_in_memory() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let _guest = rig.attach_to_disk();
    rig.json(&["advise", "dontneed", "all"]);
    rig.json(&["advise", "pin", "0..4M"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("map.svg");
    rig.extentctl(&["map", "--svg", path.to_str().unwrap()])
        .text();
    let svg = std::fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("class=\"pinned\"") && svg.contains("below that: 4 MiB pinned"));
    for line in [
        "written: 2 MiB",
        "hole: 6 MiB",
        "unwritten: 4 MiB",
        "shared: 0 bytes",
    ] {
        assert!(svg.contains(&format!(">{line} (")), "{line} in {svg}");
    }
    // A third of 1000 columns of one pixel, and the one that it ends in.
    let width: u64 = svg
        .lines()
        .filter(|line| line.contains("class=\"resident\""))
        .map(|line| {
            let width = line.split("width=\"").nth(1).unwrap();
            width.split('"').next().unwrap().parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(width, 334);

    let line = rig
        .extentctl(&["map", "--svg", "/nowhere/map.svg"])
        .refusal();
    assert!(
        line.starts_with("extentctl: --svg /nowhere/map.svg: "),
        "{line}"
    );
}

#[test]
fn looking_writes_nothing_out() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    // The file system chooses a place when it writes these pages, not before.
    let image = File::options().write(true).open(&rig.image).unwrap();
    image.write_all_at(&content(0, 1 << 20), HOLE).unwrap();
    let map = rig.json(&["map"]);
    let opaque: Vec<_> = of_kind(&map, "opaque").collect();
    assert_eq!(opaque.len(), 1, "{map:#}");
    assert_eq!(number(opaque[0], "start"), HOLE);
    assert_eq!(opaque[0]["reason"], "not allocated yet");
    assert_eq!(opaque[0]["disk"], Value::Null);
}

#[test]
fn a_file_system_without_extents_is_one_clear_line() {
    let rig = Rig::on_tmpfs(&[]);
    let line = rig.extentctl(&["map"]).refusal();
    assert!(
        line.starts_with("extentctl: map: the image's file system tells no extents: "),
        "{line}"
    );
}

#[test]
fn windows_that_requests_look_up_are_warm() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let guest = rig.attach_to_disk();
    rig.extentctl(&["advise", "pin", "all"]).text();
    // At rest nothing is.
    let cold = rig.json(&["map", "--heat=0.1"]);
    assert_eq!(cold["heat"], serde_json::json!([]));
    // Requests for the first window.
    let at_work = rig.under_io(guest);
    // On a busy machine some looks may come while no request does, but a window
    // that none is for is never warm.
    let looked = |times: u64| {
        let map = rig.json(&["map", "--heat=0.8"]);
        let heat = map["heat"].as_array().unwrap();
        let shape = serde_json::json!([[0, WINDOW, times]]);
        let [only] = &heat[..] else { panic!("{map}") };
        assert_eq!((&only[0], &only[1]), (&0.into(), &WINDOW.into()), "{map}");
        map["heat"] == shape
    };
    while !looked(8) {}
    loop {
        let text = rig.extentctl(&["map", "--heat=0.8"]).text();
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        let warm = line("in use").trim_start_matches("in use").trim();
        // A third of 70 columns, and the one that it ends in.
        assert_eq!(warm.len(), 24, "{text}");
        assert!(line("pinned").ends_with(&"!".repeat(70)), "{text}");
        if warm == "8".repeat(24) {
            break;
        }
    }
    drop(at_work);
}
