//! Its manual page and completions are what `--help` says.

use std::path::Path;

use clap::CommandFactory;
use rig::manual::{self, Rest};

use crate::args::Args;

fn at(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_manual_page_is_what_help_says() {
    let rest = Rest {
        section: 1,
        chapters: &[],
        see_also: &["extentctl(1)", "nbdinfo(1)", "qemu-img(1)", "extentd(8)"],
    };
    let page = manual::page(Args::command(), env!("CARGO_PKG_VERSION"), &rest);
    manual::keep(&at("docs/man/extentd-nbd.1"), &page);
}

#[test]
fn completions_are_those_of_the_options() {
    let folder = at("packaging/completions");
    manual::keep_completions(&folder, "extentd-nbd", &mut Args::command());
}
