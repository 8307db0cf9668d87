//! The rules of this tree that no compiler keeps: how long a file may be, who
//! may import whom, where modules lie, where switches of tests are read, how
//! wide comments are, whether links lead somewhere. Each rule is shown to fail on a bad example.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use imports::{circles, code, rooms};
use security::proofs;
use troubleshooting::lines;

mod documents;
mod imports;
mod manual;
mod security;
mod troubleshooting;

/// Most lines of a file, and of one of tests.
const MOST_LINES: usize = 500;
const MOST_LINES_OF_TESTS: usize = 550;
/// Widest comments in columns, and in `mapping/`.
const WIDTH: usize = 100;
const WIDTH_OF_MAPPING: usize = 120;
/// Where switches of tests are read.
const SWITCHES: &str = "src/host/switches.rs";

/// Files by their paths from the root.
type Tree = BTreeMap<String, String>;
/// A rule, and what breaks it: one line each.
type Rule = fn(&Tree) -> Vec<String>;

fn tree() -> Tree {
    fn walk(root: &Path, folder: &Path, found: &mut Tree) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            if path.is_dir() {
                let last = path.file_name().unwrap();
                if last != "target" && last != ".git" && last != "corpus" && !path.is_symlink() {
                    walk(root, &path, found);
                }
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                found.insert(name.to_owned(), text);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Tree::new();
    walk(root, root, &mut found);
    found
}

fn sources(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    let files = tree.iter().map(|(name, text)| (&**name, &**text));
    files.filter(|(name, _)| name.ends_with(".rs"))
}

/// Of a program or library, and not only built for tests.
fn is_product(name: &str) -> bool {
    let in_source = name.starts_with("src/") || name.contains("/src/");
    in_source && !name.starts_with("tests/") && !is_tests(name)
}

fn is_tests(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    let folders = ["tests/", "/tests/", "/benches/"];
    file.ends_with("tests.rs")
        || name.starts_with(folders[0])
        || folders[1..].iter().any(|folder| name.contains(folder))
}

/// Files are short.
fn lengths(tree: &Tree) -> Vec<String> {
    let found = sources(tree).filter_map(|(name, text)| {
        let most = if is_tests(name) {
            MOST_LINES_OF_TESTS
        } else {
            MOST_LINES
        };
        let lines = text.lines().count();
        (lines > most).then(|| format!("{name} has {lines} lines: {most} are enough"))
    });
    found.collect()
}

/// Modules with children are a file beside a folder.
fn styles(tree: &Tree) -> Vec<String> {
    let found = sources(tree).filter(|(name, _)| is_product(name) && name.ends_with("/mod.rs"));
    found
        .map(|(name, _)| format!("{name}: name it as its folder"))
        .collect()
}

/// Modules lie where their names say: what several suites use is in the rig.
fn taken(tree: &Tree) -> Vec<String> {
    let markers = [concat!("#[pa", "th="), concat!(",pa", "th=\"")];
    let found = sources(tree).filter(|(_, text)| {
        let lines = text.lines().filter_map(|line| line.split("//").next());
        let dense: String = lines.flat_map(str::split_whitespace).collect();
        markers.iter().any(|marker| dense.contains(marker))
    });
    found
        .map(|(name, _)| format!("{name} takes a module from elsewhere"))
        .collect()
}

/// Switches of tests are read in one file.
fn switches(tree: &Tree) -> Vec<String> {
    let prefix = concat!("EXTENTD", "_TEST_");
    let found = sources(tree).filter(|(name, text)| {
        is_product(name) && *name != SWITCHES && code(text).contains(prefix)
    });
    found
        .map(|(name, _)| format!("{name} reads a switch of tests: {SWITCHES} is for that"))
        .collect()
}

/// Comments are not too wide, but for what cannot be broken.
fn widths(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, text) in sources(tree) {
        let most = if name.starts_with("mapping/") {
            WIDTH_OF_MAPPING
        } else {
            WIDTH
        };
        for (index, line) in text.lines().enumerate() {
            let comment = line.trim_start();
            let words = comment.trim_start_matches(['/', '!']).trim();
            let whole = words.starts_with(['`', '|']) || words.contains("://");
            if comment.starts_with("//") && line.chars().count() > most && !whole {
                broken.push(format!(
                    "{name}:{}: a comment wider than {most} columns",
                    index + 1
                ));
            }
        }
    }
    broken
}

/// As GitHub names the place of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
    kept.collect::<String>().replace(' ', "-")
}

/// Links of documents lead somewhere.
fn links(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (name, text) in tree.iter().filter(|(name, _)| name.ends_with(".md")) {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        for link in text.split("](").skip(1) {
            let Some((link, _)) = link.split_once(')') else {
                continue;
            };
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
            for part in file.split('/') {
                match part {
                    ".." => drop(parts.pop()),
                    "" | "." => {}
                    _ => parts.push(part),
                }
            }
            let target = if file.is_empty() {
                name.clone()
            } else {
                parts.join("/")
            };
            let is_folder = tree
                .keys()
                .any(|file| file.starts_with(&format!("{target}/")));
            let leads = tree
                .get(&target)
                .map_or(is_folder && place.is_empty(), |text| {
                    let headings = text.lines().filter(|line| line.starts_with('#'));
                    place.is_empty()
                        || headings
                            .map(|line| anchor(line.trim_start_matches('#')))
                            .any(|at| at == place)
                });
            if !leads {
                broken.push(format!("{name}: nothing is at {link}"));
            }
        }
    }
    broken
}

const RULES: &[Rule] = &[
    lengths, styles, rooms, circles, taken, switches, widths, links, lines, proofs,
];

#[test]
fn the_tree_keeps_its_rules() {
    let tree = tree();
    assert!(tree.len() > 100, "the tree is not found");
    let broken: Vec<String> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// What a rule says of a tree that has these files besides.
fn said(rule: Rule, files: &[(&str, &str)]) -> String {
    let mut tree = Tree::new();
    assert_eq!(
        rule(&tree),
        [""; 0],
        "a tree with nothing in it keeps the rule"
    );
    tree.extend(
        files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned())),
    );
    let said = rule(&tree);
    assert!(said.len() <= 2, "{said:?}");
    said.join(" ")
}

#[test]
fn long_files_are_noticed() {
    let long = "\n".repeat(520);
    assert!(said(lengths, &[("src/disk.rs", &long)]).contains("520 lines"));
    assert_eq!(said(lengths, &[("tests/swap/long.rs", &long)]), "");
    let longer = "\n".repeat(551);
    assert!(said(lengths, &[("mapping/src/map/tests.rs", &longer)]).contains("551 lines"));
}

#[test]
fn another_style_of_modules_is_noticed() {
    assert!(said(styles, &[("src/disk/mod.rs", "")]).contains("src/disk/mod.rs"));
}

#[test]
fn a_file_in_the_wrong_room_is_noticed() {
    let host = ("src/host/sys.rs", "");
    let disk = (
        "src/disk.rs",
        "use crate::host::{self, sys::DirectAlign};\n",
    );
    assert_eq!(said(rooms, &[host, disk]), "");
    let wrong = (
        "src/host/lock.rs",
        "use std::io;\nuse crate::{disk::Disk};\n",
    );
    assert!(said(rooms, &[wrong, disk]).contains("host may not import disk"));
    let inline = ("src/host/lock.rs", "fn of() { crate::disk::lock() }\n");
    assert!(said(rooms, &[inline, disk]).contains("host may not import disk"));
    let tested = (
        "src/host/lock.rs",
        "#[cfg(test)]\nmod tests {\n    use crate::disk::Disk;\n}\n",
    );
    assert_eq!(said(rooms, &[tested, disk]), "");
    assert!(said(rooms, &[("mapping/src/cache.rs", "")]).contains("no room"));
}

#[test]
fn circles_of_imports_are_noticed() {
    let a = ("mapping/src/map/slab.rs", "use super::table::Table;\n");
    let b = (
        "mapping/src/map/table.rs",
        "use crate::map::slab::{Slab, SlabBox};\n",
    );
    assert!(said(circles, &[a, b]).contains("slab.rs is in a circle"));
    let shown = (
        "mapping/src/map.rs",
        "mod slab;\npub use self::slab::Slab;\n",
    );
    let child = ("mapping/src/map/slab.rs", "use super::Map;\n");
    assert_eq!(said(circles, &[shown, child]), "");
    let used = ("mapping/src/map.rs", "mod slab;\nuse self::slab::Slab;\n");
    assert!(said(circles, &[used, child]).contains("map.rs is in a circle"));
}

#[test]
fn modules_from_elsewhere_are_noticed() {
    let taken_by = |text: &str| said(taken, &[("tests/control/io.rs", text)]);
    let plain = concat!("#[", "path = \"../rig.rs\"]\nmod rig;\n");
    assert!(taken_by(plain).contains("tests/control/io.rs"));
    let broken = concat!("#[\n    ", "path\n    = \"../rig.rs\"\n]\nmod rig;\n");
    assert!(taken_by(broken).contains("tests/control/io.rs"));
    let conditional = concat!("#[cfg_attr(loom, ", "path = \"../rig.rs\")]\nmod rig;\n");
    assert!(taken_by(conditional).contains("tests/control/io.rs"));
    let said_only = concat!("// No #[", "path = \"x.rs\"] here.\nmod rig;\n");
    assert_eq!(taken_by(said_only), "");
}

#[test]
fn switches_elsewhere_are_noticed() {
    let read = concat!("fn on() { std::env::var(\"EXTENTD", "_TEST_X\"); }\n");
    assert!(said(switches, &[("vhost-backend/src/queue.rs", read)]).contains("queue.rs"));
    assert_eq!(
        said(
            switches,
            &[(SWITCHES, read), ("tests/swap/served.rs", read)]
        ),
        ""
    );
}

#[test]
fn wide_comments_are_noticed() {
    let wide = format!("    // {}\n", "word ".repeat(20));
    assert!(said(widths, &[("src/disk.rs", &wide)]).contains("src/disk.rs:1"));
    assert_eq!(said(widths, &[("mapping/src/map.rs", &wide)]), "");
}

#[test]
fn links_to_nothing_are_noticed() {
    let good = "[a](docs/a.md#the-2nd-part) [b](#top) [c](https://example.org) [d](docs)\n# Top\n";
    let a = ("docs/a.md", "## The 2nd part\n[back](../README.md)\n");
    assert_eq!(said(links, &[("README.md", good), a]), "");
    assert!(said(links, &[("README.md", "[a](docs/b.md)"), a]).contains("docs/b.md"));
    assert!(said(links, &[("README.md", "[a](docs/a.md#c)"), a]).contains("#c"));
}
