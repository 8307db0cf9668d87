//! `extentctl`: talks to the control socket of a running `extentd`.

mod advise;
mod ask;
mod backups;
mod bar;
mod cli;
mod commands;
mod differ;
mod disks;
mod events;
mod exporter;
mod extents;
mod heat;
mod latency;
mod live;
#[cfg(test)]
mod manual;
mod output;
mod picture;
mod queues;
mod rates;
mod screen_svg;
mod snapshot;
mod status;
mod strip;
mod svg;
mod table;
mod together;
mod top;
mod unsharing;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use clap::CommandFactory;
use extentd::options::usage;
use extentd::protocol::{Advice, Request};

use crate::advise::About;
use crate::cli::{Args, Command};
use crate::commands::View;
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
        Command::Diff(command) => {
            if let Some(to) = &command.to {
                return status(&command.snapshots(to, args.json));
            }
        }
        Command::Backup(command) => return status(&command.run(args.json)),
        Command::Restore(command) => return status(&command.run(args.json)),
        Command::Clone(command) => return status(&command.run(args.json)),
        Command::Unshare(command) => {
            if let Some(image) = &command.image {
                return status(&command.run(image, args.json));
            }
        }
        Command::Exporter { listen, timeout } => {
            return status(&exporter::serve(&args, listen, *timeout));
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
    status(&run(&args, &paths))
}

fn status(result: &Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ended(failure),
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
    let advised = |advice: Advice, about: &About<'_>| {
        let alone = paths.len() == 1 && !args.json;
        disks::show_all(paths, by_name, args.json, |path| {
            advise::give(path, advice, about, alone)
        })
    };
    match &args.command {
        // These are done already.
        Command::Prepare(_)
        | Command::Completions { .. }
        | Command::Exporter { .. }
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Clone(_) => Ok(()),
        Command::Info { config: true } => show(Request::Options {}),
        Command::Info { config: false } => show(Request::Info {}),
        Command::Selftest => show(Request::Selftest {}),
        Command::Resize { bytes } => show(Request::Resize { bytes: *bytes }),
        Command::Stats => show(Request::Stats {}),
        Command::Advise {
            advice,
            range,
            from,
        } => {
            let about = match (range, from) {
                (Some(range), _) => About::Range(range),
                (None, Some(file)) => About::From(file),
                // The command line asks for one of them.
                (None, None) => return Ok(()),
            };
            advised(*advice, &about)
        }
        Command::Populate { range } => advised(Advice::Populate, &About::Range(range)),
        Command::LogLevel { level } => show(Request::LogLevel { level: *level }),
        Command::IoPath { path } => show(Request::IoPath { path: *path }),
        Command::Quiesce { hold, within, sync } => {
            let quiesce = Request::Quiesce {
                hold_ms: hold * 1000,
                within_ms: within * 1000,
                sync: *sync,
            };
            let held = Mutex::new(Vec::new());
            let all = disks::show_all(paths, by_name, args.json, |path| {
                let shown = commands::request(&quiesce, path)?;
                held.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((path.to_owned(), together::number(&shown.json)?));
                Ok(shown)
            });
            if all.is_err() && paths.len() > 1 {
                // All or none; whoever else holds one keeps it.
                together::release(&held.into_inner().unwrap_or_else(PoisonError::into_inner));
                output::complain("quiesce: not all can be held, so all of them go on");
            }
            all
        }
        Command::Resume { hold } => show(Request::Resume { hold: *hold }),
        Command::Snapshots => show(Request::Snapshots {}),
        Command::Snapshot {
            name: Some(name),
            within,
            ..
        } => snapshot::take(paths, by_name, args.json, name, within * 1000),
        // The command line asks for one of them.
        Command::Snapshot { name: None, .. } => show(Request::SnapshotCancel {}),
        Command::Unshare(command) if command.cancel => show(Request::UnshareCancel {}),
        Command::Unshare(command) => {
            command.check()?;
            let draws = paths.len() == 1 && !args.json;
            disks::show_all(paths, by_name, args.json, |path| {
                unsharing::begin(path, command.rate, command.wait, draws)
            })
        }
        Command::Limits(set) => show(Request::Limits { set: *set }),
        Command::OnError { enospc, io_error } => show(Request::OnError {
            enospc: *enospc,
            io_error: *io_error,
        }),
        Command::Retry => show(Request::Retry {}),
        Command::Metrics => disks::show_all(paths, by_name, args.json, commands::exposition),
        Command::Map {
            range,
            limit,
            svg,
            draw,
            heat,
        } => {
            let view = match svg {
                Some(file) => View::Svg(file),
                None if *draw || (heat.is_some() && !args.json) => View::Strip,
                None => View::List(*limit),
            };
            disks::show_all(paths, by_name, args.json, |path| {
                commands::map(path, range, view, *heat)
            })
        }
        Command::Events(wanted) => events::watch(paths, by_name, wanted, args.json),
        Command::Diff(command) => match paths.first() {
            Some(path) => command.live(path, args.json),
            None => Ok(()),
        },
        Command::Top {
            interval,
            count,
            once,
            svg,
        } => match (paths.first(), svg) {
            (Some(path), Some(file)) => {
                screen_svg::watch(path, *interval, count.unwrap_or(2), file)?;
                let name = output::harmless(&file.display().to_string());
                output::print(&format!("drawn to {name}\n"))
            }
            (Some(path), None) if !args.json && !once && io::stdout().is_terminal() => {
                live::watch(path, *interval, *count)
            }
            (Some(path), None) => {
                top::watch(path, *interval, count.or(once.then_some(1)), args.json)
            }
            (None, _) => Ok(()),
        },
    }
}
