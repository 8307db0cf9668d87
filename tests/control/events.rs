//! What is told of a disk that is in use, and to whom.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use ::rig::held::{Held, thread_named};
use front_end::limit;
use serde_json::Value;

use crate::rig::{IMAGE, Line, Rig};

fn kinds(events: &[Value]) -> Vec<&str> {
    let kinds = events.iter().map(|event| event["kind"].as_str().unwrap());
    kinds.collect()
}

/// Each has the next number, and none was lost.
fn assert_whole(events: &[Value]) {
    for pair in events.windows(2) {
        let number = |event: &Value| event["sequence"].as_u64().unwrap();
        assert_eq!(number(&pair[1]), number(&pair[0]) + 1, "{pair:?}");
    }
    for event in events {
        assert_eq!(event["lost"], 0, "{event}");
        assert!(event["time_ms"].as_u64().unwrap() > 1_600_000_000_000);
    }
}

#[test]
fn what_becomes_of_the_guest_the_lease_and_the_path_is_told_in_order() {
    let Some(rig) = Rig::on_ext4(&[]) else { return };
    let mut line = Line::subscribed(rig.control(), "null");
    let guest = rig.attach_to_disk();
    let mut all = line.until("path-changed");
    assert_eq!(
        kinds(&all),
        ["front-end-came", "lease-taken", "path-changed"]
    );
    assert_eq!(all[0]["pid"], std::process::id());
    assert_eq!(all[2]["path"], "disk");
    let at_work = rig.under_io(guest);
    // Somebody else opens the image, and closes it.
    let other = File::open(&rig.image).unwrap();
    let lost = line.until("path-changed");
    assert_eq!(kinds(&lost), ["lease-lost", "path-changed"]);
    assert_eq!(lost[1]["path"], "file");
    let reason = lost[1]["reason"].as_str().unwrap();
    assert!(reason.contains("somebody else"), "{reason}");
    drop(other);
    let mut back = line.until("lease-taken");
    back.extend(line.until("path-changed"));
    assert_eq!(back.last().unwrap()["path"], "disk");
    // An operator does something as well.
    rig.extentctl(&["resize", "16M"]).text();
    let resized = line.until("resized");
    assert_eq!(resized.last().unwrap()["size_bytes"], 16 << 20);
    drop(at_work);
    let gone = line.until("front-end-gone");
    for events in [lost, back, resized, gone] {
        all.extend(events);
    }
    assert_whole(&all);
}

#[test]
fn threads_that_stand_still_are_told_and_a_guard_that_is_late() {
    let Some(rig) = Rig::on_ext4(&[]) else { return };
    let wanted = "[\"guard-late\",\"guard-on-time\",\"thread-stands\",\"thread-goes-on\"]";
    let mut line = Line::subscribed(rig.control(), wanted);
    let at_work = rig.under_io(rig.attach_to_disk());
    let held = Held::thread(thread_named(rig.daemon.pid(), "guard").unwrap());
    let mut late = line.until("guard-late").pop().unwrap();
    assert!(late["seconds"].as_u64().unwrap() >= 5, "{late}");
    late = line.until("thread-stands").pop().unwrap();
    assert_eq!(late["thread"], "guard");
    assert!(late["doing"].is_string() && late["seconds"].as_u64().unwrap() >= 5);
    drop(held);
    let mut on = line.hear()["params"].take();
    let mut other = line.hear()["params"].take();
    if on["kind"] == "thread-goes-on" {
        std::mem::swap(&mut on, &mut other);
    }
    assert_eq!(on["kind"], "guard-on-time", "{on}");
    assert_eq!(other["kind"], "thread-goes-on", "{other}");
    assert_eq!(other["thread"], "guard");
    drop(at_work);
}

#[test]
fn only_what_was_asked_for_is_told_until_it_is_given_up() {
    let rig = Rig::on_tmpfs(&[]);
    let mut line = Line::subscribed(rig.control(), "[\"resized\"]");
    let guest = rig.attach();
    rig.extentctl(&["resize", "16M"]).text();
    let told = line.until("resized");
    assert_eq!((told.len(), &told[0]["lost"]), (1, &Value::from(0)));
    drop(guest);
    rig.until(&["info"], |info| info["session"]["connected"] == false);
    assert_eq!(
        line.call("subscribe", "{\"kinds\":[]}")["result"]["kinds"],
        serde_json::json!([])
    );
    rig.extentctl(&["resize", "12M"]).text();
    // The answer comes, and no event before it.
    let info = line.call("info", "{}");
    assert_eq!(info["result"]["disk"]["size_bytes"], IMAGE);
    for wrong in ["{\"kinds\":[\"rain\"]}", "{\"kinds\":7}", "{\"kind\":[]}"] {
        assert_eq!(line.call("subscribe", wrong)["error"]["code"], -32602);
    }
}

#[test]
fn who_never_reads_loses_events_and_is_told_how_many() {
    let rig = Rig::on_tmpfs(&[]);
    let mut line = Line::subscribed(rig.control(), "null");
    let mut watching = Line::subscribed(rig.control(), "null");
    let mut other = Line::open(rig.control());
    // More than the ring and what lies between has room for.
    let rounds: u64 = 6000;
    for round in 0..rounds {
        let bytes = if round % 2 == 0 { IMAGE * 2 } else { IMAGE };
        let answer = other.call("resize", &format!("{{\"bytes\":{bytes}}}"));
        assert_eq!(answer["result"]["size_bytes"], bytes, "{answer}");
        // One that reads loses none.
        let event = watching.until("resized").pop().unwrap();
        assert_eq!(
            (&event["lost"], &event["size_bytes"]),
            (&0.into(), &bytes.into())
        );
    }
    let mut seen: u64 = 0;
    let mut lost: u64 = 0;
    let mut before = None;
    while seen + lost < rounds {
        let event = line.hear()["params"].take();
        let number = event["sequence"].as_u64().unwrap();
        let missed = event["lost"].as_u64().unwrap();
        if let Some(before) = before {
            assert_eq!(number, before + 1 + missed, "{event}");
        }
        before = Some(number);
        lost += missed;
        seen += 1;
    }
    assert!(lost > 0 && seen > 1000, "{seen} seen, {lost} lost");
}

#[test]
fn a_shell_that_has_said_all_is_told_on_until_the_process_goes() {
    let rig = Rig::on_tmpfs(&[]);
    let mut stream = UnixStream::connect(rig.control()).unwrap();
    stream.set_read_timeout(Some(limit())).unwrap();
    let call = ::rig::operator::call("subscribe", "{}");
    stream.write_all(format!("{call}\n").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut reader = BufReader::new(&stream);
    let mut text = String::new();
    for _ in 0..2 {
        reader.read_line(&mut text).unwrap();
    }
    drop(rig.attach());
    for kind in ["front-end-came", "front-end-gone"] {
        text.clear();
        reader.read_line(&mut text).unwrap();
        assert!(text.contains(&format!("\"kind\":\"{kind}\"")), "{text}");
    }
    assert!(rig.daemon.terminate().unwrap().success());
    text.clear();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}
