//! The disk while its image is being cloned.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mapping::path::Aside;
use mapping::{DiskPath, Map};

use super::Disk;
use crate::block_io::clones::Clones;
pub(crate) use crate::block_io::clones::Cloning;
use crate::host::switches;

impl Disk {
    /// Has requests go by the file until what this returns is dropped.
    pub(crate) fn by_file(&self) -> Option<Aside<'_>> {
        self.disk_path().ok().map(DiskPath::step_aside)
    }

    /// What keeps changes of the image from what is to be cloned first.
    pub(crate) fn clones(&self) -> &Clones {
        &self.shared.clones
    }

    /// The map of its extents, where there is one, which has to forget what is
    /// cloned.
    pub(crate) fn map_to_forget(&self) -> Option<&Map> {
        let path = self.disk_path().ok();
        path.filter(|_| !switches::left_out("cloneforget"))
            .map(DiskPath::map)
    }

    /// Rings have started that nobody has stopped: whoever else keeps to the
    /// locks does not write the image.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours.load(Ordering::SeqCst)
    }

    /// Nothing of a clone is made that is not whole by now.
    pub(crate) fn give_clone_up(&self, reason: &'static str) {
        if self.clones().give_up(reason) {
            log::warn!("the snapshot that is being made is given up: {reason}");
        }
    }

    /// Waits for a moment until nothing is left of a clone that was given up.
    pub(crate) fn settle_clone(&self) {
        const PATIENCE: Duration = Duration::from_secs(2);
        self.clones().wait_for_end(PATIENCE);
    }
}
