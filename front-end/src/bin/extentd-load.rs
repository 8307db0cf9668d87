//! `extentd-load`: load on a vhost-user-blk back-end, without a guest.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use front_end::load::{Args, Client, LoadError, LoadResult, Report};

/// As clap does for single options.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let text = match run(&args) {
        Ok(report) if args.json => format!("{:#}", report.json()),
        Ok(report) => report.to_string(),
        Err(error) => {
            // Where standard error is closed, the status has to do.
            let _ = writeln!(io::stderr(), "extentd-load: {error}");
            let usage = matches!(error, LoadError::Plan(_));
            return if usage {
                ExitCode::from(USAGE)
            } else {
                ExitCode::FAILURE
            };
        }
    };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(args: &Args) -> LoadResult<Report> {
    let mut client = Client::connect(&args.socket_path, args.plan())?;
    let report = client.run()?;
    client.close()?;
    Ok(report)
}
