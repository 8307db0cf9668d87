//! `advise`: what an operator may say about ranges of the map.

use crate::rig::{HOLE, IMAGE, Rig, WINDOW, content};

#[test]
fn a_range_is_pinned_stays_and_is_dropped_when_unpinned() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let _guest = rig.attach_to_disk();
    let windows = || rig.json(&["stats"])["map"]["resident_windows"].clone();
    let dropped = rig.json(&["advise", "dontneed", "all"]);
    assert_eq!(dropped["resident_windows"], 0);

    // Widened to the first two windows.
    let pinned = rig.json(&["advise", "pin", "1M+4M"]);
    assert_eq!(pinned["done"], "loaded and pinned");
    assert_eq!(
        (&pinned["start"], &pinned["end"]),
        (&(1 << 20).into(), &(5 << 20).into())
    );
    assert_eq!(pinned["resident_windows"], 2);
    assert!(pinned["pinned_bytes"].as_u64().unwrap() > 0);
    rig.json(&["advise", "dontneed", "all"]);
    assert_eq!(windows(), 2, "pinned windows stay");

    let text = rig.extentctl(&["advise", "unpin", "all"]).text();
    assert!(
        text.starts_with("bytes 0 to 12582912: may be evicted; ")
            && text.ends_with("0 bytes of them pinned\n"),
        "{text}"
    );
    rig.json(&["advise", "dontneed", "..4M"]);
    assert_eq!(windows(), 1, "only what lies in the range is dropped");
    rig.json(&["advise", "dontneed", "4M.."]);
    assert_eq!(windows(), 0);
}

#[test]
fn willneed_loads_in_the_background() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    let _guest = rig.attach_to_disk();
    let answer = rig.json(&["advise", "willneed", "all"]);
    assert_eq!(answer["done"], "being loaded");
    rig.until(&["stats"], |stats| {
        stats["map"]["resident_windows"] == IMAGE / WINDOW
    });
}

#[test]
fn advice_about_access_decides_what_is_loaded_ahead() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    let mut guest = rig.attach_to_disk();
    rig.json(&["advise", "sequential", "all"]);
    guest.read(0, 4096);
    rig.until(&["stats"], |stats| {
        stats["map"]["resident_windows"] == IMAGE / WINDOW
    });
    for advice in ["random", "normal"] {
        let done = rig.json(&["advise", advice, "0..1M"]);
        assert_eq!(done["advice"], advice);
    }
}

#[test]
fn advice_that_cannot_be_taken_is_one_line_that_says_what_to_do() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    let refusal = |arguments: &[&str]| rig.extentctl(arguments).refusal();
    let line = refusal(&["advise", "pin", "all"]);
    assert!(
        line.starts_with("extentctl: advise pin: ")
            && line.ends_with("start extentd with a larger --pin-reserve"),
        "{line}"
    );
    assert_eq!(
        refusal(&["advise", "dontneed", "0..1G"]),
        "extentctl: advise dontneed: the range ends at byte 1073741824, but the disk has 12582912 bytes"
    );
    assert_eq!(
        refusal(&["advise", "dontneed", "1G.."]),
        "extentctl: advise dontneed: the range begins at byte 1073741824, but the disk has 12582912 bytes"
    );
    let usage = rig.extentctl(&["advise", "pin", "2M..1M"]);
    assert!(
        !usage.ok && usage.error.contains("is empty"),
        "{}",
        usage.error
    );

    // The reserve suffices, but nothing can be pinned.
    drop(rig);
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let line = rig.extentctl(&["advise", "pin", "all"]).refusal();
    assert!(
        line.starts_with(
            "extentctl: advise pin: requests go by the file (no guest uses the disk), "
        ),
        "{line}"
    );
    assert_eq!(rig.json(&["stats"])["map"]["pinned_bytes"], 0);
}

#[test]
fn without_a_disk_path_the_map_is_loaded_to_be_shown() {
    let Some(rig) = Rig::by_file_on_ext4(&[]) else {
        return;
    };
    let mut guest = rig.attach();
    let nothing = rig.json(&["map"]);
    assert_eq!(nothing["resident"], serde_json::json!([]));
    let done = rig.json(&["populate", "0%..33.4%"]);
    assert_eq!(
        (&done["in_use"], &done["resident_windows"]),
        (&false.into(), &2.into()),
        "{done}"
    );
    let number = |name: &str| done[name].as_u64().unwrap();
    assert!(
        number("fiemap_calls") >= 1 && number("took_us") > 0,
        "{done}"
    );
    assert!(number("resident_extents") >= 1 && number("resident_bytes") > 0);
    let map = rig.json(&["map"]);
    assert_eq!(map["resident"], serde_json::json!([[0, 2 * WINDOW]]));
    // Requests know nothing of it.
    guest.write(HOLE, &content(0, 4096));
    assert_eq!(guest.read(HOLE, 4096), content(0, 4096));
    assert_eq!(rig.json(&["stats"])["file_operations"], 2);

    let done = rig.json(&["advise", "dontneed", "0..8192s"]);
    assert_eq!(done["resident_windows"], 1, "{done}");
    let text = rig.extentctl(&["advise", "willneed", "all"]).text();
    assert!(
        text.contains("loaded to be shown, as requests go by the file; ")
            && text.contains(" calls of FIEMAP, ")
            && text.contains("now 3 windows in memory to be shown, "),
        "{text}"
    );
    for advice in ["pin", "sequential", "random", "normal"] {
        let line = rig.extentctl(&["advise", advice, "all"]).refusal();
        assert!(
            line.contains("(--io-path file was given)")
                && line.ends_with("populate loads it to be shown"),
            "{line}"
        );
    }
    let line = rig.extentctl(&["map", "--heat=0.1"]).refusal();
    assert!(line.ends_with("--io-path file was given"), "{line}");
}

#[test]
fn a_recorded_boot_is_loaded_again() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    let mut guest = rig.attach_to_disk();
    rig.json(&["advise", "random", "all"]);
    rig.json(&["advise", "dontneed", "all"]);
    for offset in [0, 2 * WINDOW] {
        guest.read(offset, 4096);
    }
    let boot = rig.until(&["map"], |map| {
        map["resident"] == serde_json::json!([[0, WINDOW], [2 * WINDOW, IMAGE]])
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("boot.json");
    std::fs::write(&file, boot.to_string()).unwrap();
    rig.json(&["advise", "dontneed", "all"]);
    let from = file.to_str().unwrap();
    let done = rig.json(&["advise", "willneed", "--from", from]);
    assert_eq!(
        (&done["in_use"], &done["resident_windows"]),
        (&true.into(), &2.into())
    );
    assert_eq!((&done["start"], &done["end"]), (&0.into(), &IMAGE.into()));
    assert_eq!(rig.json(&["map"])["resident"], boot["resident"]);

    std::fs::write(&file, "# by hand\n4M..8M\nhope\n").unwrap();
    let line = rig
        .extentctl(&["advise", "willneed", "--from", from])
        .refusal();
    assert!(line.contains("line 3: 'hope' is not a range"), "{line}");
    assert_eq!(
        rig.json(&["stats"])["map"]["resident_windows"],
        2,
        "all or nothing is understood"
    );
}

#[test]
fn an_image_without_extents_is_told_so() {
    let rig = Rig::on_tmpfs(&[]);
    for advice in ["willneed", "populate"] {
        let line = rig.extentctl(&["advise", advice, "all"]).refusal();
        assert!(
            line.starts_with(&format!(
                "extentctl: advise {advice}: the image's file system tells no extents: "
            )),
            "{line}"
        );
    }
    let line = rig.extentctl(&["advise", "pin", "all"]).refusal();
    assert!(
        line.contains("requests go by the file") && line.contains("tmpfs"),
        "{line}"
    );
    assert!(rig.extentctl(&["advise", "dontneed", "all"]).ok);
}
