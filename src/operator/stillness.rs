//! Holding the disk still, for a copy of its image that is one moment's.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vhost_backend::{HoldError, Limits};

use crate::disk::Disk;
use crate::host::feed::Feed;
use crate::host::hardening::SMALL_STACK;
use crate::protocol::done::{Quiesced, Resumed};
use crate::protocol::events::Event;

/// Has the disk rest for `time`, and makes what was written stable if that is
/// wanted.
///
/// # Errors
/// It is held already, or requests in flight have not ended within `patience`,
/// or it cannot be made stable: then the disk goes on.
pub(super) fn quiesce(
    disk: &Disk,
    limits: &Arc<Limits>,
    feed: &Feed<Event>,
    time: Duration,
    patience: Duration,
    sync: bool,
) -> Result<Quiesced, String> {
    let begun = Instant::now();
    let hold = limits.hold(time, patience).map_err(|error| match error {
        HoldError::Held(_) => format!("quiesce: {error}: extentctl resume lets it go on"),
        error => format!("quiesce: {error}"),
    })?;
    let drained = begun.elapsed();
    if let Err(error) = watch(limits, feed) {
        limits.let_go_of(hold);
        return Err(format!(
            "quiesce: there is no thread to watch over it: {error}"
        ));
    }
    feed.tell(Event::Quiesced {});
    if sync && let Err(error) = disk.sync() {
        limits.let_go_of(hold);
        return Err(format!(
            "quiesce: what was written cannot be made stable: {error}; the disk goes on"
        ));
    }
    let Some(left) = limits.held() else {
        return Err("quiesce: its time was over before all was stable; the disk goes on: give it more (--for)".to_owned());
    };
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Quiesced {
        hold,
        drained_ms: ms(drained),
        left_ms: ms(left),
        synced: sync,
    })
}

/// Lets the disk go on, if it is held by this hold or, where none is given, at
/// all.
///
/// # Errors
/// It is not held, or by another one.
pub(super) fn resume(limits: &Limits, hold: Option<u64>) -> Result<Resumed, String> {
    let was_held = match hold {
        Some(hold) => limits.let_go_of(hold),
        None => limits.let_go(),
    };
    if was_held {
        Ok(Resumed {})
    } else if let (Some(hold), Some(_)) = (hold, limits.held()) {
        Err(format!(
            "resume: hold {hold} has ended, and the disk is held by somebody else: it stays so"
        ))
    } else {
        Err(
            "resume: the disk is not held: it has gone on by itself, or somebody else has let it"
                .to_owned(),
        )
    }
}

/// Tells when the disk goes on.
fn watch(limits: &Arc<Limits>, feed: &Feed<Event>) -> std::io::Result<()> {
    let (limits, feed) = (Arc::clone(limits), feed.clone());
    let held = limits.held().unwrap_or_default();
    let wait = move || {
        let by_itself = limits.wait_until_it_goes_on();
        if by_itself {
            log::warn!(
                "the disk goes on by itself: it was held for {} ms, and nobody has resumed it",
                held.as_millis()
            );
        }
        feed.tell(Event::Resumed { by_itself });
    };
    thread::Builder::new()
        .name("quiesce".to_owned())
        .stack_size(SMALL_STACK)
        .spawn(wait)?;
    Ok(())
}
