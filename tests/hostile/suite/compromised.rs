//! A front-end that was taken over: user nobody outside, root in a user
//! namespace of its own. Whatever message and whatever descriptor it sends
//! and then stays silent, others wait for it no longer than it lives; and
//! meanwhile the process says who it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::site::Site;
use super::target::{STUCK, Target, Way};
use super::{Case, chosen};
use crate::cases;

/// Names the case to run, and where, to a process that is an attacker.
const CASE: &str = "EXTENTD_ATTACK";
const SOCKET: &str = "EXTENTD_ATTACK_SOCKET";
const FILES: &str = "EXTENTD_ATTACK_FILES";
const NOBODY: &str = "65534";

/// The attacker, run by [`Attacker::start`] as a process of its own; in any
/// other run there is nothing to do.
#[test]
fn an_attacker_does_nothing_where_nobody_sends_it() {
    let Ok(wanted) = std::env::var(CASE) else {
        return;
    };
    let path = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let site = Site {
        socket: path(SOCKET),
        control: None,
        metrics: None,
        files: path(FILES),
        divisor: 1,
        share: 0,
    };
    front_end::set_limit(STUCK);
    let attack = cases::of_a_front_end()
        .into_iter()
        .find(|case| case.name == wanted);
    let attack: Case = attack.unwrap();
    let tried = super::tried(|| attack.run(&site));
    println!("\nattacked");
    std::io::stdout().flush().unwrap();
    // It stays until it is ended.
    let _ = std::io::stdin().read(&mut [0]);
    drop(tried);
}

struct Attacker {
    child: Child,
}

impl Attacker {
    /// Starts it; it has attacked then, and stays.
    fn start(program: &std::path::Path, site: &Site, case: &Case) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--user",
                "--map-root-user",
            ])
            .arg(program)
            .args(["an_attacker_does_nothing", "--nocapture"])
            .env(CASE, &case.name)
            .env(SOCKET, &site.socket)
            .env(FILES, &site.files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let attacked = lines.any(|line| line.is_ok_and(|line| line == "attacked"));
        assert!(attacked, "{}: the attacker has ended", case.name);
        Self { child }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A copy of this program that everybody may run.
fn program(site: &Site) -> PathBuf {
    let copy = site.files.join("attacker");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    copy
}

fn allow(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_front_end_that_was_taken_over_denies_service_no_longer_than_it_lives() {
    let Some(mut target) = Target::start(Way::File) else {
        return;
    };
    let mut unshare = Command::new("setpriv");
    unshare.args([
        "--reuid",
        NOBODY,
        "unshare",
        "--user",
        "--map-root-user",
        "true",
    ]);
    if let Err(why) = rig::program::run(&mut unshare) {
        println!("SKIP: no user namespace for user nobody here: {why}");
        return;
    }
    let site = target.site.clone();
    allow(site.socket.parent().unwrap(), 0o755);
    allow(&site.files, 0o777);
    let program = program(&site);
    allow(&program, 0o755);
    let mut failures = Vec::new();
    let all = chosen(cases::of_a_front_end());
    for case in &all {
        allow(&site.socket, 0o666);
        let attacker = super::tried(|| Attacker::start(&program, &site, case));
        let told = super::tried(|| {
            let info = rig::operator::info(site.control.as_ref().unwrap());
            let front_end = &info["session"]["front_end"];
            // It may have been disconnected for what it sent.
            if !front_end.is_null() {
                assert_eq!(front_end["uid"], 65534, "{front_end}");
            }
        });
        for tried in [attacker.map(drop), told] {
            if let Err(why) = tried {
                failures.push(format!("{}: {why}", case.name));
            }
        }
        if let Err(why) = target.check() {
            println!("FAILED {}: {why}", case.name);
            failures.push(format!("{}: {why}", case.name));
            target.restart();
        }
    }
    println!(
        "{} cases by user nobody, {} failed",
        all.len(),
        failures.len()
    );
    target.finish();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}
