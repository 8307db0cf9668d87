//! What is told of a disk while it is served.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::words::{Named, Way};

/// The notification that tells an event.
pub const EVENT: &str = "event";

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A front-end has connected, and is served.
    FrontEndCame {
        /// The process that has made the connection; null if the kernel does
        /// not tell.
        pid: Option<u32>,
        /// Its user.
        uid: Option<u32>,
    },
    /// The front-end has gone; what it had asked for has ended.
    FrontEndGone {},
    /// Requests go another way, or the same way for another reason.
    PathChanged {
        /// Where they go now.
        path: Named<Way>,
        /// Why: one sentence.
        reason: String,
    },
    /// The lease on the image is held, and the disk path used.
    LeaseTaken {},
    /// Somebody else wants the image. The disk path is being left, which the
    /// next change of the path says.
    LeaseLost {},
    /// The disk has another size.
    Resized {
        /// The capacity that the guest sees, in bytes.
        size_bytes: u64,
    },
    /// The disk is held still: nothing is fetched, and nothing is in flight.
    Quiesced {},
    /// It goes on.
    Resumed {
        /// Its time was over, and nobody has resumed it.
        by_itself: bool,
    },
    /// The moment of a snapshot is over; it is being made.
    SnapshotBegun {
        /// Its name.
        name: String,
    },
    /// A snapshot was taken: it is whole and stable.
    SnapshotTaken {
        /// Its name.
        name: String,
    },
    /// There is no snapshot.
    SnapshotFailed {
        /// The name that it would have.
        name: String,
        /// Why: one sentence.
        reason: String,
    },
    /// Blocks that the image shared are its own, or that was ended early.
    UnshareEnded {
        /// Bytes that were copied.
        unshared_bytes: u64,
        /// Why it has ended early: one sentence; null if it has not.
        reason: Option<String>,
    },
    /// The thread that looks at the lease is late; workers look themselves.
    GuardLate {
        /// For how long it has not looked, in seconds.
        seconds: u64,
    },
    /// It looks again.
    GuardOnTime {},
    /// The host fails requests, which are held and tried again.
    RequestsHeld {
        /// What it says: for people.
        reason: String,
    },
    /// No request is held any more.
    RequestsReleased {
        /// For how long some were, in seconds.
        seconds: u64,
    },
    /// The image's file system has little room, and less than the guest may
    /// ask for.
    RoomLow {
        /// Bytes that are free.
        free_bytes: u64,
        /// Bytes of the image that have no blocks yet.
        unallocated_bytes: u64,
    },
    /// It has enough again.
    RoomEnough {
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// A thread stands still.
    ThreadStands {
        /// Its name.
        thread: String,
        /// For how long by now, in seconds.
        seconds: u64,
        /// What it does: for people.
        doing: String,
    },
    /// A thread that stood still goes on, or has ended.
    ThreadGoesOn {
        /// Its name.
        thread: String,
        /// For how long it stood, in seconds.
        seconds: u64,
    },
}

/// The kinds of events.
// The lines of the values are help texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A front-end is served
    FrontEndCame,
    /// It has gone
    FrontEndGone,
    /// Requests go another way, or for another reason
    PathChanged,
    /// The lease on the image is held
    LeaseTaken,
    /// Somebody else wants the image
    LeaseLost,
    /// The disk has another size
    Resized,
    /// The disk is held still
    Quiesced,
    /// It goes on
    Resumed,
    /// A snapshot is being made
    SnapshotBegun,
    /// A snapshot was taken
    SnapshotTaken,
    /// A snapshot was not taken, or given up
    SnapshotFailed,
    /// Blocks that were shared are the image's own, or that ended early
    UnshareEnded,
    /// The thread that looks at the lease is late
    GuardLate,
    /// It looks again
    GuardOnTime,
    /// Requests are held, as the host fails them
    RequestsHeld,
    /// None is any more
    RequestsReleased,
    /// The image's file system has little room
    RoomLow,
    /// It has enough again
    RoomEnough,
    /// A thread stands still
    ThreadStands,
    /// It goes on
    ThreadGoesOn,
}

impl Event {
    /// Its kind.
    pub fn kind(&self) -> EventKind {
        match self {
            Event::FrontEndCame { .. } => EventKind::FrontEndCame,
            Event::FrontEndGone {} => EventKind::FrontEndGone,
            Event::PathChanged { .. } => EventKind::PathChanged,
            Event::LeaseTaken {} => EventKind::LeaseTaken,
            Event::LeaseLost {} => EventKind::LeaseLost,
            Event::Resized { .. } => EventKind::Resized,
            Event::Quiesced {} => EventKind::Quiesced,
            Event::Resumed { .. } => EventKind::Resumed,
            Event::SnapshotBegun { .. } => EventKind::SnapshotBegun,
            Event::SnapshotTaken { .. } => EventKind::SnapshotTaken,
            Event::SnapshotFailed { .. } => EventKind::SnapshotFailed,
            Event::UnshareEnded { .. } => EventKind::UnshareEnded,
            Event::GuardLate { .. } => EventKind::GuardLate,
            Event::GuardOnTime {} => EventKind::GuardOnTime,
            Event::RequestsHeld { .. } => EventKind::RequestsHeld,
            Event::RequestsReleased { .. } => EventKind::RequestsReleased,
            Event::RoomLow { .. } => EventKind::RoomLow,
            Event::RoomEnough { .. } => EventKind::RoomEnough,
            Event::ThreadStands { .. } => EventKind::ThreadStands,
            Event::ThreadGoesOn { .. } => EventKind::ThreadGoesOn,
        }
    }
}

/// An event as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// One more than that of the event before, of whatever kind.
    pub sequence: u64,
    /// Events that were lost right before this one, as this client did not
    /// take them in time.
    pub lost: u64,
    /// When it happened, in milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The answer to `subscribe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Subscribed {
    /// The number that the next event will have.
    pub next_sequence: u64,
    /// The kinds that are told; null: all of them.
    pub kinds: Option<Vec<EventKind>>,
}

impl Subscribed {
    pub(crate) fn new(next_sequence: u64, kinds: Option<Vec<EventKind>>) -> Self {
        Self {
            next_sequence,
            kinds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_written_as_they_are_typed_and_told() {
        let event = Event::PathChanged {
            path: Way::File.into(),
            reason: "so".to_owned(),
        };
        let told = Told {
            sequence: 7,
            lost: 2,
            time_ms: 9,
            event,
        };
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(
            text,
            "{\"sequence\":7,\"lost\":2,\"time_ms\":9,\"kind\":\"path-changed\",\"path\":\"file\",\"reason\":\"so\"}"
        );
        assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told);
        for kind in EventKind::value_variants() {
            let typed = kind.to_possible_value().unwrap();
            assert_eq!(serde_json::to_value(kind).unwrap(), typed.get_name());
        }
        let kind = serde_json::to_value(told.event.kind()).unwrap();
        assert_eq!(kind, "path-changed");
    }
}
