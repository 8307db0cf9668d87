//! One limit: what may be used now, and from when on more.
//!
//! Time is what is shared. Whoever wants to go on takes a *grant*: some
//! milliseconds of the limit's time, behind all that was taken before, and
//! waits until that time begins. So there is nothing to refill, whoever takes
//! gets his turn in the order of asking, and what somebody took who was killed
//! passes by itself. A grant is kept as tokens by the process that took it;
//! requests use them, as far as they turn out to cost more than there is on
//! credit, which the next grants pay back.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Most per second: more than any disk does, and few enough to count with.
pub(crate) const MOST: u64 = 1 << 40;

/// What a limit may always save up, in milliseconds of it. Whoever comes late,
/// as others had the CPU, takes what was missed so long.
pub const LEAST_BURST_MS: u64 = 40;

const SECOND: u64 = 1_000_000_000;
/// A grant is what comes in this time, and one token at least.
const GRANT: u64 = SECOND / 500;
/// Grants that others of a group may have taken before; more is not believed.
const MOST_AHEAD: u64 = 64;
/// Others may take grants this often while one is taken, before it is taken
/// without a word to them.
const ATTEMPTS: usize = 64;
/// Grants that one look takes at most: others may see to it that each of them
/// has begun already.
const ROUNDS: usize = 256;
/// No grant was asked for.
const NONE: u64 = 0;

/// The time of this many tokens in nanoseconds.
fn time_of(tokens: u64, rate: u64) -> u64 {
    let time = u128::from(tokens) * u128::from(SECOND) / u128::from(rate.max(1));
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// The tokens of a grant.
pub(crate) fn grant(rate: u64) -> u64 {
    (rate / (SECOND / GRANT)).max(1)
}

/// Whose the time is of which grants are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owner<'a> {
    /// This process alone: what is in there is true.
    Alone(&'a AtomicU64),
    /// Others as well, who may write there what they like.
    Group(&'a AtomicU64),
}

/// A limit as one process uses it.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// Tokens per second; 0: no limit.
    rate: AtomicU64,
    /// Tokens that are saved up at most.
    burst: AtomicU64,
    /// Of grants that have begun; below 0, what is to be paid back.
    tokens: AtomicI64,
    /// When the next grant begins.
    due: AtomicU64,
}

impl Bucket {
    /// Changes the limit; whether it is another one. What is owed is
    /// forgotten, and the next grant begins as soon as with the new one.
    pub(crate) fn set(&self, rate: u64, burst: u64, now: u64) -> bool {
        let rate = rate.min(MOST);
        let before = (
            self.rate.swap(rate, Ordering::AcqRel),
            self.burst.swap(burst, Ordering::AcqRel),
        );
        if before == (rate, burst) {
            return false;
        }
        if rate > 0 {
            let soon = now.saturating_add(time_of(grant(rate), rate));
            // NONE stays.
            self.due.fetch_min(soon, Ordering::AcqRel);
        }
        self.tokens.store(0, Ordering::Release);
        true
    }

    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }

    pub(crate) fn burst(&self) -> u64 {
        self.burst.load(Ordering::Relaxed)
    }

    /// Whether something may be used at `now`.
    ///
    /// # Errors
    /// From when on.
    pub(crate) fn open(&self, owner: Owner<'_>, now: u64) -> Result<(), u64> {
        let rate = self.rate();
        if rate == 0 {
            return Ok(());
        }
        for _ in 0..ROUNDS {
            let tokens = self.tokens.load(Ordering::Acquire);
            if tokens > 0 {
                return Ok(());
            }
            let due = self.due.load(Ordering::Acquire);
            if due == NONE {
                self.take_grant(owner, rate, tokens.unsigned_abs(), now);
            } else if due > now {
                return Err(due);
            } else if swap(&self.due, due, NONE) {
                let tokens = i64::try_from(grant(rate)).unwrap_or(i64::MAX);
                self.tokens.fetch_add(tokens, Ordering::AcqRel);
            }
        }
        Err(now.saturating_add(GRANT))
    }

    /// Takes the next grant, unless another thread of this process does.
    fn take_grant(&self, owner: Owner<'_>, rate: u64, owed: u64, now: u64) {
        let each = time_of(grant(rate), rate);
        let saved = time_of(self.burst(), rate).max(LEAST_BURST_MS * (SECOND / 1000));
        let first = now.saturating_sub(saved);
        // Members of a group pay in grants of one size, or who owes more would
        // have more.
        let (until, last, owed) = match owner {
            Owner::Alone(until) => (until, u64::MAX, owed),
            Owner::Group(until) => {
                let ahead = each.saturating_mul(MOST_AHEAD).saturating_add(SECOND);
                (until, now.saturating_add(ahead), 0)
            }
        };
        let paid = time_of(owed, rate);
        let all = paid.saturating_add(each);
        let mut begin = now;
        let told = (0..ATTEMPTS).any(|_| {
            let seen = until.load(Ordering::Acquire);
            begin = seen.max(first).min(last);
            swap(until, seen, begin.saturating_add(all))
        });
        let due = begin.saturating_add(paid).max(NONE + 1);
        if swap(&self.due, NONE, due) {
            let owed = i64::try_from(owed).unwrap_or(i64::MAX);
            self.tokens.fetch_add(owed, Ordering::AcqRel);
        } else if told {
            until.fetch_sub(all, Ordering::AcqRel);
        }
    }

    /// Uses so many, whatever there is.
    pub(crate) fn charge(&self, tokens: u64) {
        if self.rate() > 0 {
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            self.tokens.fetch_sub(tokens, Ordering::AcqRel);
        }
    }
}

fn swap(place: &AtomicU64, from: u64, to: u64) -> bool {
    place
        .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

#[cfg(test)]
mod tests;
