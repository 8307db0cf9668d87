//! Keeping the end of the image as it is while its length changes. The file
//! system then frees blocks, and writes zeros to the rest of the last one
//! through the page cache: no raw I/O may be in flight there, nor any planned.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::Hold;

use super::core::Core;
use crate::path::ablation;

/// How long requests in flight may keep a change of the length waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// The end of the image, taken away from the map until this is dropped.
#[derive(Debug)]
#[must_use = "what is held may be loaded again when this is dropped"]
pub struct HeldEnd(Vec<Hold>);

impl Core {
    /// Takes the blocks from the one that byte `from` lies in to the end of
    /// the map away from the map, once nobody changes them, and waits until
    /// all raw I/O has ended that was planned before, and all changes by the
    /// file that hold nothing.
    ///
    /// # Errors
    /// Requests in flight do not end.
    pub(super) fn hold_end(&self, from: u64) -> io::Result<HeldEnd> {
        let until = Instant::now() + PATIENCE;
        self.length.fetch_min(from, Ordering::SeqCst);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "requests in flight do not end");
        let mut held = HeldEnd(Vec::new());
        if !ablation::left_out("resizehold") {
            let (grain, size) = (self.map.config().grain, self.map.size());
            let block = from - from % grain;
            // The block that is cut apart from what follows: of that the guest
            // asks for nothing more.
            let parts = [block..(block + grain).min(size), block + grain..size];
            for part in parts.into_iter().filter(|part| part.start < part.end) {
                let hold = loop {
                    match self.map.hold(part.clone()) {
                        Ok(hold) => break hold,
                        Err(_) if Instant::now() < until => {
                            std::thread::sleep(Duration::from_micros(100));
                        }
                        Err(_) => return Err(late()),
                    }
                };
                held.0.push(hold);
            }
        }
        let fence = self.map.barrier();
        while !fence.wait(Duration::from_millis(200)) {
            if Instant::now() > until {
                return Err(late());
            }
        }
        Ok(held)
    }

    /// The image has `bytes` now.
    ///
    /// # Errors
    /// The map cannot have that size.
    pub(super) fn set_length(&self, bytes: u64) -> io::Result<()> {
        // Whatever raw I/O was in flight where it was cut, `hold_end` has
        // waited for.
        self.length.store(bytes, Ordering::SeqCst);
        let _cut = self.map.resize(bytes).map_err(io::Error::other)?;
        Ok(())
    }
}
