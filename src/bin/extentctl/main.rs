//! `extentctl`: talks to the control socket of a running `extentd`.

mod ask;
mod cli;
mod commands;
mod disks;
mod events;
mod extents;
mod output;
mod status;
mod svg;
mod table;
mod top;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::CommandFactory;
use extentd::options::usage;
use extentd::protocol::Request;

use crate::cli::{Args, Command};
use crate::status::Failure;

fn main() -> ExitCode {
    let args: Args = match usage::parse() {
        Ok(args) => args,
        Err(status) => return status,
    };
    match &args.command {
        Command::Prepare(command) => return command.run(args.json),
        Command::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(*shell, &mut command, "extentctl", &mut io::stdout());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let wrong = |line: &str| usage::complain(&Args::command(), line);
    let paths = match disks::named(&args) {
        Ok(Some(paths)) => paths,
        Ok(None) => return wrong("give the --control-path of a running extentd, or --all"),
        Err(failure) => return ended(&failure),
    };
    if paths.len() > 1
        && let Some(name) = args.command.of_one_disk()
    {
        return wrong(&format!("{name} is for one disk: give one --control-path"));
    }
    match run(&args, &paths) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ended(&failure),
    }
}

/// What has failed is said, if it was not.
fn ended(failure: &Failure) -> ExitCode {
    if !failure.line.is_empty() {
        output::complain(&failure.line);
    }
    failure.status.into()
}

fn run(args: &Args, paths: &[PathBuf]) -> Result<(), Failure> {
    // Whoever asks for all has answers of the same form for one.
    let by_name = args.all.is_some() || paths.len() > 1;
    let show = |request: Request| {
        disks::show_all(paths, by_name, args.json, |path| {
            commands::request(&request, path)
        })
    };
    match &args.command {
        // These two ask nobody.
        Command::Prepare(_) | Command::Completions { .. } => Ok(()),
        Command::Info { config: true } => show(Request::Options {}),
        Command::Info { config: false } => show(Request::Info {}),
        Command::Selftest => show(Request::Selftest {}),
        Command::Resize { bytes } => show(Request::Resize { bytes: *bytes }),
        Command::Stats => show(Request::Stats {}),
        Command::Advise { advice, range } => show(Request::Advise {
            advice: *advice,
            range: *range,
        }),
        Command::IoPath { path } => show(Request::IoPath { path: *path }),
        Command::Quiesce { hold, within, sync } => {
            let held = show(Request::Quiesce {
                hold_ms: hold * 1000,
                within_ms: within * 1000,
                sync: *sync,
            });
            if held.is_err() && paths.len() > 1 {
                // All or none: those that are held are let go.
                for path in paths {
                    let _ = commands::request(&Request::Resume {}, path);
                }
                output::complain("quiesce: not all can be held, so all of them go on");
            }
            held
        }
        Command::Resume => show(Request::Resume {}),
        Command::Limits(set) => show(Request::Limits { set: *set }),
        Command::OnError { enospc, io_error } => show(Request::OnError {
            enospc: *enospc,
            io_error: *io_error,
        }),
        Command::Retry => show(Request::Retry {}),
        Command::Metrics => disks::show_all(paths, by_name, args.json, commands::exposition),
        Command::Map {
            range,
            svg: Some(file),
            ..
        } => disks::show_all(paths, by_name, args.json, |path| {
            commands::draw(path, *range, file)
        }),
        Command::Map { range, limit, .. } => disks::show_all(paths, by_name, args.json, |path| {
            commands::list(path, *range, *limit)
        }),
        Command::Events(wanted) => events::watch(paths, by_name, wanted, args.json),
        Command::Top { interval, count } => match paths.first() {
            Some(path) => top::watch(path, *interval, *count, args.json),
            None => Ok(()),
        },
    }
}
