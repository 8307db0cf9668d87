//! Where a test lets the process die: between two stores that a restart may
//! find done or not done.

/// A store that a successor may see was just made. Nothing outside tests.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn point() {}

#[cfg(test)]
pub(crate) use armed::{point, run};

#[cfg(test)]
mod armed {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    thread_local! {
        /// Points that are still survived; `None`: all.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    struct Crash;

    /// Ends the thread's [`run`] if it is time.
    pub(crate) fn point() {
        match LEFT.get() {
            None => {}
            Some(0) => resume_unwind(Box::new(Crash)),
            Some(left) => LEFT.set(Some(left - 1)),
        }
    }

    /// Runs `life` until it has passed `points` points; returns whether it
    /// came to its end before. Whatever it owns is dropped.
    pub(crate) fn run(points: usize, life: impl FnOnce()) -> bool {
        LEFT.set(Some(points));
        let ended = catch_unwind(AssertUnwindSafe(life));
        LEFT.set(None);
        match ended {
            Ok(()) => true,
            Err(cause) if cause.is::<Crash>() => false,
            Err(cause) => resume_unwind(cause),
        }
    }
}
