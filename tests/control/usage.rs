//! Every command explains itself.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::rig::Rig;

fn help(arguments: &[&str]) -> String {
    let output = Command::new(rig::extentctl!())
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_names_every_command_and_each_has_its_own() {
    let all = help(&[]);
    let commands = [
        "info",
        "resize",
        "stats",
        "top",
        "map",
        "advise",
        "populate",
        "log-level",
        "io-path",
        "metrics",
        "events",
        "completions",
    ];
    for command in commands {
        assert!(
            all.lines()
                .any(|line| line.split_whitespace().next() == Some(command)),
            "{command} in\n{all}"
        );
        assert!(help(&[command]).contains("Usage: extentctl"), "{command}");
    }
    assert!(all.contains("Examples:") && all.contains("Exit status:"));
    for advice in [
        "willneed",
        "dontneed",
        "pin",
        "unpin",
        "sequential",
        "random",
    ] {
        assert!(help(&["advise"]).contains(advice), "{advice}");
    }
}

#[test]
fn each_mistake_is_one_line_that_says_what_to_do() {
    let rig = Rig::on_tmpfs(&[]);
    let socket = rig.daemon.socket().to_str().unwrap().to_owned();
    let long = "x".repeat(120);
    for (arguments, code, said) in [
        (
            &["--control-path", "none", "info"][..],
            3,
            "is extentd running",
        ),
        (&["--control-path", &long, "info"], 3, "less than 108 bytes"),
        (
            &["--control-path", &socket, "info"],
            3,
            "not its --socket-path",
        ),
        (&["info"], 2, "give the --control-path"),
        (&["--all=none", "info"], 3, "--all=none: "),
        (&["--all=/proc/self/fdinfo", "info"], 3, "give their folder"),
        (
            &["--all", "--control-path", "c", "info"],
            2,
            "cannot be used with",
        ),
        (
            &["--control-path", "c", "--control-path", "d", "top"],
            2,
            "top is for one disk",
        ),
        (&["--control-path", "c", "events", "rain"], 2, "'[KIND]...'"),
        (&["completions", "dos"], 2, "'<SHELL>'"),
        (&["--control-path", "c", "infos"], 2, "exists: 'info'"),
        (
            &["--control-path", "c", "resize", "-1"],
            2,
            "'<SIZE>': '-1' is not a size",
        ),
        (
            &["--control-path", "c", "limits", "--iops", "1K"],
            2,
            "'--iops <N>': '1K' is no number of requests",
        ),
        (
            &["--control-path", "c", "resize"],
            2,
            "not provided: <SIZE>",
        ),
        (
            &["--control-path", "c", "top", "--count", "-3"],
            2,
            "'--count <N>': give a number",
        ),
        (
            &["--control-path", "c", "map", "--limit", "x"],
            2,
            "give a number, 1 to 1000000",
        ),
        (
            &["--control-path", "c", "map", "--svg", "f", "--json"],
            2,
            "'--svg <FILE>'",
        ),
        (
            &["prepare", "no/such/folder", "--size", "1M"],
            1,
            "check the name",
        ),
    ] {
        let output = Command::new(rig::extentctl!())
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        assert!(
            error.starts_with("extentctl: ") && error.contains(said),
            "{arguments:?}: {error}"
        );
    }
}

#[test]
fn who_closes_without_an_answer_is_told_with_what_to_look_at() {
    let folder = rig::scratch::folder("usage");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let closed = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // All that is sent is taken, so that the end is no reset.
        BufReader::new(stream).read_line(&mut String::new())
    });
    let output = Command::new(rig::extentctl!())
        .arg("--control-path")
        .arg(&path)
        .arg("info")
        .output()
        .unwrap();
    assert!(closed.join().unwrap().unwrap() > 0);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(
        error.contains("closed without an answer") && error.contains("not its --socket-path"),
        "{error}"
    );
}

#[test]
fn a_size_that_no_file_can_have_is_refused_with_its_reason() {
    let rig = Rig::on_tmpfs(&[]);
    for size in ["16777215T", "8388608T"] {
        let said = rig.extentctl(&["resize", size]).refusal();
        assert!(
            said.contains("resize: ") && said.contains("give a smaller size"),
            "{said}"
        );
    }
}

#[test]
fn another_version_of_the_protocol_is_told_with_its_remedy() {
    let folder = rig::scratch::folder("usage");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let newer = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut stream = BufReader::new(stream);
        let hello = "{\"jsonrpc\":\"2.0\",\"method\":\"hello\",\"params\":{\"protocol\":99,\"program\":\"extentd\",\"version\":\"9.0\"}}\n";
        stream.get_mut().write_all(hello.as_bytes())?;
        stream.read_line(&mut String::new())
    });
    let output = Command::new(rig::extentctl!())
        .arg("--control-path")
        .arg(&path)
        .arg("info")
        .output()
        .unwrap();
    newer.join().unwrap().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{error}");
    let said = "extentd 9.0 speaks version 99 of the protocol, and this program version 1: use its own extentctl";
    assert!(
        error.contains(said) && error.lines().count() == 1,
        "{error}"
    );
}
