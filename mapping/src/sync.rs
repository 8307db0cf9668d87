//! The atomics and locks of this crate, so that loom can take their place in models (`--cfg loom`), and
//! locks that a thread sanitizer understands in the stress test (`--cfg tsan`).

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(any(loom, tsan)))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(tsan)]
pub(crate) use visible::{Condvar, Mutex, MutexGuard};

#[cfg(tsan)]
mod visible;

use std::sync::PoisonError;

/// Takes a lock whose data stays consistent even where a holder panicked: every writer finishes its
/// allocations before it changes anything.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
