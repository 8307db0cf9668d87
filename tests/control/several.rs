//! `extentctl` with several disks, its events, its colours and completions.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::rig::Rig;

fn extentctl(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null());
    command
}

fn program() -> std::path::PathBuf {
    ::rig::extentctl!()
}

fn done(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A folder with the sockets of these disks.
fn folder(rigs: &[(&str, &Path)]) -> tempfile::TempDir {
    let folder = ::rig::scratch::folder("several");
    for (name, control) in rigs {
        std::os::unix::fs::symlink(control, folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn all_disks_of_a_folder_are_shown_and_one_that_is_silent_hides_none() {
    let (one, two) = (Rig::on_tmpfs(&[]), Rig::on_tmpfs(&[]));
    let folder = folder(&[("a.control", one.control()), ("b.ctl", two.control())]);
    let all = format!("--all={}", folder.path().display());
    let (status, out, error) = done(extentctl(&[&all, "info"]).output().unwrap());
    assert_eq!((status, error.as_str()), (Some(0), ""));
    for (rig, name) in [(&one, "a.control"), (&two, "b.ctl")] {
        assert!(out.lines().any(|line| line.ends_with(name)), "{out}");
        let pid = rig.daemon.pid().to_string();
        let line = |line: &str| line.starts_with("pid ") && line.ends_with(&pid);
        assert!(out.lines().any(line), "{out}");
    }
    // One that has ended without removing its socket.
    drop(UnixListener::bind(folder.path().join("c.control")).unwrap());
    std::fs::write(folder.path().join("notes"), "").unwrap();
    let (status, out, error) = done(
        extentctl(&[&all, "--json", "resize", "16M"])
            .output()
            .unwrap(),
    );
    assert_eq!(status, Some(3), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("c.control") && error.contains("is extentd running"));
    let answers: Vec<Value> = serde_json::from_str(&out).unwrap();
    let sizes: Vec<&Value> = answers
        .iter()
        .map(|one| &one["result"]["size_bytes"])
        .collect();
    assert_eq!(
        sizes,
        [&Value::from(16 << 20), &(16 << 20).into(), &Value::Null]
    );
    assert!(answers[2]["error"].is_string(), "{out}");
    // With one disk there the answer has the same form.
    for name in ["b.ctl", "c.control"] {
        std::fs::rename(
            folder.path().join(name),
            folder.path().join(name).with_extension("off"),
        )
        .unwrap();
    }
    let (_, out, _) = done(extentctl(&[&all, "--json", "stats"]).output().unwrap());
    let answers: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert!(answers[0]["result"]["requests"].is_u64(), "{out}");
    std::fs::rename(folder.path().join("b.off"), folder.path().join("b.ctl")).unwrap();
    // A refusal is told of its disk.
    let [a, b] = ["a.control", "b.ctl"].map(|name| folder.path().join(name).display().to_string());
    let several = [
        "--control-path",
        &a,
        "--control-path",
        &b,
        "resize",
        "16385",
    ];
    let (status, _, error) = done(extentctl(&several).output().unwrap());
    assert_eq!((status, error.lines().count()), (Some(1), 2), "{error}");
    assert!(error.contains(&format!("{a}: resize: ")), "{error}");
}

#[test]
fn events_are_shown_until_the_process_has_gone_which_has_a_status_of_its_own() {
    let rig = Rig::on_tmpfs(&[]);
    let control = rig.control().to_owned();
    let control = control.to_str().unwrap();
    let spawn = |arguments: &[&str]| {
        let mut all = vec!["--control-path", control, "events"];
        all.extend(arguments);
        let mut command = extentctl(&all);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (child, out)
    };
    let (mut people, mut for_people) = spawn(&[]);
    let (mut program, mut for_program) = spawn(&["--json"]);
    let (counted, mut last) = spawn(&["--count", "1", "resized"]);
    // All three have subscribed once they are told: nothing else says so.
    let mut texts = [String::new(), String::new(), String::new()];
    std::thread::scope(|scope| {
        let readers = scope.spawn(|| {
            let [first, second, third] = &mut texts;
            for_people.read_line(first).unwrap();
            for_program.read_line(second).unwrap();
            last.read_line(third).unwrap();
        });
        let mut large = false;
        while !readers.is_finished() {
            large = !large;
            rig.extentctl(&["resize", if large { "16M" } else { "12M" }])
                .text();
        }
    });
    let [first, second, third] = texts;
    for line in [&first, &third] {
        assert!(
            line.contains("Z  resized  ") && line.contains("MiB ("),
            "{line}"
        );
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
    let event: Value = serde_json::from_str(&second).unwrap();
    assert_eq!(event["kind"], "resized");
    assert!(event["sequence"].is_u64() && event["lost"] == 0, "{event}");
    assert!(counted.wait_with_output().unwrap().status.success());
    assert!(rig.daemon.terminate().unwrap().success());
    for (child, out) in [
        (&mut people, &mut for_people),
        (&mut program, &mut for_program),
    ] {
        out.read_to_string(&mut String::new()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(4));
        let mut error = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        assert!(error.ends_with(": extentd has gone\n"), "{error}");
    }
    let (status, ..) = done(
        extentctl(&["--control-path", control, "events"])
            .output()
            .unwrap(),
    );
    assert_eq!(status, Some(3));
}

/// What is written to a terminal: `script` makes one.
fn on_terminal(command: &str, no_color: bool) -> String {
    let mut script = Command::new("script");
    script
        .args(["-qec", command, "/dev/null"])
        .env("TERM", "xterm");
    script
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR")
        .env_remove("CLICOLOR_FORCE");
    if no_color {
        script.env("NO_COLOR", "1");
    }
    let output = script.stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_where_nobody_asks_for_none() {
    let rig = Rig::on_tmpfs(&["--swap=best-effort"]);
    let command = format!(
        "{} --control-path {} info",
        program().display(),
        rig.control().display()
    );
    let coloured = on_terminal(&command, false);
    assert!(
        coloured.contains("\u{1b}[1m\u{1b}[31mNOT HELD"),
        "{coloured:?}"
    );
    let plain = on_terminal(&command, true);
    assert!(
        plain.contains("NOT HELD") && !plain.contains('\u{1b}'),
        "{plain:?}"
    );
    let piped = rig.extentctl(&["info"]).text();
    assert!(
        piped.contains("NOT HELD") && !piped.contains('\u{1b}'),
        "{piped:?}"
    );
    assert!(!on_terminal(&format!("{command} --json"), false).contains('\u{1b}'));
}

#[test]
fn shells_are_told_how_to_complete() {
    for (shell, says) in [
        ("bash", "_extentctl()"),
        ("zsh", "#compdef extentctl"),
        ("fish", "complete -c extentctl"),
    ] {
        let (status, out, _) = done(extentctl(&["completions", shell]).output().unwrap());
        assert_eq!(status, Some(0));
        assert!(out.contains(says) && out.contains("io-path"), "{shell}");
    }
}
