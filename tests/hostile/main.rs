//! What a guest, a front-end, an operator or a disk that means harm can do, and
//! what it cannot: the process lives, and serves the next front-end as before.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod abandoned;
mod cases;
mod control_clients;
mod foreign_files;
mod fuse;
mod liveness;
mod log_floods;
mod long_chains;
mod looked_after;
mod lost_memory;
mod metrics_clients;
mod orphans;
mod pinned_memory;
mod regions;
mod sandbox;
mod sandbox_missing;
mod served;
mod silence;
mod start_paths;
mod stuck_eventfd;
mod suite;
