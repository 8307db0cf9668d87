//! What the options of a process call for, and what of the rest it gives up.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mapping::threads::{self, Thread};

use crate::host::sandbox::{self, Kind, Needs, Plan};
use crate::options::address::Address;
use crate::options::config::{Config, IoPath};

/// Ports below take CAP_NET_BIND_SERVICE.
const LOW_PORTS: u16 = 1024;

/// Begins to give up what is not needed, as the command line says. To be called
/// before there is a second thread. `handed` is the image that another process
/// has handed over, which has `begun` already if it had a sandbox.
pub(crate) fn begin(config: &Config, handed: Option<&OwnedFd>, begun: bool) {
    if !config.sandbox {
        return;
    }
    let image = match handed {
        Some(handed) => PathBuf::from(format!("/proc/self/fd/{}", handed.as_raw_fd())),
        None => config.image.clone(),
    };
    let needs = needs(config, &image);
    sandbox::begin(&Plan {
        image,
        folder: config.snapshot_dir.clone(),
        needs,
        begun,
    });
    threads::on_start(|thread| {
        match thread {
            Thread::Guard => sandbox::enter(Kind::Guard),
            Thread::Lookout => sandbox::enter(Kind::Lookout),
            Thread::Lease => sandbox::enter(Kind::Lease),
            Thread::Filler => sandbox::enter(Kind::Filler),
            // One that is not known here stays as who started it.
            _ => {}
        }
    });
}

fn needs(config: &Config, image: &Path) -> Needs {
    let disk = &config.disk;
    // Where it is not there the start says so itself.
    let meta = fs::metadata(image).ok();
    let user = rustix::process::geteuid().as_raw();
    let foreign = meta.as_ref().is_none_or(|meta| meta.uid() != user);
    let device = meta.is_some_and(|meta| meta.file_type().is_block_device());
    Needs {
        lease: foreign && !device && disk.io_path != IoPath::File,
        cached: foreign && !device && disk.read_only,
        claim: foreign && device && disk.lock,
        lock: disk.swap.is_some() || disk.pin_guest_memory,
        flush: disk.swap.is_some(),
        port: config
            .metrics_listen
            .as_ref()
            .is_some_and(|address| match address {
                Address::Tcp(address) => (1..LOW_PORTS).contains(&address.port()),
                Address::Unix(_) => false,
            }),
    }
}
