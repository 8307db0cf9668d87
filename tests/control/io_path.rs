//! `io-path`: the way is changed while a guest runs.

use std::fs::File;

use crate::rig::{Rig, content};

const BY_CHOICE: &str =
    "requests go by the file: an operator has chosen the file (extentctl io-path file)\n";

#[test]
fn file_leaves_the_disk_path_and_stays_away_until_it_is_allowed() {
    let Some(rig) = Rig::on_ext4(&["--pin-reserve", "1M"]) else {
        return;
    };
    let mut guest = rig.attach_to_disk();
    rig.extentctl(&["advise", "pin", "all"]).text();
    let counts = || {
        let stats = rig.json(&["stats"]);
        let get = |name: &str| stats[name].as_u64().unwrap();
        (
            get("disk_operations"),
            get("file_operations"),
            get("path_entries"),
        )
    };
    assert_eq!(guest.read(0, 4096), content(0, 4096));
    let (disk, file, entries) = counts();
    assert_eq!((disk, entries), (1, 1));

    assert_eq!(rig.extentctl(&["io-path", "file"]).text(), BY_CHOICE);
    guest.write(4096, &content(0, 4096));
    assert_eq!(guest.read(4096, 4096), content(0, 4096));
    assert_eq!(counts(), (disk, file + 2, entries));
    // The lease is given back: a reader need not wait, and sees the write.
    let image = std::fs::read(&rig.image).unwrap();
    assert!(image[4096..8192] == content(0, 4096));

    // Another guest does not change what the operator chose.
    drop(guest);
    let mut guest = rig.attach();
    guest.read(0, 4096);
    assert_eq!(counts(), (disk, file + 3, entries));
    assert_eq!(rig.json(&["io-path", "file"])["path"], "file");

    rig.extentctl(&["io-path", "auto"]).text();
    rig.until(&["stats"], |stats| stats["path"] == "disk");
    // What was pinned comes back with the path.
    rig.until(&["stats"], |stats| stats["map"]["resident_windows"] == 3);
    assert_eq!(guest.read(4096, 4096), content(0, 4096));
    assert_eq!(counts(), (disk + 1, file + 3, entries + 1));
}

#[test]
fn disk_tells_what_is_in_the_way_and_takes_the_path_when_nothing_is() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    let _guest = rig.attach_to_disk();
    // Breaks the lease, and keeps it from being taken again.
    let reader = File::open(&rig.image).unwrap();
    let line = rig.extentctl(&["io-path", "disk"]).refusal();
    assert!(
        line.starts_with("extentctl: io-path disk: somebody else has the image open"),
        "{line}"
    );
    assert_eq!(rig.json(&["stats"])["path"], "file");
    let entries = rig.json(&["stats"])["path_entries"].as_u64().unwrap();
    // From here on the path may also come back by itself.
    drop(reader);
    assert_eq!(rig.json(&["io-path", "disk"])["path"], "disk");
    assert_eq!(
        rig.json(&["stats"])["path_entries"].as_u64().unwrap(),
        entries + 1
    );
}

#[test]
fn without_a_guest_the_path_is_tried_and_not_used() {
    let Some(rig) = Rig::on_ext4(&[]) else {
        return;
    };
    assert_eq!(rig.extentctl(&["io-path", "file"]).text(), BY_CHOICE);
    let idle = "requests go by the file: no guest uses the disk\n";
    assert_eq!(rig.extentctl(&["io-path", "auto"]).text(), idle);
    assert_eq!(rig.extentctl(&["io-path", "file"]).text(), BY_CHOICE);
    assert_eq!(rig.extentctl(&["io-path", "disk"]).text(), idle);
    let reader = File::open(&rig.image).unwrap();
    let line = rig.extentctl(&["io-path", "disk"]).refusal();
    assert!(line.contains("somebody else has the image open"), "{line}");
    drop(reader);
    // What was chosen before does not count any more, and a refusal changes
    // nothing.
    let _guest = rig.attach();
    rig.until(&["stats"], |stats| stats["path"] == "disk");
}

#[test]
fn an_image_without_disk_path_says_why() {
    let rig = Rig::on_tmpfs(&[]);
    for way in ["disk", "auto"] {
        let line = rig.extentctl(&["io-path", way]).refusal();
        assert!(
            line.starts_with("extentctl: io-path: there is no disk path: ")
                && line.contains("tmpfs"),
            "{line}"
        );
    }
    assert_eq!(rig.json(&["io-path", "file"])["path"], "file");
}
