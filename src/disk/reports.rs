//! What happens to the way of requests, as operators are told.

use std::sync::Arc;

use mapping::path::Change;

use super::Disk;
use crate::host::feed::Feed;
use crate::protocol::events::Event;
use crate::protocol::words::Way;

impl Disk {
    /// Has what happens to the way of requests told there, and FLUSH fail where the
    /// path finds that writes are lost. To be called once.
    pub(crate) fn report_to(&self, feed: Feed<Event>) {
        if let Ok(path) = self.disk_path() {
            let shared = Arc::clone(&self.shared);
            path.observe(move |change| {
                if change == Change::SyncFailed {
                    shared.lose_writes();
                }
                report(&feed, change);
            });
        }
    }
}

/// Tells a change of the disk path.
fn report(feed: &Feed<Event>, change: Change<'_>) {
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
