//! `extentd-nbd`: serves a snapshot to readers of the NBD protocol.

mod args;
#[cfg(test)]
mod manual;

use std::process::ExitCode;

use clap::CommandFactory;
use extentd::host::keeper;
use extentd::host::logging;
use extentd::options::usage;
use extentd::process::serve_nbd;
use listenfd::ListenFd;

use crate::args::Args;

fn main() -> ExitCode {
    let args: Args = match usage::parse() {
        Ok(args) => args,
        Err(status) => return status,
    };
    logging::name("extentd-nbd");
    logging::init();
    logging::show(args.log_level.map(Into::into));
    logging::end_on_panic(|backtrace| keeper::look(move || backtrace.to_string()));
    let config = match args.into_config(&activated()) {
        Ok(config) => config,
        Err(line) => return usage::complain(&Args::command(), line),
    };
    let ended = serve_nbd::run(&config);
    if let Err(error) = &ended {
        // The line is for people whatever the log shows.
        logging::tell(&format!("extentd-nbd: {error}"));
    }
    logging::finish();
    ended.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// The sockets that a service manager has handed over.
fn activated() -> Vec<i32> {
    let mut sockets = ListenFd::from_env();
    (0..sockets.len())
        .filter_map(|index| sockets.take_raw_fd(index).ok().flatten())
        .collect()
}
