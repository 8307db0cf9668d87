//! Prints the map of a file: `cargo run -p extentd-mapping --example print_map -- FILE [START LEN]`.
//!
//! Also says whether the file's disk could be used directly, and if not, why.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;
use std::sync::Arc;

use mapping::device::BackingDevice;
use mapping::{Config, Extent, Fiemap, Lookup, Map};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match print(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("print_map: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(args: &[String]) -> Result<(), Box<dyn Error>> {
    let path = args.first().ok_or("usage: print_map FILE [START LEN]")?;
    let file = Arc::new(File::open(path)?);
    let size = file.metadata()?.len();
    let start: u64 = args.get(1).map_or(Ok(0), |text| text.parse())?;
    let len: u64 = args.get(2).map_or(Ok(size), |text| text.parse())?;
    let end = start.saturating_add(len).min(size);

    match BackingDevice::find(&file) {
        Ok(device) => println!(
            "device {} ({} bytes, logical blocks of {}, raw writes in multiples of {})",
            device.path().unwrap_or(path.as_ref()).display(),
            device.size(),
            device.logical_block(),
            device.page_block()
        ),
        Err(refusal) => println!("not directly usable: {refusal}"),
    }

    let map = Map::new(size, Config::default())?;
    map.enable();
    let source = Fiemap::new(file);
    let mut reader = map.reader()?;
    let mut at = start;
    let mut pending: Option<Extent> = None;
    println!(
        "{:>16} {:>16} {:>16}  kind",
        "file offset", "bytes", "disk offset"
    );
    while at < end {
        // One window at a time: a file of any size is printed in the memory of one.
        let Lookup::Found(extent) = reader.lookup(at) else {
            map.load(&source, at..at + 1)?;
            continue;
        };
        at = extent.end();
        pending = match pending {
            Some(before) if continues(&before, &extent) => Some(Extent {
                len: before.len + extent.len,
                ..before
            }),
            other => {
                show(other);
                Some(extent)
            }
        };
        reader.quiescent();
    }
    show(pending);
    Ok(())
}

/// Whether an extent was only cut by the end of a window.
fn continues(before: &Extent, extent: &Extent) -> bool {
    let same = before.kind == extent.kind && before.end() == extent.start;
    same && (before.disk == extent.disk || before.disk + before.len == extent.disk)
}

fn show(extent: Option<Extent>) {
    if let Some(extent) = extent {
        println!(
            "{:>16} {:>16} {:>16}  {}",
            extent.start, extent.len, extent.disk, extent.kind
        );
    }
}
