//! What the process promises of data: that it is stable when it says so, that
//! blocks are freed, that zeros read as zeros, on devices and file systems of
//! all kinds and by both engines. Names begin with the rows of the conformance
//! list that they prove.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod blocks;
mod engine;
mod flush;
mod freeing;
mod lo;
mod stopping;
