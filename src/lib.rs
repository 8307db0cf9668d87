//! The process `extentd`: it opens an image, offers it through
//! [`vhost_backend`], and is looked after by signals and a control socket.
//! The library exists for its two programs, `extentd` and `extentctl`.

pub mod advice;
pub mod allocations;
pub mod args;
pub mod block_io;
pub mod bounce;
pub mod byte_range;
pub mod close_watch;
pub mod config;
pub mod control;
pub mod disk;
pub mod disk_path;
pub mod engine;
pub mod guard;
pub mod handover;
pub mod hardening;
pub mod image_lock;
pub mod image_map;
pub mod log_queue;
pub mod logging;
pub mod lookout;
pub mod metrics;
pub mod metrics_listener;
pub mod operator;
pub mod pin;
pub mod planner;
pub mod prepare;
pub mod prepare_command;
pub mod progress;
pub mod serve;
pub mod signals;
pub mod size;
pub mod socket;
pub mod statistics;
pub mod survey;
pub mod swap;
pub mod sys;
