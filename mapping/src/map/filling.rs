//! Windows that are being filled, and when a window that somebody wants is worth loading.
//!
//! A first write changes the extents that were loaded. Where one comes after the other, what was loaded is spoilt as
//! soon as it is there, and each time costs a call of FIEMAP, which waits for the file system's locks, and copying the
//! window. So the fourth first write in a row takes the whole window away (in a row: what the window has of data was
//! hardly used in between), and it stays away as long as they go on: all goes by the file there, which is always right.
//! The filler looks at it now and then, and only at a bit: whether a hold has ended there since its last look. If none
//! has, the window is loaded when somebody wants it after that. If one has each time, it is loaded anyway, ever more
//! rarely: those writes may not be first ones any more.
//!
//! Nothing here decides whether an extent is believed, only when extents are asked for and thrown away. Whoever is
//! wrong here is slow.

use std::ops::Range;
use std::time::Duration;

use crate::map::shared::Shared;
use crate::map::slab::{SPARED, SlabRef, USED};
use crate::map::table::{CALM, LEVEL, LEVEL_SHIFT, PINNED, SPOILT, Table, WANTED};
use crate::sync::{AtomicU8, Ordering};

/// The level at which a window is being filled: so many first writes came in a row. It rises each time that the window
/// was loaded and is still being filled.
const FILLING: u8 = 4;
/// The highest level.
const MOST: u8 = LEVEL >> LEVEL_SHIFT;
/// Milliseconds of a step of [`Shared::stamp`].
const STEP: u128 = 16;
/// First writes so many waits apart are not in a row.
const APART: u32 = 16;
/// A window that is changed all the time is read again anyway after so many times [`Config::quiet`].
///
/// [`Config::quiet`]: crate::Config::quiet
const ANYWAY: u32 = 16;
/// One that is being filled is after so many waits of its level: that may have ended, and what is written by the file
/// now have been there before.
const ANYWAY_FILLING: u32 = 2;

/// Whether a wished window is worth loading at this moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Now,
    /// As `Now`, although it is being filled: to see whether it still is.
    Try,
    Later(Duration),
    /// Not worth it: loaded already, or loading is disabled, or the window is not in the file any more, or nobody may
    /// want it any more. Whoever does says so again.
    Never,
}

/// What a hold has done to a loaded window.
pub(crate) struct Spoilt {
    /// The flags and the stamp of what is left of it; without them all of it goes.
    pub(crate) keep: Option<(u8, u16)>,
}

/// What the filler knows of a wish that it has put off before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PutOff {
    /// For how long.
    pub(crate) time: Duration,
    /// It may load a window that is being filled.
    pub(crate) may_try: bool,
}

fn level(state: &AtomicU8) -> u8 {
    (state.load(Ordering::Relaxed) & LEVEL) >> LEVEL_SHIFT
}

/// To be called under the writers' lock.
fn set_level(state: &AtomicU8, level: u8) {
    state.fetch_and(!LEVEL, Ordering::Relaxed);
    state.fetch_or(level.min(MOST) << LEVEL_SHIFT, Ordering::Relaxed);
}

/// One that is pinned never is.
fn is_being_filled(state: &AtomicU8) -> bool {
    level(state) >= FILLING && state.load(Ordering::Relaxed) & PINNED == 0
}

/// The window is being filled, and was not seen quiet since.
pub(crate) fn is_left_alone(state: &AtomicU8) -> bool {
    is_being_filled(state) && state.load(Ordering::Relaxed) & CALM == 0
}

impl Shared {
    /// The time in a slab's head: steps of 16 ms, which come round every 17 minutes.
    pub(crate) fn stamp(&self) -> u16 {
        let steps = self.began.elapsed().as_millis() / STEP;
        u16::try_from(steps & u128::from(u16::MAX)).unwrap_or(0)
    }

    /// How long a window of this level is left alone: of 10 ms become 1.28 s.
    fn wait(&self, level: u8) -> Duration {
        match level.checked_sub(FILLING) {
            Some(above) => self.config.quiet * (2 << (2 * above)),
            None => self.config.quiet,
        }
    }

    /// What a hold of `inside` does to a loaded window of which it is a part. To be called under the writers' lock.
    pub(crate) fn spoils(
        &self,
        table: &Table,
        window: usize,
        slab: SlabRef<'_>,
        inside: &Range<u32>,
    ) -> Spoilt {
        let state = table.state(window);
        let (flags, stamp) = (slab.flags().load(Ordering::Relaxed), slab.stamp());
        if state.load(Ordering::Relaxed) & PINNED != 0 || !slab.has_room(inside) {
            return Spoilt {
                keep: Some((flags, stamp)),
            };
        }
        let now = self.stamp();
        let since = u128::from(now.wrapping_sub(stamp)) * STEP;
        let level = level(state);
        let (new, spared) = if flags & USED == USED {
            // It is worth the trouble.
            (0, false)
        } else if !slab.has_data() {
            // There is nothing that it would be kept for.
            (FILLING.max(level + 1), false)
        } else if since > (self.wait(level) * APART).as_millis() {
            (1, false)
        } else if level >= FILLING && flags & SPARED == 0 {
            (level, true)
        } else {
            (level + 1, false)
        };
        set_level(state, new);
        let flags = flags & !(USED | SPARED) | if spared { SPARED } else { 0 };
        Spoilt {
            keep: (new < FILLING || spared).then_some((flags, now)),
        }
    }

    /// Whether a window that was wished for should be loaded now. What was put off is asked for again.
    pub(crate) fn ready(&self, window: usize, before: Option<PutOff>) -> Ready {
        let writer = self.lock();
        let table = self.table(&writer);
        if !writer.enabled || window >= table.len() {
            return Ready::Never;
        }
        let changing = self.with_slab(&table, window, |slab| slab.changing());
        if changing == Some(false) {
            return Ready::Never;
        }
        let quiet = self.config.quiet;
        let base = table.base(window);
        let whole = base..base + u64::from(table.window_end(window));
        let held = writer.holds.first_over(&whole);
        let covers = |held: &Range<u64>| held.start <= whole.start && held.end >= whole.end;
        if changing.is_none() && held.as_ref().is_some_and(covers) {
            return Ready::Later(quiet);
        }
        let state = table.state(window);
        let spoilt = state.fetch_and(!SPOILT, Ordering::Relaxed) & SPOILT != 0 || held.is_some();
        if !is_being_filled(state) {
            let long = before.is_some_and(|before| before.time >= quiet * ANYWAY);
            return if changing.is_none() || !spoilt || long {
                Ready::Now
            } else {
                Ready::Later(quiet)
            };
        }
        let level = level(state);
        let was_calm = state.load(Ordering::Relaxed) & CALM != 0;
        match before {
            _ if spoilt => {
                state.fetch_and(!CALM, Ordering::Relaxed);
                let wait = self.wait(level);
                match before {
                    Some(before) if before.may_try && before.time >= wait * ANYWAY_FILLING => {
                        Ready::Try
                    }
                    _ => Ready::Later(wait),
                }
            }
            None if was_calm => Ready::Later(quiet),
            None => Ready::Later(self.wait(level)),
            Some(_) if was_calm => Ready::Now,
            // Those who wanted it may have been the first writes themselves.
            Some(_) => {
                state.fetch_or(CALM, Ordering::Relaxed);
                set_level(state, FILLING.max(level - 1));
                Ready::Never
            }
        }
    }

    /// A wish has been dealt with: the next miss may make another.
    pub(crate) fn answered(&self, window: usize) {
        let writer = self.lock();
        let table = self.table(&writer);
        if window < table.len() {
            table.state(window).fetch_and(!WANTED, Ordering::AcqRel);
        }
    }
}
