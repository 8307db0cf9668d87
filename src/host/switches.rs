//! What only tests may do to this process: leave a measure out, to show what
//! it is good for, or have a fault. By environment variables, and only where
//! the feature `test-switches` is built in; without it every answer here is a
//! constant, so that no build by accident does raw I/O without a lease.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Whether any of this can be had.
const BUILT_IN: bool = cfg!(feature = "test-switches");

static NO_FILE_SYNC: LazyLock<bool> = LazyLock::new(|| is_set("EXTENTD_TEST_NO_FILE_SYNC"));
static PANIC: LazyLock<Option<u64>> = LazyLock::new(|| number("EXTENTD_TEST_PANIC"));

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// `EXTENTD_TEST_WITHOUT` names the measures that are left out.
pub(crate) fn left_out(measure: &str) -> bool {
    BUILT_IN
        && std::env::var("EXTENTD_TEST_WITHOUT")
            .is_ok_and(|all| all.split(',').any(|one| one == measure))
}

/// `EXTENTD_TEST_UNREGISTERED`: the image is no registered file of the rings,
/// so that a lease on it may end before their raw I/O has.
pub(crate) fn unregistered() -> bool {
    BUILT_IN && is_set("EXTENTD_TEST_UNREGISTERED")
}

/// `EXTENTD_TEST_NO_FILE_SYNC`: a FLUSH leaves the file system's records
/// alone.
pub(crate) fn no_file_sync() -> bool {
    BUILT_IN && *NO_FILE_SYNC
}

/// `EXTENTD_TEST_CLONE_REST`: for how many milliseconds whoever clones the image
/// rests after each piece that nobody has demanded.
pub(crate) fn clone_rest() -> Duration {
    if !BUILT_IN {
        return Duration::ZERO;
    }
    Duration::from_millis(number("EXTENTD_TEST_CLONE_REST").unwrap_or(0))
}

/// `EXTENTD_TEST_PANIC`: at which request of the process, counted from 1, the
/// worker panics. To be called for each.
#[inline]
pub(crate) fn count_request() {
    static REQUESTS: AtomicU64 = AtomicU64::new(0);
    if BUILT_IN && let Some(wanted) = *PANIC {
        let request = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        assert!(
            request != wanted,
            "EXTENTD_TEST_PANIC wants a panic at request {wanted}"
        );
    }
}

/// `EXTENTD_TEST_TRIES`: each thread tries what the sandbox denies it, and
/// says what came of it.
#[cfg(feature = "test-switches")]
pub(crate) fn tries() -> bool {
    is_set("EXTENTD_TEST_TRIES")
}

/// Passes on what is for other crates: the measures of the disk path that are
/// left out, and these.
/// - `EXTENTD_TEST_UNGUARDED`: no lease is taken, and the path is never left,
///   whatever others do to the image.
/// - `EXTENTD_TEST_LEASE_DELAY`: after how many milliseconds a lost lease is
///   asked for again, each time.
/// - `EXTENTD_TEST_QUIET`: for how many milliseconds no first write may have
///   ended in a window before it is loaded.
/// - `EXTENTD_TEST_NO_DIRTY`: guest pages stay unmarked while a guest
///   migrates.
pub(crate) fn pass_on() {
    #[cfg(feature = "test-switches")]
    {
        mapping::path::leave_out(mapping::path::Ablation {
            left_out,
            unguarded: is_set("EXTENTD_TEST_UNGUARDED"),
            lease_delay: number("EXTENTD_TEST_LEASE_DELAY").map(Duration::from_millis),
            quiet: number("EXTENTD_TEST_QUIET").map(Duration::from_millis),
        });
        if is_set("EXTENTD_TEST_NO_DIRTY") {
            vhost_backend::leave_pages_unmarked();
        }
    }
}
