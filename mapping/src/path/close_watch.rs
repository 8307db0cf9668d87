//! Notices that somebody closes an image: that is the time to ask for it
//! again. Asked for only while they have it, so that it costs nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// Watches for one file being closed, when it is told to.
#[derive(Debug)]
pub(super) struct CloseWatch {
    inotify: OwnedFd,
    watch: Option<i32>,
}

impl CloseWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// No descriptor, or too many instances (`fs.inotify.max_user_instances`).
    pub(super) fn new() -> io::Result<CloseWatch> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(CloseWatch {
            inotify,
            watch: None,
        })
    }

    /// Begins to watch an open file, or goes on; whether it begins.
    ///
    /// # Errors
    /// Too many watches, or no /proc.
    pub(super) fn begin(&mut self, file: &File) -> io::Result<bool> {
        if self.watch.is_some() {
            return Ok(false);
        }
        // The file itself, whatever its name is by now.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let closed = WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE;
        self.watch = Some(inotify::add_watch(&self.inotify, path, closed)?);
        Ok(true)
    }

    /// Watches nothing any more, and forgets what it has seen.
    pub(super) fn end(&mut self) {
        if let Some(watch) = self.watch.take() {
            // It has gone by itself if the file has.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
        self.take();
    }

    /// Readable when somebody has closed the file.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Resets [`event`](Self::event); whether somebody has closed the file.
    pub(super) fn take(&self) -> bool {
        let mut seen = false;
        // What is in the events does not matter: there is one file.
        let mut events = [0; 512];
        while rustix::io::read(&self.inotify, &mut events).is_ok_and(|bytes| bytes > 0) {
            seen = true;
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    #[test]
    fn a_close_is_seen_between_begin_and_end_and_nothing_else_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().write(true).open(file.path()).unwrap();
        let mut watch = CloseWatch::new().unwrap();
        drop(open());
        assert!(!watch.take());
        assert!(watch.begin(file.as_file()).unwrap());
        assert!(!watch.begin(file.as_file()).unwrap());
        let other = open();
        other.set_len(4096).unwrap();
        assert!(!watch.take());
        drop(other);
        let mut polls = [PollFd::new(&watch.inotify, PollFlags::IN)];
        assert_eq!(
            rustix::event::poll(&mut polls, Some(&Timespec::default())),
            Ok(1)
        );
        assert!(watch.take());
        assert!(!watch.take());
        watch.end();
        drop(open());
        assert!(!watch.take());
    }
}
