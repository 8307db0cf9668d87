//! What is asked of the host: system calls, protection from its memory
//! pressure, logs, sockets.

pub mod allocations;
pub mod hardening;
pub mod log_queue;
pub mod logging;
pub mod socket;
pub mod sys;
