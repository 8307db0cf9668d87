//! What programs of others find, which know the protocol.

use std::process::Command;

use rig::file_systems::{BTRFS, EXT4, XFS};
use serde_json::{Value, json};

use crate::rig::{Served, bytes, change, extentctl, image, judges, mounted, run, snapshot, text};

fn json_of(command: &mut Command) -> Value {
    run(command).json()
}

#[test]
fn nbdinfo_tells_what_is_served_where_data_are_and_what_has_changed() {
    if !judges(&["nbdinfo"]) {
        return;
    }
    let Some(mounted) = mounted(XFS) else { return };
    image(&mounted);
    let monday = snapshot(&mounted, "monday");
    change(&mounted, 5);
    let tuesday = snapshot(&mounted, "tuesday");
    let served = Served::new(&tuesday, &[&monday]);
    let info = json_of(Command::new("nbdinfo").args(["--json", &served.uri()]));
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "tuesday");
    assert_eq!(export["export-size"], 8 << 20);
    let contexts = json!(["base:allocation", "qemu:dirty-bitmap:monday"]);
    assert_eq!(export["contexts"], contexts);
    for (key, value) in [
        ("is_read_only", true),
        ("can_multi_conn", true),
        ("can_df", true),
        ("can_cache", true),
        ("can_flush", false),
        ("can_trim", false),
        ("can_zero", false),
    ] {
        assert_eq!(export[key], value, "{key}");
    }
    assert_eq!(export["block_size_maximum"], 32 << 20);
    let map = |which: &str| {
        let map = json_of(Command::new("nbdinfo").args([which, "--json", &served.uri()]));
        let part = |part: &Value| {
            (
                part["offset"].as_u64().unwrap(),
                part["type"].as_u64().unwrap(),
            )
        };
        map.as_array().unwrap().iter().map(part).collect::<Vec<_>>()
    };
    let mebi = |number: u64| number << 20;
    let data = map("--map=base:allocation");
    let expected = [
        (0, 0),
        (mebi(1), 3),
        (mebi(1) + 65536, 0),
        (mebi(2), 3),
        (mebi(2) + 131_072, 0),
        (mebi(3), 3),
        (mebi(5), 0),
        (mebi(5) + 65536, 3),
        (mebi(6), 0),
        (mebi(6) + 8192, 3),
    ];
    assert_eq!(data, expected);
    let dirty = map("--map=qemu:dirty-bitmap:monday");
    let expected = [
        (0, 0),
        (8192, 1),
        (12288, 0),
        (mebi(2), 1),
        (mebi(2) + 131_072, 0),
        (mebi(5), 1),
        (mebi(5) + 65536, 0),
    ];
    assert_eq!(dirty, expected);
    served.stop();
}

#[test]
fn nbdcopy_and_qemu_img_have_the_bytes_of_the_snapshot() {
    if !judges(&["nbdcopy", "qemu-img"]) {
        return;
    }
    for made in [XFS, BTRFS] {
        let Some(mounted) = mounted(made) else { return };
        image(&mounted);
        let monday = snapshot(&mounted, "monday");
        change(&mounted, 6);
        let tuesday = snapshot(&mounted, "tuesday");
        let served = Served::new(&tuesday, &[&monday]);
        let copy = mounted.path("copy");
        for connections in ["1", "4"] {
            let nbdcopy = ["--connections", connections, &served.uri(), text(&copy)];
            run(Command::new("nbdcopy").args(nbdcopy)).well();
            assert!(bytes(&copy) == bytes(&tuesday), "{connections}");
        }
        let qemu = |arguments: &[&str]| run(Command::new("qemu-img").args(arguments));
        let uri = served.uri();
        let other = mounted.path("qcow2");
        qemu(&["convert", "-f", "raw", "-O", "qcow2", &uri, text(&other)]).well();
        qemu(&["compare", "-f", "raw", "-F", "qcow2", &uri, text(&other)]).well();
        let different = qemu(&["compare", "-f", "raw", "-F", "raw", &uri, text(&monday)]);
        assert_eq!(different.status, Some(1));
        // Where QEMU takes data for absent, the bitmap is set.
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:monday",
            text(&served.socket)
        );
        let map = qemu(&["map", "--output=json", "--image-opts", &options]).json();
        let set = map
            .as_array()
            .unwrap()
            .iter()
            .filter(|part| part["data"] == false);
        let ranges: Vec<Value> = set
            .map(|part| json!([part["start"], part["length"]]))
            .collect();
        let diff = extentctl(&["--json", "diff", text(&monday), text(&tuesday)]).json();
        let told = diff["ranges"].as_array().unwrap().iter();
        let told: Vec<Value> = told.map(|one| json!([one["start"], one["len"]])).collect();
        assert_eq!(ranges, told, "{}", made.name);
        served.stop();
    }
}

#[test]
fn a_snapshot_on_ext4_is_served_too() {
    if !judges(&["nbdcopy"]) {
        return;
    }
    let Some(mounted) = mounted(EXT4) else { return };
    let image = image(&mounted);
    let served = Served::new(&image, &[]);
    let copy = mounted.path("copy");
    run(Command::new("nbdcopy").args([&served.uri(), text(&copy)])).well();
    assert!(bytes(&copy) == bytes(&image));
    served.stop();
}
