//! What happens to the way of requests, as operators are told.

use mapping::path::Change;

use crate::host::feed::Feed;
use crate::protocol::events::Event;
use crate::protocol::words::Way;

/// Tells a change of the disk path.
pub(super) fn report(feed: &Feed<Event>, change: Change<'_>) {
    feed.tell(match change {
        Change::Situation(now) => Event::PathChanged {
            path: if now.on_disk { Way::Disk } else { Way::File }.into(),
            reason: now.reason.clone(),
        },
        Change::LeaseTaken => Event::LeaseTaken {},
        Change::LeaseLost => Event::LeaseLost {},
        Change::GuardLate(time) => Event::GuardLate {
            seconds: time.as_secs(),
        },
        Change::GuardOnTime => Event::GuardOnTime {},
        // The library may tell of more than is known here.
        _ => return,
    });
}
