#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::*;

/// The entries are the process's: one test at a time uses them.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const SECOND: Duration = Duration::from_secs(1);

/// Changes of that thread within so many looks, a second apart.
fn looks(watch: &mut Watch, count: u32, name: &str) -> Vec<Change> {
    let all = (0..count).flat_map(|_| watch.look(SECOND, SECOND));
    let of = |change: &Change| match change {
        Change::Stands(standing) | Change::GoesOn(standing) => standing.thread == name,
    };
    all.filter(of).collect()
}

#[test]
fn who_turns_or_rests_does_not_stand() {
    let _alone = alone();
    let _member = join("busy", Doing::Turning);
    let mut watch = Watch::default();
    for _ in 0..20 {
        turn();
        assert_eq!(looks(&mut watch, 1, "busy"), []);
    }
    during(Doing::Resting, || {
        assert_eq!(looks(&mut watch, 99, "busy"), []);
    });
}

#[test]
fn who_stands_is_told_once_and_again_when_it_goes_on() {
    let _alone = alone();
    let _member = join("stuck", Doing::Turning);
    let mut watch = Watch::default();
    let before = times_stood();
    let [Change::Stands(told)] = &looks(&mut watch, 9, "stuck")[..] else {
        panic!("told otherwise");
    };
    assert_eq!(
        (told.thread.as_str(), told.doing),
        ("stuck", Doing::Turning)
    );
    assert!(standing().iter().any(|one| one.thread == "stuck"));
    assert!(times_stood() > before);
    turn();
    let [Change::GoesOn(told)] = &looks(&mut watch, 4, "stuck")[..] else {
        panic!("told otherwise");
    };
    assert!(told.time >= 5 * SECOND, "{told:?}");
    assert!(!standing().iter().any(|one| one.thread == "stuck"));
}

#[test]
fn who_rests_is_woken_now_and_then_and_stands_if_that_is_in_vain() {
    let _alone = alone();
    let (woken, wakes) = std::sync::mpsc::channel();
    let _member = join_with("sleepy", Doing::Turning, move || woken.send(()).unwrap());
    let mut watch = Watch::default();
    during(Doing::Resting, || {
        assert_eq!(looks(&mut watch, 8, "sleepy"), []);
    });
    assert_eq!(wakes.try_iter().count(), 1);
    during(Doing::Resting, || {
        let [Change::Stands(told)] = &looks(&mut watch, 30, "sleepy")[..] else {
            panic!("told otherwise");
        };
        assert_eq!(told.doing, Doing::Resting);
    });
    assert_eq!(wakes.try_iter().count(), 1);
}

#[test]
fn who_waits_for_the_disk_may_take_longer_and_need_not_turn() {
    let _alone = alone();
    let _member = join("patient", Doing::Disk);
    let mut watch = Watch::default();
    assert_eq!(looks(&mut watch, 20, "patient"), []);
    let [Change::Stands(told)] = &looks(&mut watch, 20, "patient")[..] else {
        panic!("told otherwise");
    };
    assert!(!told.doing.must_turn() && Doing::Turning.must_turn());
}

#[test]
fn a_process_that_was_stopped_blames_nobody() {
    let _alone = alone();
    let _member = join("asleep", Doing::Turning);
    let mut watch = Watch::default();
    watch.look(SECOND, SECOND);
    assert_eq!(watch.look(3600 * SECOND, SECOND), []);
    turn();
    assert_eq!(watch.look(SECOND, SECOND), []);
}

#[test]
fn a_thread_that_ends_is_forgotten_and_its_place_used_again() {
    let _alone = alone();
    let count = || {
        std::thread::spawn(|| drop(join("short", Doing::Turning)))
            .join()
            .unwrap();
        entries().len()
    };
    let first = count();
    assert_eq!([count(), count()], [first; 2]);
    assert!(!entries().iter().any(|entry| {
        entry
            .owner
            .as_ref()
            .is_some_and(|owner| owner.name == "short")
    }));
}

#[test]
fn a_foreign_call_that_waits_is_ended_and_others_are_left_alone() {
    let _alone = alone();
    catch_strikes().unwrap();
    let (mut end, _other) = std::io::pipe().unwrap();
    let begun = Barrier::new(2);
    std::thread::scope(|scope| {
        let caught = scope.spawn(|| {
            let _member = join("caught", Doing::Turning);
            begun.wait();
            // Read::read does not try again by itself.
            let error = foreign(|| end.read(&mut [0])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
            // What comes afterwards is another call.
            assert_eq!(foreign(|| Ok(7)).unwrap(), 7);
        });
        begun.wait();
        let mut watch = Watch::default();
        let mut last = Instant::now();
        while !caught.is_finished() {
            let next = watch.next();
            std::thread::sleep(next.min(CLOSE));
            let _ = watch.look(last.elapsed(), next);
            last = Instant::now();
        }
        caught.join().unwrap();
    });
}

/// As often as the watch looks at a foreign call.
const CLOSE: Duration = Duration::from_millis(20);
