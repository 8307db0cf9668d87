//! What an operator sees and says: `extentctl` against a real process, on a
//! real image in an ext4 on a loop device where the disk path matters.
//! `EXTENTD_TEST_DIR` names the folder for images, `EXTENTD` another binary.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod rig;

mod advice;
mod answers;
mod config_file;
mod counters;
mod crowd;
mod events;
mod io_path;
mod map;
mod packaging;
mod quiesce;
mod several;
mod socket;
mod usage;
mod waiting;
