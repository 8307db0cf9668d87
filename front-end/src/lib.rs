//! A vhost-user front-end and a virtio-blk driver without a guest: for tests
//! that look at a back-end from outside, and for making load.
//!
//! It shares no code with the back-end, so that a mistake of one side is not
//! repeated by the other. A [`Session`] speaks to the back-end as QEMU or
//! cloud-hypervisor do, over a [`Connection`] that can also send anything
//! else. A [`Driver`] puts requests into a [`Ring`] in [`GuestMemory`]; below
//! it, a [`RingMemory`] gives raw access to what the device sees.
//!
//! Addresses are guest physical unless named `user`; offsets and lengths are
//! bytes, sectors always 512 bytes.
#![warn(unreachable_pub)]

pub mod codes;
mod connection;
mod driver;
mod error;
mod layout;
pub mod load;
mod memory;
mod process;
mod requests;
mod ring;
mod ring_memory;
mod session;
mod state;
mod sys;

pub use connection::{Connection, Message};
pub use driver::{Done, Driver, Op, Segment, Setup};
pub use error::{Error, Result};
pub use layout::{Block, Cuts};
pub use memory::{GuestMemory, Place, Region};
pub use process::{Daemon, LIMIT, limit, set_limit};
pub use requests::{Inflight, RingUsers};
pub use ring::{Buffer, Ring, Tables, Used};
pub use ring_memory::{Addresses, Descriptor, RingMemory};
pub use session::{Like, Session, Wanted};
pub use sys::wait_readable;
