//! The process on a real socket, against a front-end and a driver without a
//! guest. Names begin with the rows of the conformance list that they prove.

#![allow(clippy::unwrap_used)]

mod device;
mod disk;
mod layout;
mod memory;
mod ring;
mod session;
mod start;
