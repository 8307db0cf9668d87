//! Manual pages, completions and docs/options.md have the options that
//! `--help` has, and no others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use rig::manual::{self, Rest, keep, options_in};

use extentd::options::args::Args as ExtentdArgs;
use front_end::load::Args as LoadArgs;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn at(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(at(name)).unwrap()
}

const STATUS: &str = "\
0 after SIGTERM or SIGINT; 1 where it could not start or go on; 2 for a wrong command line. What went wrong is one line on standard error.";

const SIGNALS: &str = "\
SIGTERM, SIGINT: what was fetched is answered, then the process ends. A second one, half a second later or more, ends it at once.

SIGUSR2: the process drains and becomes the binary that is installed by now, with the same listening socket and image.

SIGHUP: it looks at the size of the image, and reads the file of --config again.";

const FILES: &str = "\
/var/lib/extentd/NAME.img: the image of the unit extentd@NAME.service.

/etc/extentd/NAME.conf: its options, as EXTENTD_OPTIONS=...

/run/extentd/NAME.sock, /run/extentd/NAME.control: its sockets, for the front-end and for extentctl.

/usr/share/qemu/vhost-user/50-extentd.json: its description, for tools that look for a back-end.";

const ENVIRONMENT: &str = "\
RUST_LOG: how much is logged, where --log-level does not say it.

LISTEN_FDS, NOTIFY_SOCKET, WATCHDOG_USEC, JOURNAL_STREAM: what systemd gives: the socket, whom to tell that the process is ready and that its threads turn, and that lines of the log take a priority.";

#[test]
fn the_page_of_extentd_is_what_help_says() {
    let rest = Rest {
        section: 8,
        chapters: &[
            ("Exit status", STATUS),
            ("Signals", SIGNALS),
            ("Environment", ENVIRONMENT),
            ("Files", FILES),
        ],
        see_also: &[
            "extentctl(1)",
            "extentd.toml(5)",
            "extentd(7)",
            "qemu-system-x86_64(1)",
        ],
    };
    let page = manual::page(ExtentdArgs::command(), VERSION, &rest);
    keep(&at("docs/man/extentd.8"), &page);
}

const LOAD_STATUS: &str = "\
0 when all requests went well; 1 where the back-end or a check failed; 2 for a wrong command line.";

#[test]
fn the_page_of_the_load_generator_is_what_help_says() {
    let rest = Rest {
        section: 1,
        chapters: &[("Exit status", LOAD_STATUS)],
        see_also: &["extentd(8)"],
    };
    keep(
        &at("docs/man/extentd-load.1"),
        &manual::page(LoadArgs::command(), VERSION, &rest),
    );
}

const TOML: &str = "\
The file of --config of extentd(8). Its keys are the options of the command line without dashes: what has no value there is true or false here, a list is a list, and a number need not be in quotes. Relative paths begin where extentd was started. An option on the command line is in place of the one in the file. A key that is none is refused, and the nearest one named. The file has at most 64 KiB.

SIGHUP reads it again: other values of io-path, limit, log-level, on-enospc and on-io-error are in force at once, and the log names those that wait for a new start or for SIGUSR2. A file with a mistake changes nothing.";

const TOML_EXAMPLE: &str = "  socket-path = \"/run/extentd/data.sock\"
  control-path = \"/run/extentd/data.control\"
  blk-file = \"/var/lib/extentd/data.img\"
  num-queues = 4
  swap = \"best-effort\"
  lock = true

extentctl info --config prints the options that are in force in this form.";

#[test]
fn the_page_of_the_file_of_options_has_the_keys() {
    let rest = Rest {
        section: 5,
        chapters: &[("Example", TOML_EXAMPLE)],
        see_also: &["extentd(8)", "extentctl(1)"],
    };
    let page = manual::file_page(
        "extentd.toml",
        "options of extentd in a file",
        TOML,
        ExtentdArgs::command(),
        &["config", "print-capabilities", "version"],
        VERSION,
        &rest,
    );
    keep(&at("docs/man/extentd.toml.5"), &page);
}

const OVERVIEW: &str = "\
extentd(8) serves the disk of a virtual machine from a raw image or a block device. QEMU, libvirt, cloud-hypervisor and others connect to its socket as front-ends (vhost-user-blk); the guest sees a virtio-blk disk, and requests travel from its queues in shared memory to the host's disk, without a copy and without the page cache.

It keeps a map of where each piece of the image file lies on the block device, built as the guest touches it. A request whose extents are known goes to the device; all others go by the file. The device is used only on ext4 and XFS and under a lease on the image: whoever else opens it waits until raw requests have ended. On other file systems all requests go by the file.

One process serves one disk. extentctl(1) asks it over its control socket and changes what it does; extentd-load(1) is a front-end that makes load without a guest, and overwrites what it writes to.";

const START: &str = "\
An image of 20 GiB, served by the unit of the package:

  truncate -s 20G /var/lib/extentd/vm1.img
  systemctl enable --now extentd@vm1.socket

A guest under QEMU, whose memory has to be shared with the back-end:

  qemu-system-x86_64 -machine q35,memory-backend=mem -m 4G
    -object memory-backend-memfd,id=mem,size=4G,share=on
    -chardev socket,id=c0,path=/run/extentd/vm1.sock,reconnect-ms=200
    -device vhost-user-blk-pci,chardev=c0

What is served, and which way requests go and why:

  extentctl --control-path /run/extentd/vm1.control info";

const CARE: &str = "\
Each is in its chapter of the documentation: a device that hangs, or a process that is stopped, for longer than the break time of leases (45 s) at the wrong moment; a client of an NFS server on this host that truncates the image; debugfs, dd or a forced mkfs on the device under it. Before fsfreeze give extentctl io-path file. Copies of an image in use are made by extentctl snapshot, or between quiesce and resume.";

#[test]
fn the_overview_is_there() {
    let rest = Rest {
        section: 7,
        chapters: &[
            ("Description", OVERVIEW),
            ("A first disk", START),
            ("What to mind", CARE),
            (
                "Documentation",
                "/usr/share/doc/extentd: operating.md first; troubleshooting.md explains lines of the log.",
            ),
        ],
        see_also: &[
            "extentctl(1)",
            "extentd-load(1)",
            "extentd.toml(5)",
            "extentd(8)",
        ],
    };
    let about = "disks of virtual machines through a map of extents";
    keep(
        &at("docs/man/extentd.7"),
        &manual::overview("extentd", about, VERSION, &rest),
    );
}

#[test]
fn completions_are_those_of_the_options() {
    let programs = [
        ("extentd", ExtentdArgs::command()),
        ("extentd-load", LoadArgs::command()),
    ];
    for (name, mut command) in programs {
        manual::keep_completions(&at("packaging/completions"), name, &mut command);
    }
}

/// What a program answers.
fn answer(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program:?} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The options that `--help` describes: those that lines begin with.
fn described(help: &str) -> BTreeSet<String> {
    let starts = |line: &&str| line.trim_start().starts_with('-');
    let first = |line: &str| options_in(line.trim_start().split("  ").next().unwrap());
    let mut all: BTreeSet<_> = help.lines().filter(starts).flat_map(first).collect();
    all.remove("help");
    all
}

/// The options that a page describes.
fn in_page(page: &str) -> BTreeSet<String> {
    let heads = page.split(".TP\n").skip(1);
    let heads = heads.filter_map(|part| part.lines().next());
    let heads = heads.filter(|head| head.contains("\\fB\\-"));
    heads.flat_map(options_in).collect()
}

#[test]
fn help_pages_and_options_md_have_the_same_options() {
    let help = described(&answer(&rig::extentd!(), &["--help"]));
    assert!(help.len() > 25, "{help:?}");
    assert_eq!(in_page(&read("docs/man/extentd.8")), help);

    let document = read("docs/options.md");
    let (daemon, client) = document.split_once("\n## extentctl").unwrap();
    let rows = daemon.lines().filter(|line| line.starts_with("| `--"));
    let mut rows: BTreeSet<_> = rows
        .flat_map(|row| options_in(row.split(" | ").next().unwrap()))
        .collect();
    rows.insert("version".to_owned());
    assert_eq!(rows, help);

    let extentctl = rig::extentctl!();
    let all = answer(&extentctl, &["--help"]);
    let mut help = described(&all);
    let commands = all.split("\nCommands:\n").nth(1).unwrap();
    let commands = commands.split("\n\n").next().unwrap().lines();
    let commands = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = commands.filter_map(|line| line.split_whitespace().next());
    let names: Vec<_> = names.filter(|name| *name != "help").collect();
    assert!(names.len() > 20, "{names:?}");
    let page = read("docs/man/extentctl.1");
    for name in names {
        help.extend(described(&answer(&extentctl, &[name, "--help"])));
        assert!(
            page.contains(&format!(".SS \"{}", name.replace('-', "\\-"))),
            "{name}"
        );
    }
    assert_eq!(in_page(&page), help);
    // All of them are somewhere in the document.
    let mentioned = options_in(client);
    let missing: Vec<_> = help
        .iter()
        .filter(|one| !mentioned.contains(*one) && *one != "version")
        .collect();
    assert!(
        missing.is_empty(),
        "docs/options.md lacks {missing:?} of extentctl"
    );
}

#[test]
fn the_pages_are_sound() {
    if Command::new("mandoc").arg("-V").output().is_err() {
        println!("SKIP: no mandoc here");
        return;
    }
    for entry in std::fs::read_dir(at("docs/man")).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(&path)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        // A page has no date, as it is made from the source alone.
        let lines = told.lines().filter(|line| !line.contains("missing date"));
        let lines: Vec<_> = lines.collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}

#[test]
fn options_that_a_text_names_are_found() {
    let text = "| `--one-two N`, `--three` | x--y ---- \\-\\-four, -- alone";
    let found: Vec<_> = options_in(text).into_iter().collect();
    assert_eq!(found, ["four", "one-two", "three"]);
    assert_eq!(
        described("      --one N  as --two\n  says --three\n").len(),
        1
    );
    assert_eq!(in_page(".TP\n\\fB\\-\\-one\\fR\nas \\-\\-two\n").len(), 1);
}
