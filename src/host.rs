//! What is asked of the host: system calls, protection from its memory
//! pressure, logs, sockets, and what is given up of it (the sandbox).

pub mod allocations;
pub mod bar;
pub(crate) mod feed;
pub(crate) mod hardening;
pub(crate) mod headroom;
mod journal;
pub mod keeper;
pub(crate) mod limits;
pub(crate) mod log_budget;
pub(crate) mod log_queue;
pub mod logging;
pub(crate) mod part;
pub(crate) mod reach;
pub(crate) mod sandbox;
pub(crate) mod socket;
pub(crate) mod switches;
pub(crate) mod sys;
