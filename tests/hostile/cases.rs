//! The attacks, family by family. A row is a sentence and what it does:
//! see [`case`](crate::suite::case).

mod connections;
mod control;
mod descriptors;
mod dirty;
mod inflight;
mod kinds;
mod memory;
mod messages;
mod metrics;
mod order;
mod racing;
mod requests;
mod rings;
mod state;
pub mod table;

use crate::suite::Case;

/// All of them.
pub fn all() -> Vec<Case> {
    let families: [fn() -> Vec<Case>; 13] = [
        messages::cases,
        order::cases,
        descriptors::cases,
        memory::cases,
        rings::cases,
        requests::cases,
        racing::cases,
        inflight::cases,
        dirty::cases,
        state::cases,
        connections::cases,
        control::cases,
        metrics::cases,
    ];
    families.iter().flat_map(|family| family()).collect()
}

/// Those that a front-end can try which has nothing but its socket, and which
/// do not count on being served themselves.
pub fn of_a_front_end() -> Vec<Case> {
    let families: [fn() -> Vec<Case>; 2] = [messages::alone, descriptors::cases];
    families.iter().flat_map(|family| family()).collect()
}
