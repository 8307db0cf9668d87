//! What is told of a path to whoever observes it.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use super::situation::Situation;

/// Something that has happened to a [`DiskPath`](super::DiskPath).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change<'a> {
    /// Requests go another way, or the same for another reason.
    Situation(&'a Situation),
    /// The lease is held, and the path is used from now on.
    LeaseTaken,
    /// Somebody else wants the file: the path is being left.
    LeaseLost,
    /// A sync of the file has failed: writes that had ended may be lost, of which the kernel tells nobody else who
    /// has this open file.
    SyncFailed,
    /// The guard has not looked at the lease for so long. Workers look too.
    GuardLate(Duration),
    /// The guard looks again.
    GuardOnTime,
}

type Tell = dyn Fn(Change<'_>) + Send + Sync;

/// Who is told.
#[derive(Default)]
pub(super) struct Observer(OnceLock<Box<Tell>>);

impl Observer {
    /// Sets it once; later ones are not used.
    pub(super) fn set(&self, observer: impl Fn(Change<'_>) + Send + Sync + 'static) {
        if self.0.set(Box::new(observer)).is_err() {
            log::warn!("the disk path is observed already");
        }
    }

    pub(super) fn tell(&self, change: Change<'_>) {
        if let Some(observer) = self.0.get() {
            observer(change);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observer")
            .field(&self.0.get().is_some())
            .finish()
    }
}
