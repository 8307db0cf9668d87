//! What is installed beside the programs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::rig::extentd;

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

#[test]
fn vu_47_the_description_agrees_with_what_the_program_says() {
    let text = std::fs::read_to_string(packaged("50-extentd.json")).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    let output = Command::new(extentd())
        .arg("--print-capabilities")
        .output()
        .unwrap();
    let capabilities: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(description["type"], capabilities["type"]);
    // VhostUserBackend of vhost-user.json: these and optional tags.
    let keys: BTreeSet<_> = description
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(keys, BTreeSet::from(["binary", "description", "type"]));
    let binary = Path::new(description["binary"].as_str().unwrap());
    assert!(binary.is_absolute());
    assert_eq!(
        binary.file_name(),
        Path::new(env!("CARGO_BIN_EXE_extentd")).file_name()
    );
    assert_ne!(description["description"], "");
}

#[test]
fn the_units_are_understood_by_systemd() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIP: no systemd-analyze here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for name in [
        "extentd@.service",
        "extentd@.socket",
        "extentd-exporter.service",
        "extentd-nbd@.service",
        "extentd-nbd@.socket",
    ] {
        let text = std::fs::read_to_string(packaged(name)).unwrap();
        // It looks whether the program is there.
        let text = text.replace(
            "/usr/bin/extentd ",
            &format!("{} ", env!("CARGO_BIN_EXE_extentd")),
        );
        let extentctl = format!("{} ", env!("CARGO_BIN_EXE_extentctl"));
        let text = text.replace("/usr/bin/extentctl ", &extentctl);
        let nbd = format!("{} ", env!("CARGO_BIN_EXE_extentd-nbd"));
        let text = text.replace("/usr/bin/extentd-nbd ", &nbd);
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        units.push(path);
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(units)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{told}");
}

#[test]
fn the_service_is_rated_safe() {
    // In tenths: lower is better, and what is above fails.
    let rated = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=13", "--no-pager"])
        .arg(packaged("extentd@.service"))
        .arg(packaged("extentd-exporter.service"))
        .arg(packaged("extentd-nbd@.service"))
        .output();
    let Ok(rated) = rated else {
        println!("SKIP: no systemd-analyze here");
        return;
    };
    let told = String::from_utf8_lossy(&rated.stdout);
    if told.is_empty() {
        println!("SKIP: this systemd-analyze rates no files");
        return;
    }
    assert!(rated.status.success(), "{told}");
}

#[test]
fn the_service_gives_options_that_the_program_has() {
    let text = std::fs::read_to_string(packaged("extentd@.service")).unwrap();
    let start = text
        .lines()
        .find(|line| line.starts_with("ExecStart="))
        .unwrap();
    let output = Command::new(extentd()).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let options: Vec<_> = start
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .collect();
    assert_eq!(options.len(), 2);
    for option in options {
        assert!(help.contains(option), "{option}");
    }
}

/// The probes of the program, as tracers find them, and those that the script
/// for bpftrace looks at.
#[test]
fn a_probe_of_every_stage_is_in_the_program_and_in_the_script() {
    let Ok(output) = Command::new("readelf")
        .arg("--notes")
        .arg(extentd())
        .output()
    else {
        println!("SKIP: no readelf here");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(str::trim);
    let mut probes = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line == "Provider: extentd" {
            probes.extend(lines.next().and_then(|line| line.strip_prefix("Name: ")));
        }
    }
    let stages = ["fetched", "submitted", "ended", "published", "interrupted"];
    assert_eq!(probes, BTreeSet::from(stages), "{text}");
    let script = std::fs::read_to_string(packaged("stages.bt")).unwrap();
    let used: BTreeSet<_> = script
        .lines()
        .filter_map(|line| line.strip_prefix("usdt:$1:extentd:"))
        .collect();
    assert_eq!(used, probes);
}
