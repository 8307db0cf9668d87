//! The way past the file system, proved from outside: the real process on
//! images in real file systems, while others use the host's files, fill its
//! disk, crash it, or kill the process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod attributes;
mod barriers;
mod break_time;
mod client;
mod cow_fork;
mod cow_mark;
mod crash;
mod cut_in_use;
mod deaf_guard;
mod dedupe;
mod disturb;
mod fast_commits;
mod foreign;
mod frozen;
mod guest_memory;
mod huge;
mod killed;
mod lane;
mod last_sectors;
mod length;
mod log_full;
mod no_inotify;
mod older_forms;
mod panics;
mod passes;
mod paused;
mod promises;
mod ragged_end;
mod raw_calls;
mod refusals;
mod requests;
mod served;
mod short_break;
mod shrinking;
mod stopped;
mod storm;
mod stress;
mod unread;
mod ways;
