//! `extentd`: serves a disk image to a virtual machine as a vhost-user-blk
//! back-end.

use std::io::{self, Write};
use std::process::ExitCode;

use extentd::host::allocations::{self, Counting};
use extentd::host::keeper;
use extentd::host::logging;
use extentd::options::{settings, usage};
use extentd::process::activation::Activation;
use extentd::process::serve;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    let asked = match settings::parse() {
        Ok(asked) => asked,
        Err(status) => return status,
    };
    if asked.args.print_capabilities {
        return print_capabilities();
    }
    allocations::watch_over_start();
    logging::init();
    logging::show(asked.args.log_level.map(Into::into));
    logging::end_on_panic(|backtrace| keeper::look(move || backtrace.to_string()));
    let activation = Activation::from_env();
    let config = match asked.args.into_config(&activation.sockets) {
        Ok(config) => config,
        Err(error) => return fail(&error, ExitCode::from(usage::WRONG)),
    };
    match serve::run(&config, asked.settings, activation) {
        Ok(()) => {
            logging::finish();
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error, ExitCode::FAILURE),
    }
}

/// QEMU's docs/interop/vhost-user.json: what tools may ask of a back-end.
fn print_capabilities() -> ExitCode {
    let capabilities =
        serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] });
    match writeln!(io::stdout(), "{capabilities:#}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, ExitCode::FAILURE),
    }
}

/// The line is for people whatever the log shows.
fn fail(error: &dyn std::error::Error, status: ExitCode) -> ExitCode {
    logging::tell(&format!("extentd: {error}"));
    logging::finish();
    status
}
