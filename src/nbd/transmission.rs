//! Requests, one after the other, until the client leaves.

use std::ops::Range;

use super::contents::{Contents, Run, ZERO, first_runs};
use super::line::{Ended, Line};
use super::negotiation::{Agreed, context_id};
use super::wire::{DONE, Errno, REQUEST_BYTES, Request, chunk, command, flag};

/// Bytes that are read and sent at once.
const PIECE: usize = 256 << 10;
/// Runs that are looked up at once for a read, and told at once for a context.
const RUNS: usize = 1024;

/// One client that reads.
pub(super) struct Transmission<'a, L> {
    line: &'a mut L,
    contents: &'a dyn Contents,
    agreed: Agreed,
    /// What is read and written away, [`PIECE`] bytes.
    buffer: Box<[u8]>,
    runs: Vec<Run>,
    /// A list of extents as it is sent.
    told: Vec<u8>,
}

impl<'a, L: Line> Transmission<'a, L> {
    /// For a client with whom that was agreed.
    pub(super) fn new(line: &'a mut L, contents: &'a dyn Contents, agreed: Agreed) -> Self {
        Self {
            line,
            contents,
            agreed,
            buffer: vec![0; PIECE].into_boxed_slice(),
            runs: Vec::with_capacity(RUNS),
            told: Vec::with_capacity(RUNS * 8),
        }
    }

    /// Answers until the end, of which the reason is returned.
    pub(super) fn run(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.next() {
                return ended;
            }
        }
    }

    fn next(&mut self) -> Result<(), Ended> {
        let mut bytes = [0; REQUEST_BYTES];
        self.line.wait()?;
        self.line.receive(&mut bytes)?;
        let request = Request::parse(&bytes).ok_or(Ended::Nonsense("no request"))?;
        let range = request.end(self.contents.size());
        let range = range.map(|end| request.offset..end);
        match (request.command, range) {
            (command::DISC, _) => Err(Ended::Asked),
            (command::WRITE, _) => {
                self.read_away(request.length)?;
                self.fail(&request, Errno::Perm, "this is read-only")
            }
            (command::TRIM | command::WRITE_ZEROES, _) => {
                self.fail(&request, Errno::Perm, "this is read-only")
            }
            (command::READ | command::BLOCK_STATUS | command::CACHE, None) => {
                self.fail(&request, Errno::Invalid, "that is not within the disk")
            }
            (command::READ, Some(range)) => self.read(&request, range),
            (command::BLOCK_STATUS, Some(range)) => self.block_status(&request, range),
            (command::CACHE, Some(range)) if request.flags == 0 => {
                if request.length <= super::MOST_BYTES {
                    self.contents.soon(range);
                }
                self.succeed(&request)
            }
            _ => self.fail(&request, Errno::Invalid, "there is no such request"),
        }
    }

    /// What a client sends that may not write.
    fn read_away(&mut self, length: u32) -> Result<(), Ended> {
        if length > super::MOST_BYTES {
            return Err(Ended::Nonsense("more to write than a request may have"));
        }
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        while left > 0 {
            let part = left.min(self.buffer.len());
            let into = self.buffer.get_mut(..part).unwrap_or_default();
            self.line.receive(into)?;
            left -= part;
        }
        Ok(())
    }

    fn succeed(&mut self, request: &Request) -> Result<(), Ended> {
        self.line.send(request.simple(None).as_bytes(), &[])
    }

    fn fail(&mut self, request: &Request, error: Errno, why: &str) -> Result<(), Ended> {
        if !self.agreed.structured {
            return self.line.send(request.simple(Some(error)).as_bytes(), &[]);
        }
        let length = u16::try_from(why.len()).unwrap_or(0);
        let mut head = request.chunk(DONE, chunk::ERROR, u32::from(length) + 6);
        head.u32(error as u32);
        head.u16(length);
        self.line.send(head.as_bytes(), why.as_bytes())
    }

    fn read(&mut self, request: &Request, range: Range<u64>) -> Result<(), Ended> {
        let df = request.flags == flag::DF && self.agreed.structured;
        if request.flags != 0 && !df {
            return self.fail(request, Errno::Invalid, "no read has this flag");
        }
        if request.length > super::MOST_BYTES {
            return self.fail(request, Errno::Invalid, "that is more than a read may have");
        }
        if range.is_empty() {
            return if self.agreed.structured {
                let head = request.chunk(DONE, chunk::NONE, 0);
                self.line.send(head.as_bytes(), &[])
            } else {
                self.succeed(request)
            };
        }
        if !self.agreed.structured {
            self.line.send(request.simple(None).as_bytes(), &[])?;
            return self.stream(range, false).map(drop);
        }
        if df {
            return self.read_whole(request, range);
        }
        self.read_chunks(request, range)
    }

    /// A chunk for each run of zeros, and for pieces of data.
    fn read_chunks(&mut self, request: &Request, range: Range<u64>) -> Result<(), Ended> {
        let mut at = range.start;
        while at < range.end {
            let runs = match self.look_up(&(at..range.end)) {
                Ok(runs) => runs,
                Err(error) => return self.unread(request, &error),
            };
            for run in &runs {
                let told = if run.flags & ZERO != 0 {
                    self.send_hole(request, run, range.end)
                } else {
                    self.send_data(request, run, range.end)
                };
                if let Some(error) = told? {
                    self.runs = runs;
                    return self.unread(request, &error);
                }
                at = run.end;
            }
            self.runs = runs;
        }
        Ok(())
    }

    fn send_hole(
        &mut self,
        request: &Request,
        run: &Run,
        end: u64,
    ) -> Result<Option<std::io::Error>, Ended> {
        let flags = if run.end == end { DONE } else { 0 };
        let mut head = request.chunk(flags, chunk::OFFSET_HOLE, 12);
        head.u64(run.start);
        head.u32(length(run.end - run.start));
        self.line.send(head.as_bytes(), &[])?;
        Ok(None)
    }

    fn send_data(
        &mut self,
        request: &Request,
        run: &Run,
        end: u64,
    ) -> Result<Option<std::io::Error>, Ended> {
        let mut at = run.start;
        while at < run.end {
            let piece = piece(run.end - at);
            let into = self.buffer.get_mut(..piece).unwrap_or_default();
            if let Err(error) = self.contents.read(into, at) {
                return Ok(Some(error));
            }
            let next = at + piece as u64;
            let flags = if next == end { DONE } else { 0 };
            let mut head = request.chunk(flags, chunk::OFFSET_DATA, length(next - at) + 8);
            head.u64(at);
            self.line.send(head.as_bytes(), into)?;
            at = next;
        }
        Ok(None)
    }

    /// One chunk with all; where something cannot be read, zeros are in its
    /// place and an error follows.
    fn read_whole(&mut self, request: &Request, range: Range<u64>) -> Result<(), Ended> {
        let bytes = length(range.end - range.start);
        let mut head = request.chunk(0, chunk::OFFSET_DATA, bytes + 8);
        head.u64(range.start);
        self.line.send(head.as_bytes(), &[])?;
        match self.stream(range, true)? {
            Some(error) => self.unread(request, &error),
            None => {
                let head = request.chunk(DONE, chunk::NONE, 0);
                self.line.send(head.as_bytes(), &[])
            }
        }
    }

    /// Sends bytes without any heads. `padded`: where they cannot be read
    /// zeros are sent, and the error is returned; else that ends all.
    fn stream(&mut self, range: Range<u64>, padded: bool) -> Result<Option<std::io::Error>, Ended> {
        let mut failed = None;
        let mut at = range.start;
        while at < range.end {
            let runs = match self.look_up(&(at..range.end)) {
                Ok(runs) => runs,
                Err(error) if padded => {
                    failed = Some(error);
                    let flags = ZERO;
                    vec![Run {
                        start: at,
                        end: range.end,
                        flags,
                    }]
                }
                Err(error) => return Err(Ended::Unread(error)),
            };
            for run in &runs {
                while at < run.end {
                    let piece = piece(run.end - at);
                    let into = self.buffer.get_mut(..piece).unwrap_or_default();
                    if failed.is_some() || run.flags & ZERO != 0 {
                        into.fill(0);
                    } else if let Err(error) = self.contents.read(into, at) {
                        if !padded {
                            return Err(Ended::Unread(error));
                        }
                        into.fill(0);
                        failed = Some(error);
                    }
                    self.line.send(into, &[])?;
                    at += piece as u64;
                }
            }
            self.runs = runs;
        }
        Ok(failed)
    }

    /// The first runs of a range that is to be read. They are lent out of
    /// `self.runs`, where they go back to.
    fn look_up(&mut self, range: &Range<u64>) -> std::io::Result<Vec<Run>> {
        let mut runs = std::mem::take(&mut self.runs);
        first_runs(self.contents, 0, range, RUNS, &mut runs)?;
        Ok(runs)
    }

    fn unread(&mut self, request: &Request, error: &std::io::Error) -> Result<(), Ended> {
        log::warn!(
            "{} cannot be read at {}: {error}",
            self.contents.name(),
            request.offset
        );
        self.fail(request, Errno::Io, "the host cannot read that")
    }

    fn block_status(&mut self, request: &Request, range: Range<u64>) -> Result<(), Ended> {
        let one = request.flags == flag::REQ_ONE;
        if request.flags != 0 && !one {
            return self.fail(request, Errno::Invalid, "no such look has this flag");
        }
        if range.is_empty() || self.agreed.contexts.is_empty() {
            let why = "no context was chosen, or the range is empty";
            return self.fail(request, Errno::Invalid, why);
        }
        let most = if one { 1 } else { RUNS };
        let contexts = std::mem::take(&mut self.agreed.contexts);
        let told = self.tell_contexts(request, &range, &contexts, most);
        self.agreed.contexts = contexts;
        told
    }

    fn tell_contexts(
        &mut self,
        request: &Request,
        range: &Range<u64>,
        contexts: &[usize],
        most: usize,
    ) -> Result<(), Ended> {
        for (index, &context) in contexts.iter().enumerate() {
            let mut runs = std::mem::take(&mut self.runs);
            let known = first_runs(self.contents, context, range, most, &mut runs);
            self.runs = runs;
            if let Err(error) = known {
                return self.unread(request, &error);
            }
            self.told.clear();
            for run in &self.runs {
                let length = length(run.end - run.start);
                self.told.extend_from_slice(&length.to_be_bytes());
                self.told.extend_from_slice(&run.flags.to_be_bytes());
            }
            let flags = if index + 1 == contexts.len() { DONE } else { 0 };
            let bytes = u32::try_from(self.told.len()).unwrap_or(0) + 4;
            let mut head = request.chunk(flags, chunk::BLOCK_STATUS, bytes);
            head.u32(context_id(context));
            self.line.send(head.as_bytes(), &self.told)?;
        }
        Ok(())
    }
}

/// Bytes that are read at once of so many.
fn piece(left: u64) -> usize {
    usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))
}

/// Of what lies within a request, whose length is a number of 32 bits.
fn length(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
