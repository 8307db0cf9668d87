//! Tells how far something is, and asks whether it is to go on.

use std::ops::ControlFlow;

/// Told how many bytes of how many are done; may ask to stop.
pub type Watch<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;
