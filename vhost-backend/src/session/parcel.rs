//! What a next process needs to go on with a front-end that has not left: its
//! connection, and the messages by which one sets a device up like this. They are
//! served again as any front-end's are, and believed no more.
//!
//! A parcel is one socket in which all descriptors wait, so that whoever keeps it
//! has all of them or none: at once the connection, a memory file and what goes
//! with the session, if there is something, and then those of the messages in their
//! order. The memory file has, in the byte order of this host: the magic, whether it
//! is settled, the flags, and how many bytes of identity, messages and descriptors
//! of theirs there are (32 bits each); the identity; then for each message how many
//! descriptors it has, its request and how long its payload is (32 bits each), and
//! the payload.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use crate::session::channel::{self, MAX_PAYLOAD};
use crate::sys::{self, Kind};

const MAGIC: [u8; 8] = *b"extkept1";
const SETTLED_AT: u64 = 8;
/// Bytes before the identity.
const HEAD: usize = 32;
/// Bytes before the payload of a message.
const HEAD_OF_MESSAGE: usize = 12;
/// No parcel has more bytes: 256 queues take a tenth of it.
const MOST: u64 = 1 << 20;
/// Most descriptors that go through a socket at once.
const AT_ONCE: usize = 253;

const WRITEBACK: u32 = 1;
const FEATURES_READ: u32 = 1 << 1;
const NEWS: u32 = 1 << 2;

/// A message of a front-end's, with its descriptors.
#[derive(Debug)]
pub(crate) struct Setup {
    pub request: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// What is in a parcel beside the connection.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// What the guest has seen of the disk: it must not become another one.
    pub identity: Vec<u8>,
    /// The `writeback` byte as it was last written.
    pub writeback: bool,
    /// GET_FEATURES was answered.
    pub features_read: bool,
    /// A change of the configuration is not told yet.
    pub news: bool,
    pub setups: Vec<Setup>,
}

/// A parcel that was put away: says whether it can be used.
#[derive(Debug)]
pub(crate) struct Seal(File);

impl Seal {
    /// It describes the session as it is (or not, for now): no message is half
    /// dealt with.
    pub(crate) fn set(&self, settled: bool) -> io::Result<()> {
        self.0
            .write_all_at(&u32::from(settled).to_ne_bytes(), SETTLED_AT)
    }
}

/// What goes with the session that another process has put on a
/// [`Shelf`](crate::Shelf), as [`Server::keep`](crate::Server::keep) was given it
/// there; `None` if there is nothing, or the front-end has gone, so that the session
/// will not be gone on with. The parcel stays whole.
#[must_use]
pub fn companion(parcel: &OwnedFd) -> Option<OwnedFd> {
    let parcel = UnixStream::from(sys::duplicate(parcel).ok()?);
    let mut first = channel::peek(&parcel, &mut [0]).ok()?.fds.into_iter();
    let (connection, _memory) = (first.next()?, first.next()?);
    let waits =
        sys::kind(&connection) == Kind::Socket && !sys::has_hung_up(&UnixStream::from(connection));
    first.next().filter(|_| waits)
}

/// Packs a parcel, which is not settled yet.
///
/// # Errors
/// The host gives no descriptor or memory, or lets no more descriptors wait in
/// sockets.
pub(crate) fn pack(
    connection: &UnixStream,
    companion: Option<BorrowedFd<'_>>,
    contents: &Contents,
) -> io::Result<(OwnedFd, Seal)> {
    let bytes = encode(contents)?;
    let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    if length > MOST {
        return Err(io::Error::other("there is too much of it"));
    }
    let memory = sys::sealed_memory(c"session", length)?;
    memory.write_all_at(&bytes, 0)?;
    let (parcel, way_in) = UnixStream::pair()?;
    let mut first = vec![connection.as_fd(), memory.as_fd()];
    first.extend(companion);
    channel::send_all(&way_in, &[0], &first)?;
    let fds = contents.setups.iter().flat_map(|setup| &setup.fds);
    let fds: Vec<_> = fds.map(AsFd::as_fd).collect();
    for some in fds.chunks(AT_ONCE) {
        channel::send_all(&way_in, &[0], some)?;
    }
    Ok((parcel.into(), Seal(memory)))
}

/// Opens a parcel, of which nothing is left then.
///
/// # Errors
/// It is none, is not settled, or the host gives no descriptors.
pub(crate) fn open(parcel: OwnedFd) -> io::Result<(UnixStream, Contents)> {
    let parcel = UnixStream::from(parcel);
    let mut all = Vec::new();
    loop {
        let received = channel::receive(&parcel, &mut [0])?;
        if received.truncated {
            return Err(io::Error::other(crate::error::OPEN_FILES));
        }
        if received.bytes == 0 {
            break;
        }
        all.push(received.fds);
    }
    let damaged = || io::Error::other("what was kept of it is damaged");
    let mut all = all.into_iter();
    let mut first = all.next().into_iter().flatten();
    let (Some(connection), Some(memory)) = (first.next(), first.next()) else {
        return Err(damaged());
    };
    let fds: Vec<OwnedFd> = all.flatten().collect();
    if (sys::kind(&connection), sys::kind(&memory)) != (Kind::Socket, Kind::Memory) {
        return Err(damaged());
    }
    let memory = File::from(memory);
    let length = memory.metadata()?.len();
    if length > MOST {
        return Err(damaged());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    memory.read_exact_at(&mut bytes, 0)?;
    let (settled, contents) = decode(&bytes, fds.into_iter()).ok_or_else(damaged)?;
    if !settled {
        return Err(io::Error::other(
            "the process before ended amid one of its messages",
        ));
    }
    Ok((UnixStream::from(connection), contents))
}

fn encode(contents: &Contents) -> io::Result<Vec<u8>> {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(contents.writeback, WRITEBACK)
        | flag(contents.features_read, FEATURES_READ)
        | flag(contents.news, NEWS);
    let fds: usize = contents.setups.iter().map(|setup| setup.fds.len()).sum();
    let counts = [contents.identity.len(), contents.setups.len(), fds];
    let mut bytes = MAGIC.to_vec();
    let word = |bytes: &mut Vec<u8>, word: usize| {
        let word = u32::try_from(word).map_err(io::Error::other)?;
        bytes.extend(word.to_ne_bytes());
        io::Result::Ok(())
    };
    word(&mut bytes, 0)?;
    bytes.extend(flags.to_ne_bytes());
    for count in counts {
        word(&mut bytes, count)?;
    }
    word(&mut bytes, 0)?;
    bytes.extend(&contents.identity);
    for setup in &contents.setups {
        word(&mut bytes, setup.fds.len())?;
        bytes.extend(setup.request.to_ne_bytes());
        word(&mut bytes, setup.payload.len())?;
        bytes.extend(&setup.payload);
    }
    Ok(bytes)
}

/// Whether it is settled, and what it has; `None` if it is no parcel, or some of
/// its descriptors are missing or too many.
fn decode(
    bytes: &[u8],
    mut fds: impl ExactSizeIterator<Item = OwnedFd>,
) -> Option<(bool, Contents)> {
    let word = |at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let count = |at: usize| usize::try_from(word(at)?).ok();
    let (flags, identity, setups) = (word(12)?, count(16)?, count(20)?);
    if bytes.get(..8)? != MAGIC || count(24)? != fds.len() {
        return None;
    }
    let mut at = HEAD.checked_add(identity)?;
    let mut contents = Contents {
        identity: bytes.get(HEAD..at)?.to_vec(),
        writeback: flags & WRITEBACK != 0,
        features_read: flags & FEATURES_READ != 0,
        news: flags & NEWS != 0,
        setups: Vec::new(),
    };
    for _ in 0..setups {
        let (with, request, length) = (count(at)?, word(at.checked_add(4)?)?, at.checked_add(8)?);
        let length = count(length)?;
        if length > MAX_PAYLOAD || with > fds.len() {
            return None;
        }
        let start = at.checked_add(HEAD_OF_MESSAGE)?;
        at = start.checked_add(length)?;
        contents.setups.push(Setup {
            request,
            payload: bytes.get(start..at)?.to_vec(),
            fds: fds.by_ref().take(with).collect(),
        });
    }
    let all = at == bytes.len() && fds.len() == 0;
    all.then_some((word(8)? == 1, contents))
}

#[cfg(test)]
mod tests;
