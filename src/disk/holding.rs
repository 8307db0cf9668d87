//! What becomes of requests that the host fails.

use std::sync::Arc;

use vhost_backend::HeldRequests;

use super::Disk;
use crate::options::config::OnError;

impl Disk {
    /// Which errors are waited out from now on; `None`: as before. What is held
    /// and would be told is tried once more, and told if it fails again.
    pub(crate) fn hold_on(&self, no_room: Option<OnError>, io_error: Option<OnError>) {
        let policy = &self.shared.policy;
        if let Some(what) = no_room {
            policy.set_no_room(what);
        }
        if let Some(what) = io_error {
            policy.set_io_errors(what);
        }
        if [no_room, io_error].contains(&Some(OnError::Report)) {
            self.held.retry();
        }
    }

    /// What is done where there is no room, and where the disk fails.
    pub(crate) fn on_errors(&self) -> (OnError, OnError) {
        self.shared.policy.now()
    }

    /// The requests that are held.
    pub(crate) fn held(&self) -> &Arc<HeldRequests> {
        &self.held
    }
}
