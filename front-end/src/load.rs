//! Load on a back-end, without a guest: patterns, depth, queues, and what
//! they took.
//!
//! A [`Plan`] says what to do, a [`Client`] does it, a [`Report`] tells. In
//! between, nothing allocates, and nothing calls the system but kicks and,
//! where the plan says so, waits for calls: so that the client is leaner than
//! what it measures.

mod args;
mod churn;
mod client;
mod course;
mod error;
mod flow;
mod lane;
mod pattern;
mod plan;
mod plot;
mod report;
mod results;
mod run;
mod stamp;
mod table;
mod tally;

pub use args::Args;
pub use client::Client;
pub use course::Interval;
pub use error::{LoadError, LoadResult};
pub use pattern::Pattern;
pub use plan::{Extent, Plan, Waiting};
pub use plot::plot;
pub use report::Report;
pub use results::Results;
pub use table::table;
