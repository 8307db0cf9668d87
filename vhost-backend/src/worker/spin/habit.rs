//! What a worker has learned of its idle times, and so whether it looks for
//! work in the next one.
//!
//! What a sleep costs is learned too: idle times that were slept through are
//! compared with those in which looking found something. Where looking makes
//! them much shorter, it pays, and is gone on with as long as most looks are
//! worth it (as halt polling of KVM grows and shrinks by outcome). Of idle times
//! that are slept through, one in a while is looked through just to know, and
//! the other way round.
//!
//! What looks in vain may burn is bounded: a small part of the time, and no more
//! than a few times what the looks that found something took.

use std::time::Duration;

/// The longest look.
const LONGEST: Duration = Duration::from_micros(100);
/// A look this long is allowed for before it is known what a sleep costs.
const FIRST: Duration = Duration::from_micros(50);
/// Idle times that are longer say nothing of what a sleep costs.
const IDLE: Duration = Duration::from_millis(1);
/// Of so many sleeps at most, one is put off to see whether looking would pay:
/// of twice as many each time that it does not, beginning with every one.
const RARE_TRIAL: u32 = 1024;
/// Of so many looks, one is left out to see what a sleep costs.
const SLEEP_TRIAL: u32 = 256;
/// The score of a worker whose looks are always worth it.
const FULL: u32 = 1024;
/// The least score at which looking pays.
const PAYS: u32 = FULL / 2;
/// One part in so many of the time may be looked through in vain,
const PART: u32 = 25;
/// so much at once,
const PURSE: Duration = Duration::from_millis(1);
/// and so many times what looks have taken that found something.
const EARNED: u32 = 2;

/// What a worker knows of its idle times.
#[derive(Debug)]
pub(super) struct Habit {
    score: u32,
    /// How long idle times are that are slept through; zero while unknown.
    slept: Duration,
    /// Sleeps or looks since the last trial.
    since_trial: u32,
    /// Sleeps between two trials.
    trials_apart: u32,
    /// What may still be looked in vain.
    purse: Duration,
}

impl Habit {
    pub(super) fn new() -> Self {
        Self {
            score: 0,
            slept: Duration::ZERO,
            since_trial: 0,
            trials_apart: 1,
            purse: PURSE,
        }
    }

    /// How long to look in the idle time that begins, `passed` after the one
    /// before began; not at all if that is zero.
    pub(super) fn limit(&mut self, passed: Duration) -> Duration {
        self.purse = (self.purse + passed / PART).min(PURSE);
        // What takes longer than a sleep would is not worth it.
        let most = if self.slept.is_zero() {
            FIRST
        } else {
            self.slept.min(LONGEST)
        };
        let looks = self.score >= PAYS;
        let apart = if looks {
            SLEEP_TRIAL
        } else {
            self.trials_apart
        };
        self.since_trial = self.since_trial.saturating_add(1);
        let trial = self.since_trial >= apart;
        if trial {
            self.since_trial = 0;
        }
        if looks != trial && self.purse >= most {
            most
        } else {
            Duration::ZERO
        }
    }

    /// An idle time was slept through.
    pub(super) fn slept(&mut self, idle: Duration) {
        if idle > IDLE {
            return;
        }
        self.slept = if self.slept.is_zero() {
            idle
        } else {
            (self.slept * 7 + idle) / 8
        };
    }

    /// Something came after a look that `took` so long, or nothing did.
    pub(super) fn looked(&mut self, came: bool, took: Duration) {
        self.purse = if came {
            (self.purse + took * EARNED).min(PURSE)
        } else {
            self.purse.saturating_sub(took)
        };
        let slept = if self.slept.is_zero() {
            FIRST
        } else {
            self.slept
        };
        // A sleep would have taken half as long again, or more.
        let paid = came && took * 3 <= slept * 2;
        let sample = if paid { FULL } else { 0 };
        self.score = (self.score * 7 + sample).div_ceil(8).min(FULL);
        if paid {
            self.trials_apart = 1;
            return;
        }
        self.score = self.score.saturating_sub(1);
        if self.score < PAYS {
            self.trials_apart = (self.trials_apart * 2).min(RARE_TRIAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(time: u64) -> Duration {
        Duration::from_micros(time)
    }

    /// What came of many idle times.
    #[derive(Debug, Default)]
    struct Lived {
        looks: u32,
        burnt: Duration,
        idle: Duration,
        passed: Duration,
    }

    /// Lives through idle times: work comes so long after each began, and a
    /// sleep makes that so much longer. Work takes 5 us.
    fn live(habit: &mut Habit, times: u32, comes: Duration, sleep_costs: Duration) -> Lived {
        let mut lived = Lived::default();
        let mut last = Duration::ZERO;
        for _ in 0..times {
            let limit = habit.limit(lived.passed - last);
            last = lived.passed;
            let mut idle = comes;
            if limit >= comes {
                lived.looks += 1;
                habit.looked(true, comes);
            } else {
                idle += sleep_costs;
                if limit.is_zero() {
                    habit.slept(idle);
                } else {
                    lived.looks += 1;
                    lived.burnt += limit;
                    habit.looked(false, limit);
                }
            }
            lived.idle += idle;
            lived.passed += idle + micros(5);
        }
        lived
    }

    #[test]
    fn where_sleeps_are_dear_nearly_all_idle_times_are_looked_through() {
        let mut habit = Habit::new();
        live(&mut habit, 100, micros(25), micros(40));
        let lived = live(&mut habit, 10_000, micros(25), micros(40));
        assert!(lived.looks > 9_900, "{lived:?}");
        assert!(lived.idle < micros(26) * 10_000, "{lived:?}");
    }

    #[test]
    fn where_sleeps_are_cheap_they_are_slept_through() {
        let mut habit = Habit::new();
        live(&mut habit, 1_000, micros(25), micros(5));
        let lived = live(&mut habit, 10_000, micros(25), micros(5));
        assert!(lived.looks < 50, "{lived:?}");
    }

    #[test]
    fn a_slow_disk_and_an_idle_guest_cost_next_to_nothing() {
        let mut habit = Habit::new();
        live(&mut habit, 100, micros(20), micros(40));
        for comes in [5_000, 300, 100_000] {
            live(&mut habit, 100, micros(comes), micros(40));
            let lived = live(&mut habit, 20_000, micros(comes), micros(40));
            assert!(lived.looks <= 40, "{comes}: {lived:?}");
            assert!(lived.burnt * 1000 < lived.passed, "{comes}: {lived:?}");
        }
    }

    #[test]
    fn it_comes_back_to_looking_when_that_pays_again() {
        let mut habit = Habit::new();
        live(&mut habit, 10_000, micros(5_000), micros(40));
        let lived = live(&mut habit, 2 * RARE_TRIAL, micros(20), micros(40));
        assert!(lived.looks > RARE_TRIAL / 2, "{lived:?}");
    }

    /// Half of the work comes soon and half never does while looked for.
    #[test]
    fn looks_in_vain_have_a_budget() {
        let mut habit = Habit::new();
        let (mut burnt, mut won, mut passed) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        for turn in 0..20_000 {
            let limit = habit.limit(micros(70));
            passed += micros(70);
            habit.slept(micros(90));
            if limit.is_zero() {
                continue;
            }
            let came = turn % 3 != 0;
            let took = if came { micros(3) } else { limit };
            *if came { &mut won } else { &mut burnt } += took;
            habit.looked(came, took);
        }
        assert!(burnt > Duration::ZERO);
        assert!(
            burnt <= passed / PART + won * EARNED + PURSE,
            "{burnt:?} {won:?}"
        );
    }
}
