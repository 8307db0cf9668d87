//! Locks whose every step a thread sanitizer sees (`--cfg tsan`). The standard library comes compiled
//! without its instrumentation: of its locks only what is inlined here is seen, and that leaves out the
//! paths of a lock that is contended and of a condition that is waited for.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::time::{Duration, Instant};

/// Between two looks at what is waited for.
const NAP: Duration = Duration::from_micros(20);

#[derive(Debug)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    inner: std::sync::MutexGuard<'a, T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(std::sync::Mutex::new(value))
    }

    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        let guard = |inner| MutexGuard { mutex: self, inner };
        match self.0.try_lock() {
            Ok(inner) => Ok(guard(inner)),
            Err(TryLockError::Poisoned(poisoned)) => {
                Err(PoisonError::new(guard(poisoned.into_inner())).into())
            }
            Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
        }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        loop {
            match self.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
                Err(TryLockError::WouldBlock) => std::thread::sleep(NAP),
            }
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// Counts its notifications.
pub(crate) struct Condvar(AtomicU64);

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar(AtomicU64::new(0))
    }

    pub(crate) fn notify_all(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Others may wake too, as they always may.
    pub(crate) fn notify_one(&self) {
        self.notify_all();
    }

    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.wait_until(guard, None)
    }

    /// With whether the time was used up.
    pub(crate) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        let until = Instant::now() + timeout;
        let late = || Instant::now() >= until;
        match self.wait_until(guard, Some(until)) {
            Ok(guard) => Ok((guard, late())),
            Err(poisoned) => Err(PoisonError::new((poisoned.into_inner(), late()))),
        }
    }

    fn wait_until<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        until: Option<Instant>,
    ) -> LockResult<MutexGuard<'a, T>> {
        let (mutex, before) = (guard.mutex, self.0.load(Ordering::Acquire));
        drop(guard);
        while self.0.load(Ordering::Acquire) == before && until.is_none_or(|at| Instant::now() < at)
        {
            std::thread::sleep(NAP);
        }
        mutex.lock()
    }
}
