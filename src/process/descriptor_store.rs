//! The service manager's store of descriptors, in which a session is kept while
//! one process of the service ends and the next one starts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use vhost_backend::Shelf;

use crate::host::sys;
use crate::process::activation::{Activation, LEFT};
use crate::process::service_manager;

/// The image of the session that was left, if its front-end still waits: a guest's
/// disk does not become another file that has its name by now.
pub(crate) fn image(activation: &Activation) -> Option<OwnedFd> {
    let (_, parcel) = activation.left.last()?;
    vhost_backend::companion(parcel)
}

/// What goes with each session: by this the image is opened again, whatever has
/// its name by then. It is no use of the image that would keep a lease away.
///
/// # Errors
/// What the host says, as where there is no /proc.
pub(crate) fn name_of(image: &File) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The store of this process's service.
#[derive(Debug)]
pub(crate) struct DescriptorStore {
    /// The names of what is there.
    names: Vec<String>,
}

impl DescriptorStore {
    /// The store, if the service has one; `names` are already there.
    pub(crate) fn find(names: Vec<String>) -> Option<Self> {
        service_manager::keeps_descriptors().then_some(Self { names })
    }

    /// Has the manager close some; those that it was not told of stay in the list.
    fn remove(&mut self, names: Vec<String>) {
        for name in names {
            if let Err(error) = service_manager::drop_descriptors(&name) {
                log::warn!(
                    "the service manager keeps what is of no use any more ({name}): {error}"
                );
                self.names.push(name);
            }
        }
    }
}

impl Shelf for DescriptorStore {
    fn put(&mut self, parcel: OwnedFd) -> io::Result<()> {
        let name = format!("{LEFT}{}", sys::boot_time_ns());
        service_manager::store_descriptor(&name, parcel.as_fd())?;
        let before = std::mem::take(&mut self.names);
        self.names.push(name);
        self.remove(before);
        Ok(())
    }

    fn clear(&mut self) {
        let names = std::mem::take(&mut self.names);
        self.remove(names);
    }
}
