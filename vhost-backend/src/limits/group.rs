//! The file by which processes share limits.
//!
//! It holds numbers, each by itself, that are read and written atomically, and
//! no lock: a process that is killed leaves nothing behind. All zeros is a
//! group without limits. Others may write there what they like, truncate the
//! file, or take it away: what is read is a rate, whatever it is, or a time
//! that is believed within bounds; a page that is lost reads as zeros, and is
//! used no more.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::key::KINDS;
use crate::memory::backing::{Backing, SharedError};
use crate::memory::shared::Shared;

/// Bytes of the file.
const SIZE: u64 = 4096;
/// The first word of a file of this form: "extlim" and its version, 1.
const FORM: u64 = u64::from_ne_bytes(*b"extlim\0\x01");

/// Why a file is no group's.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Whose pages may have to wait for a disk.
    #[error(
        "lies on a disk, which could make requests wait: put it on a tmpfs, such as /run or /dev/shm"
    )]
    OnDisk,
    /// It was something else before.
    #[error("is no group's file of this version: give an empty or new file")]
    Form,
    /// The host refuses it.
    #[error("{0}")]
    Host(String),
}

/// One limit of the group. A line of the cache for each.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry {
    /// Per second; 0: no limit.
    pub rate: AtomicU64,
    /// 0: the least.
    pub burst: AtomicU64,
    /// Up to when its time was taken.
    pub until: AtomicU64,
}

/// What is in the file.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Page {
    form: AtomicU64,
    /// Another one after each change of a limit.
    pub changes: AtomicU64,
    pub entries: [Entry; KINDS],
}

const _: () = assert!(size_of::<Page>() as u64 <= SIZE);

/// A group's file, mapped.
#[derive(Debug)]
pub(crate) struct Group {
    mapped: Shared,
}

impl Group {
    /// Uses this file, and makes an empty one a group's.
    pub(crate) fn join(file: File) -> Result<Self, GroupError> {
        let host = |error: std::io::Error| GroupError::Host(error.to_string());
        let backing = match Backing::of(&file) {
            Err(SharedError::NotAFile) => {
                return Err(GroupError::Host("is no regular file".to_owned()));
            }
            Err(SharedError::Elsewhere) => return Err(GroupError::OnDisk),
            other => other.map_err(|error| GroupError::Host(error.to_string()))?,
        };
        if !backing.in_memory {
            return Err(GroupError::OnDisk);
        }
        if backing.len == 0 {
            // Another one may do the same at this moment.
            file.set_len(SIZE).map_err(host)?;
        }
        if file.metadata().map_err(host)?.size() != SIZE {
            return Err(GroupError::Form);
        }
        let mapped =
            Shared::map_apart(file, SIZE).map_err(|error| GroupError::Host(error.to_string()))?;
        let group = Self { mapped };
        let form = &group.page().form;
        let (order, or) = (Ordering::AcqRel, Ordering::Acquire);
        match form.compare_exchange(0, FORM, order, or) {
            Ok(_) | Err(FORM) if !group.is_lost() => Ok(group),
            _ => Err(GroupError::Form),
        }
    }

    /// What is in it, or zeros.
    pub(crate) fn page(&self) -> &Page {
        // SAFETY: `SIZE` bytes are mapped there, at the start of a page, as
        // long as this lives: the file's, or zeros in their place. Everybody
        // accesses them as atomics, of which any value is valid.
        unsafe { &*self.mapped.at(0).cast::<Page>() }
    }

    /// It cannot be reached any more: what was read since may be zeros.
    pub(crate) fn is_lost(&self) -> bool {
        self.mapped.is_lost()
    }
}
