//! `advise`: what an operator may say about ranges of the map.

use crate::rig::{IMAGE, Rig, WINDOW};

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
    for advice in ["willneed", "pin"] {
        let line = refusal(&["advise", advice, "all"]);
        let expected = if advice == "pin" {
            "start extentd with a larger --pin-reserve"
        } else {
            "the disk path is not in use (no guest uses the disk), and only then is the map loaded"
        };
        assert!(
            line.starts_with(&format!("extentctl: advise {advice}: ")) && line.ends_with(expected),
            "{line}"
        );
    }
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

    // The reserve suffices, but nothing can be loaded.
    drop(rig);
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let line = rig.extentctl(&["advise", "pin", "all"]).refusal();
    assert!(line.contains("the disk path is not in use"), "{line}");
    assert_eq!(rig.json(&["stats"])["map"]["pinned_bytes"], 0);
}

#[test]
fn an_image_without_disk_path_has_no_map_to_advise() {
    let rig = Rig::on_tmpfs(&[]);
    for advice in [
        "willneed",
        "dontneed",
        "pin",
        "unpin",
        "sequential",
        "random",
    ] {
        let line = rig.extentctl(&["advise", advice, "all"]).refusal();
        assert!(
            line.starts_with(&format!(
                "extentctl: advise {advice}: there is no disk path and so no map to advise: "
            )) && line.contains("tmpfs"),
            "{line}"
        );
    }
    let rig = Rig::on_tmpfs(&["--io-path", "file"]);
    let line = rig.extentctl(&["advise", "pin", "all"]).refusal();
    assert!(line.ends_with("--io-path file was given"), "{line}");
}
