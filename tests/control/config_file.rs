//! `--config`: options in a file, and what SIGHUP makes of another content.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::rig::Rig;

/// A start that is to fail; a file that keeps it waiting would be seen.
fn start(arguments: &[&str]) -> Output {
    Command::new("timeout")
        .arg("20")
        .arg(rig::extentd!())
        .args(arguments)
        .env("RUST_LOG", "error")
        .output()
        .unwrap()
}

fn hang_up(rig: &Rig) {
    let pid = rig.daemon.pid().to_string();
    let status = Command::new("kill").args(["-HUP", &pid]).status().unwrap();
    assert!(status.success());
}

/// Waits for a line that was not there before.
fn said(rig: &Rig, words: &str) {
    rig.daemon.wait_stderr(|line| line.contains(words)).unwrap();
}

#[test]
fn options_come_from_a_file_and_the_command_line_wins() {
    let folder = rig::scratch::folder("config");
    let file = folder.path().join("disk.toml");
    fs::write(
        &file,
        "# Of this disk\nnum-queues = 3\nqueue-size = 128\nserial = \"of the file\"\nread-only = true\n\
         blk-file = \"/nonexistent\"\nfd = 0\n",
    )
    .unwrap();
    let rig = Rig::on_tmpfs(&["--config", file.to_str().unwrap(), "--queue-size", "64"]);
    let info = rig.json(&["info"]);
    assert_eq!(
        (&info["queues"], &info["queue_size"]),
        (&3.into(), &64.into())
    );
    assert_eq!(info["disk"]["read_only"], true);
}

#[test]
fn each_mistake_in_a_file_is_one_line_with_its_place() {
    let folder = rig::scratch::folder("config");
    let path = |name: &str| folder.path().join(name);
    let write = |text: &[u8]| {
        fs::write(path("f"), text).unwrap();
        path("f")
    };
    let fails = |file: &Path, expected: &str| {
        let output = start(&[
            "--socket-path",
            "/nonexistent/s",
            "--config",
            file.to_str().unwrap(),
        ]);
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!("extentd: --config {}{expected}\n", file.display());
        assert_eq!((said, output.status.code()), (expected, Some(2)));
    };
    for (text, expected) in [
        (
            "serial = 'a'\nqueue_size = 64\n",
            " line 2: there is no option 'queue_size': a similar one is 'queue-size'",
        ),
        (
            "\n\nnum-queues = 0",
            " line 3: invalid value '0' for '--num-queues <N>': give a number, 1 to 256",
        ),
        (
            "io-path = 'raw'",
            " line 1: invalid value 'raw' for '--io-path <WAY>' [possible values: auto, disk, file]",
        ),
        ("read-only = 1", " line 1: read-only: give true or false"),
        (
            "print-capabilities = true",
            " line 1: 'print-capabilities' is for the command line only: take it out",
        ),
    ] {
        fails(&write(text.as_bytes()), expected);
    }
    let none = ": this is no file of options: give one of TOML, of at most 64 KiB";
    fails(&write(b"serial = '\xff'"), none);
    fails(&write(&[b'#'; (64 << 10) + 1]), none);
    fails(folder.path(), none);
    let made = Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(made.success());
    fails(&path("pipe"), none);
    fails(
        &path("nothing"),
        ": No such file or directory (os error 2): give a file that this user can read",
    );
    // What is wrong with several options at once is said as ever.
    write(b"num-queues = 2\nblk-file = 'i'\n");
    let file = path("f");
    let output = start(&[
        "--config",
        file.to_str().unwrap(),
        "--threads",
        "3",
        "--fd",
        "0",
    ]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("extentd: --threads 3 is more than the 2 of --num-queues"),
        "{said}"
    );
}

#[test]
fn a_changed_file_is_in_force_after_sighup_as_far_as_it_can_be() {
    let folder = rig::scratch::folder("config");
    let file = folder.path().join("disk.toml");
    let write = |text: &str| {
        // As editors do it.
        let new = folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    write("num-queues = 3\n");
    let Some(rig) = Rig::on_ext4(&["--config", file.to_str().unwrap()]) else {
        return;
    };
    let _guest = rig.attach_to_disk();

    write("num-queues = 4\nio-path = \"file\"\nlog-level = \"debug\"\nlimit = \"iops=5000\"\n");
    hang_up(&rig);
    said(&rig, "io-path is file now, and was ");
    said(&rig, "log-level is debug now, and was not given");
    said(
        &rig,
        "other values of num-queues wait for a new start, or for SIGUSR2",
    );
    rig.until(&["stats"], |stats| stats["path"] == "file");
    assert_eq!(rig.json(&["info"])["queues"], 3);
    said(&rig, "limit is iops=5000 now, and was not given");
    assert_eq!(rig.json(&["limits"])["limits"]["iops"], 5000);
    // As a file of options would have it.
    let shown = rig.extentctl(&["info", "--config"]).text();
    let lines: Vec<&str> = shown.lines().collect();
    for line in [
        "num-queues = 3",
        "io-path = \"file\"",
        "limit = \"iops=5000\"",
    ] {
        assert!(lines.contains(&line), "{shown}");
    }
    rig.extentctl(&["limits", "--bytes", "1M"]).text();
    let options = &rig.json(&["info", "--config"])["options"];
    assert_eq!(options["limit"], "iops=5000,bytes=1048576");

    write("num-queues = 3\nio-path = \"disk");
    hang_up(&rig);
    said(&rig, "the options stay as they are: --config ");
    write("num-queues = 3\nlog-level = \"debug\"\n");
    hang_up(&rig);
    said(&rig, "io-path is auto now, and was file");
    rig.until(&["stats"], |stats| stats["path"] == "disk");
    rig.until(&["limits"], |now| now["limits"]["bytes"].is_null());
    let lines = rig.daemon.stderr();
    assert!(
        lines.iter().all(|line| !line.contains("denied")),
        "{lines:?}"
    );
}
