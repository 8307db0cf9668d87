//! Swaps pages out to a file and in again, as a swap daemon does: `swap_pages FILE PAGES`.
//!
//! The map is pinned whole before the first page goes out, so that no page needs the file system or memory to find its
//! place: neither of them may be asked when memory is short. The file is all written and shares nothing.
use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use mapping::path::{Buffer, DiskPath, Options, Swap};

const PAGE: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: swap_pages FILE PAGES";
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(arguments.next().ok_or(usage)?)?;
    let pages: u64 = arguments.next().ok_or(usage)?.parse()?;

    let options = Options::default().swap(Some(Swap::Demanded));
    let path = DiskPath::open(&Arc::new(file), &options)?;
    path.want();
    // Whatever keeps the file from being swapped on is an error here, and not later.
    path.try_now()?;

    let mut worker = path.worker()?;
    let mut page = Buffer::new(PAGE);
    let slot = |number: u64| (number * 7919 % pages) * PAGE as u64;
    for number in 0..pages {
        page.fill(number.to_le_bytes()[0]);
        worker.write_at(&page, slot(number))?;
    }
    for number in (0..pages).rev() {
        worker.read_at(&mut page, slot(number))?;
        if page.iter().any(|byte| *byte != number.to_le_bytes()[0]) {
            return Err(format!("page {number} is not what it was").into());
        }
    }
    let misses = path.stats().misses;
    writeln!(
        std::io::stdout(),
        "{pages} pages went out and came back, {misses} lookups missed, the map is {}",
        if path.is_fixed() {
            "fixed"
        } else {
            "not fixed"
        }
    )?;
    Ok(())
}
