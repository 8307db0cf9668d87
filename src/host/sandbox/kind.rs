//! The kinds of threads that there are.

/// Kinds of threads, each with what it may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The session, once everything has been started.
    Session,
    /// Serves rings.
    Worker,
    /// Takes the lease and gives it back.
    Guard,
    /// Looks at what has no event.
    Lookout,
    /// Receives the lease's signals.
    Lease,
    /// Loads the map.
    Filler,
    /// Registers guest memory.
    Pinner,
    /// Writes the log.
    Log,
    /// Reads signals.
    Signals,
    /// Answers operators, and starts threads that do.
    Control,
    /// Tells metrics.
    Metrics,
    /// Watches the others, and tells the service manager.
    Watch,
    /// Becomes the next binary, and removes what the process has made: it may
    /// do what a start may, and reads nothing of what others send.
    Keeper,
    /// Serves a client of a snapshot, and waits for more of them.
    Export,
}

impl Kind {
    /// It looks at the system by opening files.
    pub(super) fn looks(self) -> bool {
        match self {
            Self::Session
            | Self::Guard
            | Self::Lookout
            | Self::Control
            | Self::Metrics
            | Self::Keeper => true,
            Self::Worker
            | Self::Lease
            | Self::Filler
            | Self::Pinner
            | Self::Log
            | Self::Signals
            | Self::Watch
            | Self::Export => false,
        }
    }

    /// Each of them.
    pub(super) const ALL: [Kind; 14] = [
        Kind::Session,
        Kind::Worker,
        Kind::Guard,
        Kind::Lookout,
        Kind::Lease,
        Kind::Filler,
        Kind::Pinner,
        Kind::Log,
        Kind::Signals,
        Kind::Control,
        Kind::Metrics,
        Kind::Watch,
        Kind::Keeper,
        Kind::Export,
    ];
}
