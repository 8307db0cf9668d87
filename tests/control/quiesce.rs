//! `quiesce` and `resume`: a disk is held still while a guest works.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::rig::{Guest, IMAGE, Line, Rig};

/// Where the two halves of a step are written.
const FIRST: u64 = 0;
const SECOND: u64 = 4 << 20;

/// A guest that counts: each number is written to one place, and when that is
/// answered to the other.
struct Counting {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Counting {
    fn start(mut guest: Guest) -> Self {
        let (done, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counted, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut number = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                for place in [FIRST, SECOND] {
                    guest.write(place, &block(number));
                }
                counted.store(number, Ordering::Release);
            }
        });
        Self {
            done,
            stop,
            thread: Some(thread),
        }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// Waits until it has come further by so much.
    fn goes_on(&self, steps: u64) {
        let start = std::time::Instant::now();
        let before = self.done();
        while self.done() < before + steps {
            assert!(start.elapsed() < front_end::limit());
            std::thread::yield_now();
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

/// The number that the image has at a place, which is all over its block.
fn number_at(image: &File, place: u64) -> u64 {
    let mut bytes = [0; 512];
    image.read_exact_at(&mut bytes, place).unwrap();
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(bytes[..], block(number));
    number
}

/// The number of a metric that has one sample.
fn sample(metrics: &str, name: &str) -> f64 {
    let mut lines = metrics.lines();
    let line = lines.find(|line| line.starts_with(&format!("{name}{{")));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_held_disk_is_one_moments_and_goes_on_when_it_is_told_to() {
    let Some(rig) = Rig::on_ext4(&[]) else { return };
    let mut line = Line::subscribed(rig.control(), "[\"quiesced\",\"resumed\"]");
    let guest = Counting::start(rig.attach_to_disk());
    for round in 0..10 {
        guest.goes_on(20);
        let arguments: &[&str] = if round % 2 == 0 {
            &["quiesce"]
        } else {
            &["quiesce", "--sync"]
        };
        let before = guest.done();
        let held = rig.json(arguments);
        assert_eq!(held["synced"], round % 2 == 1);
        assert!(rig.json(&["info"])["held_ms"].as_u64().unwrap() > 0);
        line.until("quiesced");
        let metrics = rig.extentctl(&["metrics"]).text();
        assert_eq!(sample(&metrics, "extentd_quiesced"), 1.0);
        assert!(sample(&metrics, "extentd_quiesced_time_seconds") > 0.0);
        let requests = || rig.json(&["stats"])["requests"].as_u64().unwrap();
        let (asked, done) = (requests(), guest.done());
        // Whoever opens it takes the lease away; that does not wait for the guest.
        let image = File::open(&rig.image).unwrap();
        let (first, second) = (number_at(&image, FIRST), number_at(&image, SECOND));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!((requests(), guest.done()), (asked, done), "it goes on");
        assert_eq!(
            (number_at(&image, FIRST), number_at(&image, SECOND)),
            (first, second)
        );
        // All that was answered is there, and nothing in a wrong order.
        assert!(first >= before && second >= done, "{first} {second} {done}");
        assert!(first == second || first == second + 1, "{first} {second}");
        drop(image);
        assert_eq!(rig.extentctl(&["resume"]).text(), "the disk goes on\n");
        assert_eq!(line.until("resumed")[0]["by_itself"], false);
        assert!(rig.json(&["info"])["held_ms"].is_null());
        let metrics = rig.extentctl(&["metrics"]).text();
        assert_eq!(sample(&metrics, "extentd_quiesced"), 0.0);
        assert_eq!(sample(&metrics, "extentd_quiesced_time_seconds"), 0.0);
    }
    guest.goes_on(20);
}

#[test]
fn who_dies_holds_no_disk_for_ever() {
    let rig = Rig::on_tmpfs(&[]);
    let mut line = Line::subscribed(rig.control(), "[\"quiesced\",\"resumed\"]");
    let guest = Counting::start(rig.attach());
    let text = rig.extentctl(&["quiesce", "--for", "1"]).text();
    assert!(text.starts_with("nothing is in flight"), "{text}");
    line.until("quiesced");
    assert_eq!(line.until("resumed")[0]["by_itself"], true);
    guest.goes_on(20);
    rig.daemon
        .wait_stderr(|line| line.contains("the disk goes on by itself"))
        .unwrap();
}

#[test]
fn who_names_its_hold_lets_no_other_one_go() {
    let rig = Rig::on_tmpfs(&[]);
    let number = || rig.json(&["quiesce"])["hold"].as_u64().unwrap();
    let first = number();
    rig.extentctl(&["resume", "--hold", &first.to_string()])
        .text();
    let second = number();
    assert_ne!(first, second);
    let refusal = rig
        .extentctl(&["resume", "--hold", &first.to_string()])
        .refusal();
    assert!(refusal.contains("held by somebody else"), "{refusal}");
    assert!(rig.json(&["info"])["held_ms"].as_u64().unwrap() > 0);
    rig.extentctl(&["resume", "--hold", &second.to_string()])
        .text();
    let refusal = rig
        .extentctl(&["resume", "--hold", &second.to_string()])
        .refusal();
    assert!(refusal.contains("the disk is not held"), "{refusal}");
}

#[test]
fn what_cannot_be_held_or_resumed_is_refused_with_the_reason() {
    let rig = Rig::on_tmpfs(&[]);
    let refusal = rig.extentctl(&["resume"]).refusal();
    assert!(refusal.contains("the disk is not held"), "{refusal}");
    rig.extentctl(&["quiesce"]).text();
    let refusal = rig.extentctl(&["quiesce"]).refusal();
    assert!(refusal.contains("it is held already, for"), "{refusal}");
    rig.daemon.signal(libc::SIGUSR2).unwrap();
    rig.daemon
        .wait_stderr(|line| line.contains("no handover: the disk is held still"))
        .unwrap();
    // A front-end that comes meanwhile is served when the disk goes on.
    let guest = Counting::start(rig.attach());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.done(), 0);
    rig.extentctl(&["resume"]).text();
    guest.goes_on(20);
    // Whoever is held can still be changed and stopped.
    rig.extentctl(&["quiesce"]).text();
    rig.extentctl(&["resize", &(IMAGE * 2).to_string()]).text();
    rig.extentctl(&["resume"]).text();
}

#[test]
fn several_disks_are_held_together_or_not_at_all() {
    let rigs = [Rig::on_tmpfs(&[]), Rig::on_tmpfs(&[])];
    let guests = rigs.each_ref().map(|rig| Counting::start(rig.attach()));
    let ask = |paths: &[&std::path::Path], command: &str| {
        let paths = paths
            .iter()
            .flat_map(|path| [std::ffi::OsStr::new("--control-path"), path.as_os_str()]);
        let output = std::process::Command::new(::rig::extentctl!())
            .args(paths)
            .arg(command)
            .output()
            .unwrap();
        output.status.success()
    };
    let both = rigs.each_ref().map(|rig| rig.control());
    assert!(ask(&both, "quiesce"));
    let done = guests.each_ref().map(Counting::done);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guests.each_ref().map(Counting::done), done);
    assert!(ask(&both, "resume"));
    guests.iter().for_each(|guest| guest.goes_on(20));

    // Whoever holds one of them keeps it.
    assert!(ask(&both[1..], "quiesce"));
    assert!(!ask(&both, "quiesce"));
    assert!(rigs[0].json(&["info"])["held_ms"].is_null());
    assert!(rigs[1].json(&["info"])["held_ms"].is_u64());
    assert!(ask(&both[1..], "resume"));

    let nowhere = std::path::Path::new("/nonexistent/control");
    assert!(!ask(&[both[0], nowhere, both[1]], "quiesce"));
    for (rig, guest) in rigs.iter().zip(&guests) {
        assert!(rig.json(&["info"])["held_ms"].is_null());
        let metrics = rig.extentctl(&["metrics"]).text();
        assert_eq!(sample(&metrics, "extentd_quiesced"), 0.0);
        assert_eq!(sample(&metrics, "extentd_quiesced_time_seconds"), 0.0);
        guest.goes_on(20);
    }
}
