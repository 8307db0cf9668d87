//! `top` and `map` on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use front_end::limit;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::rig::Rig;

/// extentctl on a terminal of its own.
struct OnTerminal {
    child: Child,
    terminal: File,
    seen: String,
}

impl OnTerminal {
    fn start(rig: &Rig, arguments: &[&str]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let size = Winsize {
            ws_row: 30,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let name = name.to_str().unwrap();
        let end = || {
            let file = File::options().read(true).write(true).open(name).unwrap();
            Stdio::from(OwnedFd::from(file))
        };
        let child = Command::new(rig::extentctl!())
            .arg("--control-path")
            .arg(rig.control())
            .args(arguments)
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self {
            child,
            terminal: File::from(terminal),
            seen: String::new(),
        }
    }

    /// Reads until that is seen, or the other end is closed; whether it is.
    fn see(&mut self, wanted: &str) -> bool {
        let start = Instant::now();
        while wanted.is_empty() || !self.seen.contains(wanted) {
            assert!(start.elapsed() < limit(), "{wanted:?} in {:?}", self.seen);
            let mut ready = [PollFd::new(&self.terminal, PollFlags::IN)];
            let time = rustix::event::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut ready, Some(&time)).unwrap() == 0 {
                continue;
            }
            let mut bytes = [0; 4096];
            match self.terminal.read(&mut bytes) {
                // Nobody has the other end any more.
                Ok(0) | Err(_) => return false,
                Ok(count) => self
                    .seen
                    .push_str(&String::from_utf8_lossy(&bytes[..count])),
            }
        }
        true
    }

    /// All that was written, and the exit status.
    fn end(mut self) -> (String, Option<i32>) {
        self.see("");
        let status = self.child.wait().unwrap();
        (std::mem::take(&mut self.seen), status.code())
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It has ended, but where a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The screen is left as it was found.
const LEFT: &str = "\u{1b}[?1049l";

#[test]
fn top_is_a_screen_that_q_ends() {
    let rig = Rig::on_tmpfs(&[]);
    let at_work = rig.under_io(rig.attach());
    for (key, interval) in [("q", "0.1"), ("\u{3}", "3600")] {
        let mut top = OnTerminal::start(&rig, &["top", "--interval", interval]);
        // What is empty between words is left out.
        assert!(top.see("requests/s") && top.see("operations") && top.see("there"));
        top.terminal.write_all(key.as_bytes()).unwrap();
        let (seen, status) = top.end();
        assert_eq!(status, Some(0), "{seen:?}");
        assert!(seen.contains(LEFT), "{seen:?}");
    }
    drop(at_work);
}

#[test]
fn top_ends_when_extentd_has_gone_and_says_so() {
    let mut rig = Rig::on_tmpfs(&[]);
    let mut top = OnTerminal::start(&rig, &["top", "--interval", "0.1"]);
    assert!(top.see("operations"));
    rig.daemon.signal(15).unwrap();
    rig.daemon.wait().unwrap();
    let (seen, status) = top.end();
    assert_eq!(status, Some(4), "{seen:?}");
    let (_, after) = seen.split_once(LEFT).unwrap();
    assert!(after.contains("extentctl: --control-path "), "{after:?}");
}

#[test]
fn plain_lines_are_printed_where_they_are_asked_for() {
    let rig = Rig::on_tmpfs(&[]);
    let (seen, status) = OnTerminal::start(&rig, &["top", "--once"]).end();
    assert_eq!(status, Some(0), "{seen:?}");
    assert!(
        !seen.contains('\u{1b}') && seen.contains("per second"),
        "{seen:?}"
    );
    let text = rig.extentctl(&["top", "--once"]).text();
    assert!(text.lines().any(|line| line.starts_with("requests")));
}

#[test]
fn populate_draws_a_bar_on_a_terminal() {
    let Some(rig) = Rig::by_file_on_ext4(&[]) else {
        return;
    };
    let (seen, status) = OnTerminal::start(&rig, &["populate"]).end();
    assert_eq!(status, Some(0), "{seen:?}");
    assert!(
        seen.contains("now 3 windows in memory to be shown"),
        "{seen:?}"
    );
    assert!(seen.contains("12.00 MiB"), "{seen:?}");
}

#[test]
fn a_screen_is_drawn_into_a_file() {
    let rig = Rig::on_tmpfs(&[]);
    let at_work = rig.under_io(rig.attach());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("top.svg");
    let path = file.to_str().unwrap();
    let text = rig
        .extentctl(&["top", "--interval", "0.1", "--svg", path])
        .text();
    assert_eq!(text, format!("drawn to {path}\n"));
    drop(at_work);
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(
        svg.contains("requests/s ") && !svg.contains("requests/s -"),
        "the second screen has rates: {svg}"
    );
    let line = rig
        .extentctl(&["top", "--svg", "/nowhere/top.svg", "--count", "1"])
        .refusal();
    assert!(
        line.starts_with("extentctl: --svg /nowhere/top.svg: "),
        "{line}"
    );
}
