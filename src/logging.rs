//! The log: lines on standard error.

use std::io::Write;

use log::Level;

/// Sends the log to standard error; `RUST_LOG` sets how much, `info` without
/// it. Lines carry no time: a service manager adds it, a terminal needs none.
pub fn init() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format(|out, record| {
            let message = record.args();
            match record.level() {
                Level::Info => writeln!(out, "extentd: {message}"),
                Level::Warn => writeln!(out, "extentd: warning: {message}"),
                Level::Error => writeln!(out, "extentd: error: {message}"),
                Level::Debug | Level::Trace => {
                    writeln!(out, "extentd: {}: {message}", record.target())
                }
            }
        })
        .init();
}
