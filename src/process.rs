//! The life of the process: start, signals, handing a disk over, and the
//! preparation of an image as a program of its own.

pub mod activation;
pub(crate) mod confine;
mod descriptor_store;
pub(crate) mod handover;
mod limits;
pub mod prepare_command;
pub mod serve;
pub mod serve_nbd;
pub(crate) mod service_manager;
pub(crate) mod signals;
pub(crate) mod socket_files;
pub mod stoppable;
pub(crate) mod watch;
