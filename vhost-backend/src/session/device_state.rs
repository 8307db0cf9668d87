//! What a front-end keeps of the disk when it saves a whole machine, and gives
//! back when it restores it (`VHOST_USER_PROTOCOL_F_DEVICE_STATE`). Data are
//! on the image; this says which disk it was, and where its rings were.
//!
//! Little endian: the magic, the version and how long the head is (16 bits
//! each), the number of rings, a word that is 0, the capacity in sectors, the
//! serial, a word that says whether writes were cached; then the next avail
//! index of each ring. A later version may only make the head longer, so that
//! an earlier one finds the rings; what it could not do without gets another
//! magic.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::aside;
use crate::error::StateError;
use crate::sys::{self, Kind};

const MAGIC: [u8; 8] = *b"extentd\0";
const VERSION: u16 = 1;
/// Bytes of the head of this version.
const HEAD: usize = 48;
/// No state is longer; it fits into an empty pipe.
const MOST: usize = 4096;
/// How long a front-end may take to send what it restores.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same and the time that it takes to say so.
const TOLD: Duration = Duration::from_secs(11);

/// A disk at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceState {
    /// In sectors.
    pub capacity: u64,
    pub serial: [u8; 20],
    pub writeback: bool,
    /// The next avail index of each ring.
    pub bases: Vec<u16>,
}

impl DeviceState {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let word = |value: usize| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(word(HEAD));
        bytes.extend(word(self.bases.len()));
        bytes.extend([0; 2]);
        bytes.extend(self.capacity.to_le_bytes());
        bytes.extend(self.serial);
        bytes.extend(u32::from(self.writeback).to_le_bytes());
        for base in &self.bases {
            bytes.extend(base.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<DeviceState> {
        let word = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if bytes.get(..8)? != MAGIC || word(8)? < VERSION {
            return None;
        }
        let (head, rings) = (usize::from(word(10)?), usize::from(word(12)?));
        let bases = rings.checked_mul(2)?;
        if head < HEAD || bytes.len() != head.checked_add(bases)? {
            return None;
        }
        Some(DeviceState {
            capacity: u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?),
            serial: bytes.get(24..44)?.try_into().ok()?,
            writeback: bytes.get(44..48)? != [0; 4],
            bases: (head..)
                .step_by(2)
                .take(rings)
                .map(word)
                .collect::<Option<_>>()?,
        })
    }

    /// Whether a disk that is like this one can go on where `saved` was.
    ///
    /// # Errors
    /// What does not fit.
    pub(crate) fn takes(&self, saved: &DeviceState) -> Result<(), StateError> {
        if saved.capacity != self.capacity {
            return Err(StateError::Capacity(saved.capacity, self.capacity));
        }
        if saved.serial != self.serial {
            return Err(StateError::Serial);
        }
        if saved.bases.len() > self.bases.len() {
            return Err(StateError::Rings(saved.bases.len(), self.bases.len()));
        }
        Ok(())
    }

    /// Writes it to the end of a pipe that a front-end has sent, which nobody
    /// needs to read meanwhile.
    pub(crate) fn save(&self, pipe: File) -> Result<(), StateError> {
        let bytes = self.encode();
        let saved = aside::within(PATIENCE, move || write(&pipe, &bytes));
        saved.unwrap_or(Err(StateError::Late))
    }

    /// Reads it from a pipe to its end, or to that of the front-end that has
    /// sent it.
    pub(crate) fn load(
        pipe: File,
        front_end: Option<UnixStream>,
    ) -> Result<DeviceState, StateError> {
        let loaded = aside::within(TOLD, move || read(pipe, front_end.as_ref()));
        loaded.unwrap_or(Err(StateError::Late))
    }
}

fn write(pipe: &File, bytes: &[u8]) -> Result<(), StateError> {
    match ours(pipe, OpenOptions::new().write(true))?.write(bytes) {
        Ok(written) if written == bytes.len() => Ok(()),
        Ok(_) => Err(StateError::Full),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(StateError::Full),
        Err(error) => Err(error.into()),
    }
}

fn read(theirs: File, front_end: Option<&UnixStream>) -> Result<DeviceState, StateError> {
    let mut pipe = ours(&theirs, OpenOptions::new().read(true))?;
    // It may be the other end, which has to close before there is an end of file.
    drop(theirs);
    let begun = Instant::now();
    let mut bytes = Vec::with_capacity(MOST);
    let mut part = [0; MOST];
    while bytes.len() <= MOST {
        match pipe.read(&mut part) {
            Ok(0) => return DeviceState::decode(&bytes).ok_or(StateError::Foreign),
            Ok(read) => bytes.extend(part.iter().take(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = PATIENCE.saturating_sub(begun.elapsed());
                wait(&pipe, front_end, left)?
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StateError::Foreign)
}

/// A front-end's descriptor is a pipe.
pub(crate) fn check_pipe(pipe: &File) -> Result<(), StateError> {
    match sys::kind(pipe) {
        Kind::Pipe => Ok(()),
        _ => Err(StateError::NotAPipe),
    }
}

/// The same pipe, open for us alone and such that it keeps nobody waiting,
/// whatever its sender does with theirs.
fn ours(pipe: &File, how: &mut OpenOptions) -> Result<File, StateError> {
    check_pipe(pipe)?;
    let name = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    Ok(how.custom_flags(libc::O_NONBLOCK).open(name)?)
}

/// Waits until there is more to read, and no longer than there is a front-end
/// to read it for.
fn wait(pipe: &File, front_end: Option<&UnixStream>, left: Duration) -> Result<(), StateError> {
    let time = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
        tv_nsec: left.subsec_nanos().into(),
    };
    let more = PollFd::new(pipe, PollFlags::IN);
    // Where there is none, the pipe is looked at twice.
    let gone = front_end.map_or_else(
        || PollFd::new(pipe, PollFlags::IN),
        |socket| PollFd::new(socket, PollFlags::RDHUP),
    );
    let mut fds = [more, gone];
    match poll(&mut fds, Some(&time)) {
        Ok(0) => Err(StateError::Late),
        Ok(_) if fds[0].revents().is_empty() => {
            Err(io::Error::from(io::ErrorKind::ConnectionAborted).into())
        }
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn state() -> DeviceState {
        DeviceState {
            capacity: 0x1234_5678,
            serial: *b"serial of twenty.\0\0\0",
            writeback: true,
            bases: vec![7, 65535, 0],
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_nothing_else_is() {
        let bytes = state().encode();
        assert_eq!(bytes.len(), HEAD + 6);
        assert_eq!(DeviceState::decode(&bytes), Some(state()));
        for short in 0..bytes.len() {
            assert_eq!(DeviceState::decode(&bytes[..short]), None, "{short}");
        }
        for at in 0..8 {
            let mut foreign = bytes.clone();
            foreign[at] ^= 1;
            assert_eq!(DeviceState::decode(&foreign), None);
        }
    }

    #[test]
    fn a_longer_head_of_a_later_version_is_skipped() {
        let mut bytes = state().encode();
        bytes[8] = 2;
        bytes[10] = u8::try_from(HEAD).unwrap() + 4;
        for _ in 0..4 {
            bytes.insert(HEAD, 0xee);
        }
        assert_eq!(DeviceState::decode(&bytes), Some(state()));
    }

    #[test]
    fn only_a_disk_that_is_the_same_takes_it() {
        let here = state();
        let with = |change: fn(&mut DeviceState)| {
            let mut saved = state();
            change(&mut saved);
            here.takes(&saved)
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|saved| saved.bases.truncate(1)).is_ok());
        assert!(matches!(
            with(|saved| saved.capacity += 1),
            Err(StateError::Capacity(..))
        ));
        assert!(matches!(
            with(|saved| saved.serial[0] = 0),
            Err(StateError::Serial)
        ));
        assert!(matches!(
            with(|saved| saved.bases.push(0)),
            Err(StateError::Rings(4, 3))
        ));
    }

    #[test]
    fn a_state_is_waited_for_no_longer_than_its_front_end_is_there() {
        let start = Instant::now();
        let (reader, writer) = io::pipe().unwrap();
        let [pipe, _held] = [OwnedFd::from(reader), OwnedFd::from(writer)].map(File::from);
        let (front_end, back_end) = UnixStream::pair().unwrap();
        drop(front_end);
        let loaded = DeviceState::load(pipe, Some(back_end));
        assert!(matches!(loaded, Err(StateError::Host(_))), "{loaded:?}");
        // The wrong end, and the only one there is.
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let loaded = DeviceState::load(OwnedFd::from(writer).into(), None);
        assert!(matches!(loaded, Err(StateError::Foreign)), "{loaded:?}");
        assert!(start.elapsed() < PATIENCE);
    }

    #[test]
    fn nobody_is_waited_for() {
        let (end, pipe) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        let mut times = 0;
        while state().save(pipe.try_clone().unwrap()).is_ok() {
            times += 1;
        }
        assert!(times > 1);
        drop(end);
        let file = tempfile::tempfile().unwrap();
        let copy = file.try_clone().unwrap();
        assert!(matches!(state().save(copy), Err(StateError::NotAPipe)));
        assert!(matches!(
            DeviceState::load(file, None),
            Err(StateError::NotAPipe)
        ));
    }
}
