//! `extentd-bench-report`: turns the results of `bench.sh` into a table and
//! a picture.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use front_end::load::{Results, plot, table};

/// Sums up results of bench.sh as a Markdown table and an SVG picture.
#[derive(Debug, Parser)]
#[command(name = "extentd-bench-report", version, about)]
struct Args {
    /// The results: a line for each measurement
    results: PathBuf,

    /// Write the table here
    #[arg(long, value_name = "FILE")]
    markdown: PathBuf,

    /// Write the picture here
    #[arg(long, value_name = "FILE")]
    svg: PathBuf,

    /// What stands above both
    #[arg(long, default_value = "Back-ends compared")]
    title: String,

    /// A line for the table on how it was measured
    #[arg(long, default_value = "")]
    note: String,

    /// Whose figures the ratios refer to
    #[arg(long, value_name = "NAME", default_value = "qemu-storage-daemon")]
    reference: String,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is closed, the status has to do.
            let _ = writeln!(io::stderr(), "extentd-bench-report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let results = Results::parse(&std::fs::read_to_string(&args.results)?)?;
    let table = table(&results, &args.reference);
    let text = format!("## {}\n\n{}\n\n{table}", args.title, args.note);
    std::fs::write(&args.markdown, text)?;
    std::fs::write(&args.svg, plot(&results, &args.title))?;
    Ok(())
}
