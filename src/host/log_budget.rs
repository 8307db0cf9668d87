//! How much may be logged: what others do in a loop must not fill a disk.
//!
//! Each kind of lines may come in a burst, and then at a slow pace; the kinds
//! do not share, so that a flood of one does not hide another. What is too
//! much is counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{Level, Metadata};

/// Lines of one kind that may come at once.
const BURST: u64 = 500;
/// How much time one more line of it takes.
const PACE: Duration = Duration::from_secs(1);
/// And where somebody has asked for details.
const BURST_OF_DETAILS: u64 = 1000;
const PACE_OF_DETAILS: Duration = Duration::from_millis(200);

/// Who writes lines only when an operator asks for something; only these and
/// root can, so that nobody else can hide what they were told.
const OPERATORS: [&str; 4] = [
    "extentd::operator",
    "extentd::process::handover",
    "extentd::process::serve",
    "extentd::process::signals",
];

/// Kinds of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What an operator has asked for.
    Operator,
    Error,
    Warning,
    Info,
    /// What is shown only if somebody has asked for it.
    Detail,
}

impl Kind {
    pub(crate) fn of(metadata: &Metadata<'_>) -> Self {
        match metadata.level() {
            Level::Debug | Level::Trace => Self::Detail,
            _ if OPERATORS.contains(&metadata.target()) => Self::Operator,
            Level::Error => Self::Error,
            Level::Warn => Self::Warning,
            Level::Info => Self::Info,
        }
    }

    fn burst(self) -> u64 {
        match self {
            Self::Detail => BURST_OF_DETAILS,
            _ => BURST,
        }
    }

    fn pace(self) -> Duration {
        match self {
            Self::Detail => PACE_OF_DETAILS,
            _ => PACE,
        }
    }
}

/// What all kinds may still write.
#[derive(Debug)]
pub(crate) struct Budget {
    began: Instant,
    /// For each kind, in milliseconds since then: when all of its burst may
    /// come again.
    whole: [AtomicU64; 5],
    left_out: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            whole: Default::default(),
            left_out: AtomicU64::new(0),
        }
    }
}

impl Budget {
    /// Whether a line may be written. Never waits.
    pub(crate) fn admits(&self, kind: Kind) -> bool {
        self.admits_at(kind, self.began.elapsed())
    }

    fn admits_at(&self, kind: Kind, now: Duration) -> bool {
        let now = millis(now);
        let pace = millis(kind.pace());
        let most = pace.saturating_mul(kind.burst());
        let Some(whole) = self.whole.get(kind as usize) else {
            return true;
        };
        whole
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |whole| {
                let next = whole.max(now).saturating_add(pace);
                (next.saturating_sub(now) <= most).then_some(next)
            })
            .is_ok()
    }

    /// Counts a line that was not admitted; whether it is the first one that
    /// nobody has been told of.
    pub(crate) fn leave_out(&self) -> bool {
        self.left_out.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Whether lines were left out that nobody was told of.
    pub(crate) fn has_left_out(&self) -> bool {
        self.left_out.load(Ordering::Relaxed) > 0
    }

    /// How many those are, once.
    pub(crate) fn take_left_out(&self) -> u64 {
        self.left_out.swap(0, Ordering::Relaxed)
    }

    /// They could not be told.
    pub(crate) fn put_back(&self, count: u64) {
        self.left_out.fetch_add(count, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(budget: &Budget, kind: Kind, now: Duration) -> u64 {
        let admitted = (0..10_000).filter(|_| budget.admits_at(kind, now));
        admitted.count().try_into().unwrap()
    }

    #[test]
    fn a_flood_is_cut_to_a_burst_and_a_slow_pace() {
        let budget = Budget::default();
        let day = Duration::from_secs(24 * 3600);
        for kind in [Kind::Info, Kind::Warning, Kind::Error, Kind::Operator] {
            assert_eq!(burst(&budget, kind, Duration::ZERO), BURST);
            assert_eq!(burst(&budget, kind, PACE * 3), 3);
            assert_eq!(burst(&budget, kind, PACE * 3), 0);
            // All of a day is not saved up.
            assert_eq!(burst(&budget, kind, day), BURST);
        }
        // The longest lines, all day: this fills no disk soon.
        let lines = day.as_secs() / PACE.as_secs() + BURST;
        assert!(lines * 500 < 50 << 20);
    }

    #[test]
    fn a_flood_of_one_kind_hides_no_other() {
        let budget = Budget::default();
        for kind in [Kind::Info, Kind::Warning, Kind::Error, Kind::Detail] {
            burst(&budget, kind, Duration::ZERO);
        }
        assert!(budget.admits_at(Kind::Operator, Duration::ZERO));
    }

    #[test]
    fn what_was_left_out_is_told_once() {
        let budget = Budget::default();
        assert!(!budget.has_left_out());
        assert!(budget.leave_out());
        assert!(!budget.leave_out());
        assert_eq!(budget.take_left_out(), 2);
        assert!(!budget.has_left_out());
        budget.put_back(2);
        assert!(!budget.leave_out());
        assert_eq!(budget.take_left_out(), 3);
    }

    #[test]
    fn lines_are_told_apart_by_their_level_and_where_they_come_from() {
        let kind = |level, target| {
            let metadata = Metadata::builder().level(level).target(target).build();
            Kind::of(&metadata)
        };
        assert_eq!(kind(Level::Info, "extentd::operator"), Kind::Operator);
        assert_eq!(kind(Level::Debug, "extentd::operator"), Kind::Detail);
        let client = "extentd::operator::control";
        assert_eq!(kind(Level::Warn, client), Kind::Warning);
        assert_eq!(kind(Level::Info, "vhost_backend::session"), Kind::Info);
        // As the macros have it in those files.
        let here = module_path!();
        assert!(
            OPERATORS.iter().all(|one| one.starts_with("extentd::"))
                && here.starts_with("extentd::")
        );
    }
}
