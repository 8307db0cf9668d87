//! Its manual page is what `--help` says.

use std::path::Path;

use clap::CommandFactory;
use rig::manual::{self, Rest};

use crate::cli::Args;

#[test]
fn the_manual_page_is_what_help_says() {
    let rest = Rest {
        section: 1,
        chapters: &[
            (
                "Environment",
                "NO_COLOR: no colours, if it is set to anything. Without it colours go to terminals only.",
            ),
            (
                "Files",
                "/run/extentd: where --all looks for control sockets (*.control, *.ctl).",
            ),
        ],
        see_also: &["extentd(7)", "extentd(8)", "extentd.toml(5)"],
    };
    let page = manual::page(Args::command(), env!("CARGO_PKG_VERSION"), &rest);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man/extentctl.1");
    manual::keep(&path, &page);
}
