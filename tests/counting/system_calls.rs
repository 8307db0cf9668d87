//! System calls of the process per request, as strace counts them. Tracing
//! slows the process down, so that batches are as large as the depth allows:
//! the figures are those of a loaded back-end, and they repeat well.
//!
//! To see them: `cargo test --test counting system_calls -- --nocapture`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use front_end::load::{Pattern, Waiting};

use crate::served::{Image, Way, binary, have, plan, ratio, run, warmed_up};

const REQUESTS: u64 = 20_000;

/// A running strace.
struct Trace(Child);

impl Trace {
    /// Counts the calls of all threads of a process.
    fn attach(pid: u32, to: &Path) -> Self {
        let mut child = Command::new("strace")
            .args(["-f", "-c", "-U", "name,calls", "-p"])
            .arg(pid.to_string())
            .arg("-o")
            .arg(to)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let attached = lines
            .map_while(Result::ok)
            .any(|line| line.contains("attached"));
        assert!(attached, "strace could not attach");
        Self(child)
    }

    /// Ends it; by name, how often each was called.
    fn end(mut self, from: &Path) -> Vec<(String, u64)> {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        self.0.wait().unwrap();
        let table = std::fs::read_to_string(from).unwrap();
        let rows = table.lines().filter_map(|line| {
            let (name, calls) = line.trim().rsplit_once(char::is_whitespace)?;
            Some((name.trim().to_owned(), calls.parse().ok()?))
        });
        rows.filter(|(name, _)| name != "total").collect()
    }
}

/// Calls per request, and writes among them: what goes to eventfds.
struct Counted {
    calls: f64,
    writes: f64,
}

fn count(way: Way, pattern: Pattern, depth: u16, waiting: Waiting) -> Option<Counted> {
    if !have("strace") {
        return None;
    }
    let image = Image::new(way)?;
    let daemon = image.serve(&binary());
    let mut plan = plan(pattern, depth);
    plan.waiting = waiting;
    let mut client = warmed_up(daemon.socket(), plan);
    let out = image.files.path().join("strace");
    let trace = Trace::attach(daemon.pid(), &out);
    let report = run(&mut client, REQUESTS);
    let calls = trace.end(&out);
    assert_eq!(report.requests, REQUESTS);
    let writes = calls.iter().filter(|(name, _)| name == "write");
    let counted = Counted {
        calls: ratio(calls.iter().map(|call| call.1).sum(), REQUESTS),
        writes: ratio(writes.map(|call| call.1).sum(), REQUESTS),
    };
    eprintln!(
        "{way:?}, {pattern:?}, depth {depth}, {waiting:?}: {:.4} calls per request, {:.4} writes; {calls:?}",
        counted.calls, counted.writes
    );
    client.close().unwrap();
    Some(counted)
}

fn check((way, pattern, depth, waiting): (Way, Pattern, u16, Waiting), calls: f64, writes: f64) {
    if let Some(counted) = count(way, pattern, depth, waiting) {
        let what = format!("{way:?}, {pattern:?}, depth {depth}, {waiting:?}");
        // Something was counted at all: the kernel is told of each batch.
        assert!(counted.calls > 0.5 / f64::from(depth), "{what}");
        assert!(counted.calls <= calls, "{what}: {} calls", counted.calls);
        assert!(
            counted.writes <= writes,
            "{what}: {} writes",
            counted.writes
        );
    }
}

#[test]
fn a_batch_of_reads_costs_few_calls() {
    check((Way::File, Pattern::Randread, 32, Waiting::Poll), 9.0, 9.0);
    check((Way::Disk, Pattern::Randread, 32, Waiting::Poll), 9.0, 9.0);
}

#[test]
fn a_batch_of_writes_costs_few_calls() {
    check((Way::Disk, Pattern::Randwrite, 32, Waiting::Poll), 9.0, 9.0);
}

#[test]
fn a_guest_that_sleeps_is_woken_once_for_a_batch() {
    check((Way::Disk, Pattern::Randread, 32, Waiting::Call), 9.0, 9.0);
}

#[test]
fn a_single_request_costs_few_calls() {
    check((Way::Disk, Pattern::Randread, 1, Waiting::Call), 9.0, 9.0);
}
