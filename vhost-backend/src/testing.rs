//! What tests and fuzz targets use: a front-end and a driver in one process,
//! and a disk in memory.

// Fuzz targets use less of these than the tests.
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod fake;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod guest;
