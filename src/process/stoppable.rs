//! Work of a program that SIGINT and SIGTERM end in good order.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::process::signals::{Signals, Wish};

/// Whether somebody has asked to stop.
#[derive(Debug, Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on signals are noticed instead of ending the process. To be
    /// called before there is a second thread.
    ///
    /// # Errors
    /// The host gives no descriptor or thread.
    pub fn watch() -> io::Result<Self> {
        let stop = Self(Arc::new(AtomicBool::new(false)));
        let asked = Arc::clone(&stop.0);
        Signals::watch(Signals::block()?)?.on_wish(move |wish| {
            if wish == Wish::Stop {
                asked.store(true, Ordering::Relaxed);
            }
        });
        Ok(stop)
    }

    /// Whether it was asked for.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
