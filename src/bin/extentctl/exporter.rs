//! `extentctl exporter`: one scrape for all disks of a host.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use extentd::operator::exporter::Exporter;
use extentd::options::address::Address;

use crate::cli::{Args, FOLDER};
use crate::disks;
use crate::output;
use crate::status::Failure;

/// Serves until it is killed.
///
/// # Errors
/// It cannot begin.
pub fn serve(args: &Args, listen: &Address, timeout: Duration) -> Result<(), Failure> {
    let exporter = Exporter::listen(listen)?;
    match exporter.address() {
        Address::Tcp(address) => output::complain(&format!("metrics at http://{address}/metrics")),
        address @ Address::Unix(_) => {
            output::complain(&format!("metrics at {address}, by HTTP at /metrics"));
        }
    }
    let (all, named) = (args.all.clone(), args.control_path.clone());
    let disks = move || match &all {
        Some(folder) => sockets(folder.into()),
        None if named.is_empty() => sockets(FOLDER.into()),
        None => named.clone(),
    };
    let error = exporter.serve(disks, timeout);
    Err(format!("exporter: it cannot begin: {error}").into())
}

/// Those of a folder, which is there once a disk is; none, and a line why,
/// where it cannot be read.
fn sockets(folder: PathBuf) -> Vec<PathBuf> {
    disks::of_folder(&folder).unwrap_or_else(|error| {
        if error.kind() != ErrorKind::NotFound {
            let folder = folder.display();
            output::complain(&format!("--all={folder}: {error}: no disk is told of"));
        }
        Vec::new()
    })
}
