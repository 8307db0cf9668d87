//! The read-compare proof: blocks read by the file and by the device must agree.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;

use crate::device::BackingDevice;
use crate::device::refusal::{Refusal, failed};
use crate::source::ExtentSource;
use crate::source::extent::Extent;
use crate::source::fiemap::Fiemap;
use crate::sync::Arc;
use crate::sys;

/// Places of the file that are looked at.
const PLACES: u64 = 16;
/// How much of the file is searched for an extent from each place on.
const REACH: u64 = 4 << 20;
/// Blocks compared per place.
const TRIES: u64 = 3;

/// What the proof rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Blocks compared.
    pub blocks: usize,
    /// Of those, blocks that were not all zeros. 0 for an image with no data yet: nothing was disproved.
    pub nonzero: usize,
}

#[repr(align(4096))]
struct Block([u8; 4096]);

impl Block {
    fn new() -> Box<Block> {
        Box::new(Block([0; 4096]))
    }
}

impl BackingDevice {
    /// Compares blocks spread over the file, read by the file and by this device, past all caches.
    ///
    /// `file` must be open with `O_DIRECT`, and nobody must be changing it (the lease is held). It is written
    /// out, dropped from the page cache, and the cache is proved empty first, as it must be before the disk path
    /// is entered. Reads a few dozen blocks and their extents; on XFS the first look at a badly fragmented file
    /// may take seconds.
    ///
    /// # Errors
    /// [`Refusal::NotDirect`], [`Refusal::Cached`], [`Refusal::NoCachestat`], [`Refusal::Mismatch`].
    pub fn prove(&self, file: &Arc<File>) -> Result<Proof, Refusal> {
        self.prove_while(file, |_| Some(()))
    }

    /// As [`BackingDevice::prove`], while the caller itself goes on changing the file: `hold` is called before
    /// a range of bytes is compared, and keeps it as it is until what it returned is dropped
    /// ([`Map::hold`](crate::Map::hold) does, if all changes hold their ranges). Ranges for which it returns
    /// `None` are left out.
    ///
    /// # Errors
    /// As [`BackingDevice::prove`].
    pub fn prove_while<H>(
        &self,
        file: &Arc<File>,
        mut hold: impl FnMut(Range<u64>) -> Option<H>,
    ) -> Result<Proof, Refusal> {
        let flags = sys::open_flags(file).map_err(failed("F_GETFL"))?;
        if flags & libc::O_DIRECT == 0 {
            return Err(Refusal::NotDirect);
        }
        if self.is_image() {
            return Ok(Proof::default());
        }
        let size = file.metadata().map_err(failed("fstat"))?.len();
        empty_cache(file, size)?;
        let source = Fiemap::new(Arc::clone(file)).align(self.logical_block());
        let mut blocks = (Block::new(), Block::new());
        let mut proof = Proof::default();
        for place in 0..PLACES {
            let start = size / PLACES * place;
            let end = start.saturating_add(REACH).min(size);
            let extent = first_on_disk(&source, start & !4095..end).map_err(failed("FIEMAP"))?;
            for at in extent.iter().flat_map(|extent| self.blocks_of(extent)) {
                let range = at..at + u64::from(self.logical_block());
                if let Some(_held) = hold(range.clone()) {
                    self.compare(file, &source, range, &mut blocks, &mut proof)?;
                }
            }
        }
        Ok(proof)
    }

    /// Compares one block, which nobody changes now; it may have been moved or freed before.
    fn compare(
        &self,
        file: &File,
        source: &Fiemap,
        block: Range<u64>,
        (ours, theirs): &mut (Box<Block>, Box<Block>),
        proof: &mut Proof,
    ) -> Result<(), Refusal> {
        let at = block.start;
        let len = usize::try_from(block.end - at).unwrap_or(4096);
        let extent = first_on_disk(source, block).map_err(failed("FIEMAP"))?;
        let Some(disk) = extent.and_then(|extent| extent.disk_at(at)) else {
            return Ok(());
        };
        let (a, b) = (&mut ours.0[..len], &mut theirs.0[..len]);
        file.read_exact_at(a, at)
            .map_err(failed("reading the file"))?;
        self.file()
            .read_exact_at(b, disk)
            .map_err(failed("reading the device"))?;
        if a != b {
            return Err(Refusal::Mismatch { file: at, disk });
        }
        proof.blocks += 1;
        proof.nonzero += usize::from(a.iter().any(|byte| *byte != 0));
        Ok(())
    }

    /// Offsets of some whole logical blocks of the extent: the first, the last and one between.
    fn blocks_of(&self, extent: &Extent) -> Vec<u64> {
        let block = u64::from(self.logical_block());
        let count = extent.len / block;
        let mut blocks: Vec<u64> = (0..TRIES)
            .filter(|_| count > 0)
            .map(|step| extent.start + (count - 1) * step / (TRIES - 1) * block)
            .collect();
        blocks.dedup();
        blocks
    }
}

/// Writes the file out, drops it from the page cache and proves that nothing is left there.
fn empty_cache(file: &File, size: u64) -> Result<(), Refusal> {
    // What fails here is still told by the next sync, as that of a guest's FLUSH.
    sys::write_out(file).map_err(failed("write pages out"))?;
    // Not just its data: ext4 does not count blocks that a defragmenter has moved among what fdatasync makes
    // stable, and what is written to the device from here on must not be found missing after a crash.
    file.sync_all().map_err(Refusal::Sync)?;
    // Beyond the end too: a page of the last block may lie there.
    let all = 0..size.saturating_add(1 << 20);
    sys::drop_cache(file, &all).map_err(failed("posix_fadvise"))?;
    match sys::cached_pages(file, &all) {
        Ok(0) => Ok(()),
        Ok(pages) => Err(Refusal::Cached(pages)),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Err(Refusal::NoCachestat),
        Err(error) => Err(failed("cachestat")(error)),
    }
}

/// The first extent in `range` whose bytes are on the disk.
fn first_on_disk(source: &Fiemap, range: Range<u64>) -> io::Result<Option<Extent>> {
    let mut found = None;
    source.fill(range, &mut |extent| {
        if !extent.kind.on_disk() {
            return ControlFlow::Continue(());
        }
        found = Some(extent);
        ControlFlow::Break(())
    })?;
    Ok(found)
}
