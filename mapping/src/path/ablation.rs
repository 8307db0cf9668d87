//! What only tests may leave out of the disk path, to show what it is good for. The program says what; and only
//! where the feature `test-switches` is built in: without it every answer here is a constant.

use std::time::Duration;

/// Measures that are left out.
#[cfg(feature = "test-switches")]
#[derive(Clone, Copy, Debug)]
pub struct Ablation {
    /// Whether the measure of this name is.
    pub left_out: fn(&str) -> bool,
    /// No lease is taken, and the path is never left, whatever others do to the file.
    pub unguarded: bool,
    /// After how long a lost lease is asked for again, each time.
    pub lease_delay: Option<Duration>,
    /// What [`Config::quiet`](crate::Config::quiet) is.
    pub quiet: Option<Duration>,
}

#[cfg(feature = "test-switches")]
static CHOSEN: std::sync::OnceLock<Ablation> = std::sync::OnceLock::new();

/// Leaves these out of all that is opened from now on, if nothing was chosen before.
#[cfg(feature = "test-switches")]
#[doc(hidden)]
pub fn leave_out(ablation: Ablation) {
    let _first = CHOSEN.set(ablation);
}

#[cfg(feature = "test-switches")]
pub(crate) fn left_out(measure: &str) -> bool {
    CHOSEN
        .get()
        .is_some_and(|chosen| (chosen.left_out)(measure))
}

#[cfg(feature = "test-switches")]
pub(crate) fn unguarded() -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen.unguarded)
}

#[cfg(feature = "test-switches")]
pub(crate) fn lease_delay() -> Option<Duration> {
    CHOSEN.get().and_then(|chosen| chosen.lease_delay)
}

#[cfg(feature = "test-switches")]
pub(crate) fn quiet() -> Option<Duration> {
    CHOSEN.get().and_then(|chosen| chosen.quiet)
}

#[cfg(not(feature = "test-switches"))]
pub(crate) fn left_out(_measure: &str) -> bool {
    false
}

#[cfg(not(feature = "test-switches"))]
pub(crate) fn unguarded() -> bool {
    false
}

#[cfg(not(feature = "test-switches"))]
pub(crate) fn lease_delay() -> Option<Duration> {
    None
}

#[cfg(not(feature = "test-switches"))]
pub(crate) fn quiet() -> Option<Duration> {
    None
}

/// With the fault "deaf" the calling thread never goes on.
pub(crate) fn go_deaf() {
    while left_out("deaf") {
        std::thread::park();
    }
}
