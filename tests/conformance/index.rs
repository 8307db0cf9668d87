//! The table in docs/conformance.md, against the tests that are there.
//!
//! A test's name begins with the rows that it proves: `vu_2_11_blk_7_what`
//! proves VU-2, VU-11 and BLK-7.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The parts of the list, and how many rows each has.
const PARTS: [(&str, u32); 3] = [("blk", 40), ("ring", 21), ("vu", 50)];
/// Set, it writes the names of the tests into the table.
const UPDATE: &str = "CONFORMANCE_UPDATE";

type Row = (&'static str, u32);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The sources, without what is built.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            let name = name.to_string_lossy();
            if name != "target" && !name.starts_with('.') {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The functions in `text` that an attribute makes tests.
fn tests_in(text: &str) -> Vec<&str> {
    let mut marked = false;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            marked |= line == "#[test]";
        } else if let Some(rest) = line.strip_prefix("fn ") {
            let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
            if std::mem::take(&mut marked) {
                names.push(&rest[..end.unwrap_or(rest.len())]);
            }
        } else if !line.starts_with("//") {
            marked = false;
        }
    }
    names
}

/// The rows that a test's name begins with.
fn rows_of(name: &str) -> Vec<Row> {
    let mut part = None;
    let mut rows = Vec::new();
    for word in name.split('_') {
        if let Some((known, _)) = PARTS.iter().find(|(known, _)| *known == word) {
            part = Some(*known);
        } else if let (Some(part), Ok(number)) = (part, word.parse()) {
            rows.push((part, number));
        } else {
            break;
        }
    }
    rows
}

/// By row, the tests that carry it, as `name (file)`.
fn tests_by_row() -> (BTreeSet<String>, BTreeMap<Row, Vec<String>>) {
    let mut files = Vec::new();
    sources(root(), &mut files);
    files.sort();
    let (mut all, mut by_row) = (BTreeSet::new(), BTreeMap::<_, Vec<_>>::new());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let shown = file.strip_prefix(root()).unwrap().display();
        for name in tests_in(&text) {
            let entry = format!("`{name}` ({shown})");
            for row in rows_of(name) {
                by_row.entry(row).or_default().push(entry.clone());
            }
            all.insert(entry);
        }
    }
    (all, by_row)
}

/// A line of the table: id, rule, and tests or a reason.
fn cells(line: &str) -> Option<(Row, &str, &str)> {
    let mut cells = line
        .strip_prefix("| ")?
        .strip_suffix(" |")?
        .splitn(3, " | ");
    let (id, rule, proof) = (cells.next()?, cells.next()?, cells.next()?);
    let (part, number) = id.split_once('-')?;
    let part = PARTS.iter().find(|(p, _)| p.to_uppercase() == part)?.0;
    Some(((part, number.parse().ok()?), rule, proof.trim()))
}

fn table() -> PathBuf {
    root().join("docs/conformance.md")
}

#[test]
fn every_row_has_a_test_or_a_reason_and_every_test_exists() {
    let (all, by_row) = tests_by_row();
    let text = std::fs::read_to_string(table()).unwrap();
    if std::env::var_os(UPDATE).is_some() {
        let mut new = String::new();
        for line in text.lines() {
            let found = cells(line).and_then(|(row, rule, _)| Some((row, rule, by_row.get(&row)?)));
            match found {
                Some(((part, number), rule, tests)) => writeln!(
                    new,
                    "| {}-{number} | {rule} | {} |",
                    part.to_uppercase(),
                    tests.join("<br>")
                ),
                None => writeln!(new, "{line}"),
            }
            .unwrap();
        }
        std::fs::write(table(), new).unwrap();
        return;
    }

    let mut wrong = Vec::new();
    let mut listed = BTreeMap::new();
    for (row, _, proof) in text.lines().filter_map(cells) {
        let named = proof.starts_with('`');
        if named {
            for test in proof.split("<br>").filter(|test| !all.contains(*test)) {
                wrong.push(format!("{row:?}: there is no test {test}"));
            }
        } else if by_row.contains_key(&row) {
            wrong.push(format!("{row:?}: it has a test, and a reason why not"));
        } else if proof.len() < 20 {
            wrong.push(format!("{row:?}: neither a test nor a reason"));
        }
        if listed.insert(row, proof).is_some() {
            wrong.push(format!("{row:?}: listed twice"));
        }
    }
    for (part, count) in PARTS {
        for row in (1..=count).map(|number| (part, number)) {
            if !listed.contains_key(&row) {
                wrong.push(format!("{row:?}: not in the table"));
            }
        }
    }
    let rows = PARTS.iter().map(|part| part.1 as usize).sum::<usize>();
    for row in by_row.keys().chain(listed.keys()) {
        let (_, count) = PARTS.iter().find(|part| part.0 == row.0).unwrap();
        if !(1..=*count).contains(&row.1) {
            wrong.push(format!("{row:?}: there is no such row"));
        }
    }
    assert!(
        wrong.is_empty() && listed.len() == rows,
        "{} rows in {}:\n{}\n{UPDATE}=1 writes the names of the tests that are there.",
        listed.len(),
        table().display(),
        wrong.join("\n")
    );
}

#[test]
fn names_tell_their_rows() {
    assert_eq!(
        rows_of("vu_2_11_blk_7_what_40"),
        [("vu", 2), ("vu", 11), ("blk", 7)]
    );
    assert_eq!(rows_of("ring_05_vu_9"), [("ring", 5), ("vu", 9)]);
    assert_eq!(rows_of("the_vu_5"), []);
    let text =
        "#[test]\n// why\nfn vu_1_a() {\n}\nfn vu_2_helper() {}\n#[test]\n#[ignore]\nfn b()\n";
    assert_eq!(tests_in(text), ["vu_1_a", "b"]);
}
