//! `extentd-load`: load on a vhost-user-blk back-end, without a guest.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use front_end::load::{Args, Client, LoadError, LoadResult, Report};

/// As clap does for single options.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            let _ = writeln!(io::stderr(), "extentd-load: {}", in_one_line(&error));
            return ExitCode::from(USAGE);
        }
        Err(help) => help.exit(),
    };
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

/// `-1` is a wrong value of the option before it, and no option of its own.
fn parse() -> Result<Args, clap::Error> {
    let mut command = Args::command().mut_args(|arg| {
        let takes = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes)
    });
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// What clap says before it repeats the usage.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or(&text);
    let said = said.split("\n\nFor more").next().unwrap_or(said);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn run(args: &Args) -> LoadResult<Report> {
    let mut client = Client::connect(&args.socket_path, args.plan())?;
    let report = client.run()?;
    client.close()?;
    Ok(report)
}
