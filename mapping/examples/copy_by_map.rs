//! Copies an image's written extents straight from the disk under it, and checks the copy against the
//! file: `copy_by_map IMAGE COPY`. Holes and unwritten extents stay holes in the copy.
//!
//! Shows the order of things for any program that reads past the file system: one open, a lease, the device
//! and its proof, and only then the map. Run it as the image's owner with permission to read the device.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::Arc;

use mapping::device::BackingDevice;
use mapping::lease::{Lease, Mode};
use mapping::{Config, Extent, Fiemap, Filler, Kind, Lookup, Map};

/// Bytes moved at a time.
const CHUNK: usize = 1 << 20;

/// Memory aligned for direct I/O.
#[repr(align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

struct Buffer(Vec<Page>);

impl Buffer {
    fn new() -> Buffer {
        Buffer(vec![Page([0; 4096]); CHUNK / 4096])
    }

    /// Reads `len` bytes (a multiple of the device's blocks) at `offset`.
    fn read(&mut self, device: &File, offset: u64, len: usize) -> std::io::Result<()> {
        for (at, page) in self.0.iter_mut().take(len.div_ceil(4096)).enumerate() {
            let part = (len - at * 4096).min(4096);
            device.read_exact_at(&mut page.0[..part], offset + (at * 4096) as u64)?;
        }
        Ok(())
    }

    fn write(&self, copy: &File, offset: u64, len: usize) -> std::io::Result<()> {
        for (at, page) in self.0.iter().take(len.div_ceil(4096)).enumerate() {
            let part = (len - at * 4096).min(4096);
            copy.write_all_at(&page.0[..part], offset + (at * 4096) as u64)?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [image, copy] => match run(image, copy) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("copy_by_map: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: copy_by_map IMAGE COPY");
            ExitCode::from(2)
        }
    }
}

fn run(image: &str, copy: &str) -> Result<(), Box<dyn Error>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(image)?;
    let file = Arc::new(file);
    let lease = Lease::new(Arc::clone(&file), Mode::ReadOnly)?;
    lease.take()?;
    let device = BackingDevice::find(&file)?;
    let proof = device.prove(&file)?;
    println!(
        "{} blocks compared, {} of them not zero",
        proof.blocks, proof.nonzero
    );

    let size = file.metadata()?.len();
    let map = Map::new(size, Config::default())?;
    map.enable();
    let source = Fiemap::new(Arc::clone(&file))
        .align(device.logical_block())
        .exclusive();
    let filler = Filler::spawn(&map, Arc::new(source))?;
    let out = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(copy)?;
    out.set_len(size)?;

    let mut reader = map.reader()?;
    let mut buffer = Buffer::new();
    let (mut by_disk, mut by_file, mut at) = (0, 0, 0);
    while at < size {
        if lease.broken() {
            // Nothing read from the disk since the break counts; a server would go on by the file.
            return Err("somebody wants to write the image: the copy is not complete".into());
        }
        let Lookup::Found(extent) = reader.lookup(at) else {
            filler.populate(at..at + 1)?;
            continue;
        };
        let range = at..extent.end().min(at + CHUNK as u64);
        at = range.end;
        match extent.kind {
            Kind::Hole | Kind::Unwritten => {}
            Kind::Written | Kind::Shared => {
                by_disk += copy_part(&device, &extent, range.start, range.end, &mut buffer, &out)?;
            }
            Kind::Opaque(reason) => {
                println!(
                    "bytes {} to {} go by the file: {reason}",
                    range.start, range.end
                );
                by_file += copy_file(&file, range.start, range.end, &mut buffer, &out)?;
            }
        }
        reader.quiescent();
    }
    if lease.broken() {
        return Err("somebody wants to write the image: the copy may be wrong".into());
    }
    out.sync_all()?;
    println!(
        "{by_disk} bytes from the disk, {by_file} through the file, {} not copied",
        size - by_disk - by_file
    );
    check(&file, &out, size, &mut buffer)?;
    println!("the copy reads the same as the image");
    Ok(())
}

/// Copies a part of an extent; the last block is read whole and cut.
fn copy_part(
    device: &BackingDevice,
    extent: &Extent,
    start: u64,
    end: u64,
    buffer: &mut Buffer,
    out: &File,
) -> Result<u64, Box<dyn Error>> {
    let disk = extent.disk_at(start).ok_or("an extent without a place")?;
    let len = usize::try_from(end - start)?;
    let block = usize::try_from(device.logical_block())?;
    buffer.read(device.file(), disk, len.next_multiple_of(block))?;
    buffer.write(out, start, len)?;
    Ok(end - start)
}

fn copy_file(
    file: &File,
    start: u64,
    end: u64,
    buffer: &mut Buffer,
    out: &File,
) -> Result<u64, Box<dyn Error>> {
    for at in (start..end).step_by(4096) {
        let page = &mut buffer.0[0].0;
        let got = file.read_at(page, at)?;
        let len = usize::try_from(end - at)?.min(got);
        out.write_all_at(&page[..len], at)?;
    }
    Ok(end - start)
}

fn check(file: &File, out: &File, size: u64, buffer: &mut Buffer) -> Result<(), Box<dyn Error>> {
    let mut theirs = [0; 4096];
    for at in (0..size).step_by(4096) {
        let ours = &mut buffer.0[0].0;
        let len = usize::try_from(size - at)?.min(4096);
        let got = file.read_at(ours, at)?;
        out.read_exact_at(&mut theirs[..len], at)?;
        if got < len || ours[..len] != theirs[..len] {
            return Err(format!(
                "the copy differs from the image between byte {at} and {}",
                at + 4096
            )
            .into());
        }
    }
    Ok(())
}
