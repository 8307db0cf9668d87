//! The limits that a process begins with.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhost_backend::{GroupError, LimitKey, Limits};

use crate::options::config::LimitOptions;

/// Why the file of a group cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// It is no group's.
    #[error("--limit-group {path}: {source}", path = path.display())]
    Group {
        /// As given.
        path: PathBuf,
        /// Why.
        source: GroupError,
    },
    /// The host refuses it.
    #[error(
        "--limit-group {path}: {source}: give a file, or the name of a new one, that this user may read and write",
        path = path.display()
    )]
    Open {
        /// As given.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
}

/// Makes the limits that are asked for; those that were `handed` over instead,
/// as an operator may have changed them.
///
/// # Errors
/// The group's file cannot be used.
pub(crate) fn begin(
    options: &LimitOptions,
    handed: Option<Vec<(LimitKey, u64)>>,
) -> Result<Arc<Limits>, LimitError> {
    let Some(path) = &options.group else {
        let limits = Limits::default();
        limits.change(handed.as_ref().unwrap_or(&options.values));
        return Ok(Arc::new(limits));
    };
    let file = open(path).map_err(|source| LimitError::Open {
        path: path.clone(),
        source,
    })?;
    let limits = Limits::in_group(file).map_err(|source| LimitError::Group {
        path: path.clone(),
        source,
    })?;
    // The group keeps its limits while one of its members is replaced.
    if handed.is_none() && !options.values.is_empty() {
        limits.change(&options.values);
    }
    Ok(Arc::new(limits))
}

/// Waits for nobody, and follows no link that another user may have put there.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o660)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)
}
