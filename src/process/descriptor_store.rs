//! The service manager's store of descriptors, in which a session is kept while
//! one process of the service ends and the next one starts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use vhost_backend::Shelf;

use crate::host::sys;
use crate::process::activation::LEFT;
use crate::process::service_manager;

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
