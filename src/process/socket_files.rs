//! The socket files that a process has made, until its end.

use crate::host::keeper::Keeper;
use crate::host::socket::SocketFile;

/// Removed when dropped, by who still may.
#[derive(Debug)]
pub(crate) struct SocketFiles {
    keeper: Keeper,
    control: Option<SocketFile>,
    metrics: Option<SocketFile>,
    socket: Option<SocketFile>,
}

impl SocketFiles {
    /// None yet.
    pub(crate) fn new(keeper: &Keeper) -> Self {
        Self {
            keeper: keeper.clone(),
            control: None,
            metrics: None,
            socket: None,
        }
    }

    /// Of `--control-path`.
    pub(crate) fn control(&mut self, file: SocketFile) {
        self.control = Some(file);
    }

    /// Of `--metrics-listen`, if there is one.
    pub(crate) fn metrics(&mut self, file: Option<SocketFile>) {
        self.metrics = file;
    }

    /// Of `--socket-path`, if there is one.
    pub(crate) fn socket(&mut self, file: Option<SocketFile>) {
        self.socket = file;
    }

    /// Leaves the front-end's to who listens there next; the others are removed.
    pub(crate) fn hand_over(mut self) {
        if let Some(socket) = self.socket.take() {
            socket.leave();
        }
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        let files = [self.control.take(), self.metrics.take(), self.socket.take()];
        if let Err(error) = self.keeper.have(move || drop(files)) {
            log::warn!("socket files are not removed: {error}");
        }
    }
}
