//! The guest's memory as the front-end shares it: one immutable table at a
//! time, replaced as a whole.

/// An immutable table of guest memory regions, mapped into this process for
/// as long as anybody holds it.
#[derive(Debug)]
pub(crate) struct Memory {}

impl Memory {
    /// The guest physical address of a front-end's user address (VU-17).
    pub(crate) fn user_to_guest(&self, user: u64) -> Option<u64>;

    /// The host address of `len` bytes that lie wholly in one region (RING-2).
    pub(crate) fn host(&self, guest: u64, len: u64) -> Option<*mut u8>;

    /// Appends the host pieces of `len` bytes, split where regions meet
    /// (RING-11); `None` (and nothing appended) if any byte is not mapped.
    pub(crate) fn pieces(&self, guest: u64, len: u64, into: &mut Vec<libc::iovec>) -> Option<()>;
}
