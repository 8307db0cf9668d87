//! `log-level`, and lines as systemd's journal wants them.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;

use front_end::Daemon;

use crate::rig::{self, Rig};

#[test]
fn how_much_is_logged_changes_while_a_disk_is_served() {
    let rig = Rig::on_tmpfs(&[]);
    assert_eq!(rig.json(&["log-level"])["level"], serde_json::Value::Null);
    let text = rig.extentctl(&["log-level", "error"]).text();
    assert_eq!(text, "the log shows error and what is graver\n");
    rig.json(&["resize", "16M"]);
    assert_eq!(rig.json(&["log-level", "info"])["level"], "info");
    rig.json(&["resize", "12M"]);
    rig.daemon
        .wait_stderr(|line| line.contains("resized to 12582912 bytes"))
        .unwrap();
    let log = rig.daemon.stderr().join("\n");
    assert!(!log.contains("resized to 16777216 bytes"), "{log}");
    let options = rig.extentctl(&["info", "--config"]).text();
    assert!(options.contains("log-level = \"info\"\n"), "{options}");
    let usage = rig.extentctl(&["log-level", "loud"]);
    assert!(!usage.ok && usage.error.lines().count() == 1);
}

/// The log of a process that serves, and of one that cannot, with this stream for
/// the journal's.
fn log_of(stream: impl Fn(&File) -> String) -> String {
    let folder = ::rig::scratch::folder("journal");
    let path = |name: &str| folder.path().join(name);
    let log = File::create_new(path("log")).unwrap();
    File::create_new(path("image"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let stream = stream(&log);
    let start = |image: &Path| {
        Daemon::start_to(
            &rig::extentd(),
            &path("socket"),
            image,
            &["--io-path", "file"],
            &[("JOURNAL_STREAM", &stream)],
            Stdio::from(log.try_clone().unwrap()),
        )
    };
    let served = start(&path("image")).unwrap();
    assert!(served.terminate().unwrap().success());
    assert!(start(&path("none")).is_err(), "there is no such image");
    std::fs::read_to_string(path("log")).unwrap()
}

#[test]
fn the_journal_is_told_how_grave_a_line_is() {
    let log = log_of(|file| {
        let meta = file.metadata().unwrap();
        format!("{}:{}", meta.dev(), meta.ino())
    });
    assert!(
        log.contains("<6>extentd: serving ") && log.contains("<3>extentd: --blk-file "),
        "{log}"
    );
    for line in log.lines() {
        let mark = line.get(..3).unwrap_or_default();
        assert!(["<3>", "<4>", "<6>"].contains(&mark), "{line}");
    }
}

#[test]
fn who_is_not_the_journal_is_told_no_marks() {
    let log = log_of(|file| format!("{}:1", file.metadata().unwrap().dev()));
    assert!(
        log.contains("extentd: serving ") && log.lines().all(|line| !line.starts_with('<')),
        "{log}"
    );
}
