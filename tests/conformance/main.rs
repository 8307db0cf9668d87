//! The process on a real socket, against a front-end and a driver without a
//! guest. Names begin with the rows of the conformance list that they prove.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod change;
mod command_line;
mod defaults;
mod device;
mod disk;
mod fairness;
mod huge_pages;
mod index;
mod layout;
mod lifecycle;
mod limits;
mod lines;
mod memory;
mod offer;
mod order;
mod regions;
mod ring;
mod session;
mod start;
