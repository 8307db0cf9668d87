//! What is served: the bytes of a disk that nobody writes, and what is known
//! of them.

use std::io;
use std::ops::{ControlFlow, Range};

/// Of `base:allocation`: no place is taken on the disk.
pub(crate) const HOLE: u32 = 1;
/// Of `base:allocation`: reads as zeros.
pub(crate) const ZERO: u32 = 2;
/// Of a bitmap: may differ from the older snapshot.
pub(crate) const DIRTY: u32 = 1;

/// The metadata context that every disk has, with the number 0.
pub(crate) const ALLOCATION: &str = "base:allocation";

/// Takes runs: how many bytes, and the flags that they have. `Break` asks to
/// end early.
pub(crate) type Sink<'a> = dyn FnMut(u64, u32) -> ControlFlow<()> + 'a;

/// A disk that does not change. Asked by many threads at once; each call may
/// wait for the file system.
pub(crate) trait Contents: Send + Sync + 'static {
    /// Its name, beside the empty one.
    fn name(&self) -> &str;

    /// Bytes.
    fn size(&self) -> u64;

    /// The names of its metadata contexts; the first one is [`ALLOCATION`].
    fn contexts(&self) -> &[String];

    /// Fills `into` with the bytes from `offset` on, all of which are within
    /// the size.
    ///
    /// # Errors
    /// What the host says; `into` may hold anything then.
    fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// Tells the runs of `range` in the context of that number, from its start
    /// on and without a gap. Neighbours may have the same flags.
    ///
    /// # Errors
    /// What the host says.
    fn runs(&self, context: usize, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()>;

    /// That range may be read soon.
    fn soon(&self, range: Range<u64>);
}

/// A run that is put together of neighbours with the same flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flags: u32,
}

/// At most so many runs of `range`, which has at least one byte; less, and not
/// to its end, where there are more.
///
/// # Errors
/// What the host says.
pub(super) fn first_runs(
    contents: &dyn Contents,
    context: usize,
    range: &Range<u64>,
    most: usize,
    runs: &mut Vec<Run>,
) -> io::Result<()> {
    runs.clear();
    let mut at = range.start;
    contents.runs(context, range.clone(), &mut |length, flags| {
        let end = at.saturating_add(length).min(range.end);
        let full = runs.len() == most;
        match runs.last_mut() {
            Some(last) if last.flags == flags => last.end = end,
            _ if full => return ControlFlow::Break(()),
            _ if end > at => runs.push(Run {
                start: at,
                end,
                flags,
            }),
            _ => {}
        }
        at = end;
        if at < range.end {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    if runs.is_empty() {
        return Err(io::Error::other("nothing is known of the range"));
    }
    Ok(())
}
