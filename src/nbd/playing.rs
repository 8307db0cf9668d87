//! A disk in memory and a client whose bytes are all there, for tests and fuzz
//! targets.

use std::io;
use std::ops::Range;

use super::contents::{ALLOCATION, Contents, Sink};
use super::line::{Ended, Line};
use super::negotiation::negotiate;
use super::transmission::Transmission;

/// A disk of which everything is given.
#[derive(Debug, Clone)]
pub struct Disk {
    name: String,
    bytes: Vec<u8>,
    /// Runs of each context: their lengths and flags.
    runs: Vec<Vec<(u64, u32)>>,
    contexts: Vec<String>,
    /// Bytes from here on cannot be read.
    broken: usize,
}

impl Disk {
    /// With that name and these bytes, whose runs of `base:allocation` and of a
    /// bitmap `qemu:dirty-bitmap:old` are given by lengths and flags, up to
    /// the end. Data from `broken` on cannot be read.
    #[must_use]
    pub fn new(name: &str, bytes: Vec<u8>, runs: [Vec<(u64, u32)>; 2], broken: usize) -> Self {
        Self {
            name: name.to_owned(),
            bytes,
            runs: runs.into(),
            contexts: vec![ALLOCATION.to_owned(), "qemu:dirty-bitmap:old".to_owned()],
            broken,
        }
    }
}

impl Contents for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn contexts(&self) -> &[String] {
        &self.contexts
    }

    fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(into.len());
        let found = self.bytes.get(start..end).filter(|_| end <= self.broken);
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(found);
        Ok(())
    }

    fn runs(&self, context: usize, range: Range<u64>, sink: &mut Sink<'_>) -> io::Result<()> {
        let mut at = 0;
        for &(length, flags) in self.runs.get(context).into_iter().flatten() {
            let (start, end) = (range.start.max(at), range.end.min(at + length));
            if start < end && sink(end - start, flags).is_break() {
                break;
            }
            at += length;
        }
        Ok(())
    }

    fn soon(&self, _: Range<u64>) {}
}

/// What a client has sent, and what it is sent.
struct Played<'a> {
    received: &'a [u8],
    sent: Vec<u8>,
}

impl Line for Played<'_> {
    fn wait(&mut self) -> Result<(), Ended> {
        Ok(())
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<(), Ended> {
        let (taken, left) = self
            .received
            .split_at_checked(into.len())
            .ok_or(Ended::Gone)?;
        into.copy_from_slice(taken);
        self.received = left;
        Ok(())
    }

    fn send(&mut self, head: &[u8], body: &[u8]) -> Result<(), Ended> {
        self.sent.extend_from_slice(head);
        self.sent.extend_from_slice(body);
        Ok(())
    }
}

/// All that a client is sent that has sent this, and then ends its half.
#[must_use]
pub fn play(received: &[u8], disk: &Disk) -> Vec<u8> {
    let mut line = Played {
        received,
        sent: Vec::new(),
    };
    if let Ok(agreed) = negotiate(&mut line, disk) {
        Transmission::new(&mut line, disk, agreed).run();
    }
    line.sent
}
