//! docs/troubleshooting.md quotes lines that are still written, and names tests
//! that still look for them.

use super::Tree;

const TABLE: &str = "docs/troubleshooting.md";

/// Text without the marks of strings that go over several lines.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The parts of a quoted line that are always the same.
fn fixed(line: &str) -> Vec<String> {
    line.split('…')
        .map(|part| part.trim_matches([' ', '(', ')', ':', ',']).to_owned())
        .filter(|part| part.len() >= 4)
        .collect()
}

/// What a test may look for: some words of the line.
fn asks_for(test: &str, parts: &[String]) -> bool {
    parts.iter().any(|part| {
        let words: Vec<&str> = part.split(' ').collect();
        words.windows(2).any(|two| test.contains(&two.join(" ")))
            || words
                .iter()
                .any(|one| one.len() >= 12 && test.contains(one))
    })
}

pub fn lines(tree: &Tree) -> Vec<String> {
    let Some(table) = tree.get(TABLE) else {
        return Vec::new();
    };
    let is_source = |name: &str| name.contains("src/") && name.ends_with(".rs");
    let sources: String = tree
        .iter()
        .filter(|(name, _)| is_source(name))
        .map(|(_, text)| flat(text))
        .collect();
    let mut broken = Vec::new();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let &[line, _, _, proof] = &cells[..] else {
            broken.push(format!("{TABLE}: a row has not four cells: {row}"));
            continue;
        };
        let parts = fixed(line.trim_matches('`'));
        for part in parts.iter().filter(|part| !sources.contains(*part)) {
            broken.push(format!("{TABLE}: nobody writes: {part}"));
        }
        let named = proof.split_once("` (").and_then(|(test, file)| {
            let text = tree.get(file.trim_end_matches([')', ' ']))?;
            Some((test.trim_start_matches('`'), text))
        });
        match named {
            Some((test, text)) if text.contains(&format!("fn {test}()")) => {
                if !asks_for(text, &parts) {
                    broken.push(format!("{TABLE}: {test} does not look for: {line}"));
                }
            }
            _ => broken.push(format!("{TABLE}: there is no such test: {proof}")),
        }
    }
    if !table.lines().any(|line| line.starts_with("| `")) {
        broken.push(format!("{TABLE}: there is no line"));
    }
    broken
}

#[test]
fn lines_that_nobody_writes_and_tests_that_do_not_look_are_noticed() {
    let row = |line: &str, test: &str| format!("| `{line}` | m | d | `{test}` (tests/a.rs) |\n");
    let table = row("the disk … is gone", "sees")
        + &row("the moon … has come", "sees")
        + &row("the disk … is gone", "blind")
        + &row("a word is missing here", "sees");
    let tree: Tree = [
        (TABLE, table.as_str()),
        (
            "src/a.rs",
            "\"the disk {} is gone\" \"a word is missing here\"",
        ),
        ("tests/a.rs", "fn sees() { \"is gone\" }"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into();
    assert_eq!(
        lines(&tree),
        [
            "docs/troubleshooting.md: nobody writes: the moon",
            "docs/troubleshooting.md: nobody writes: has come",
            "docs/troubleshooting.md: sees does not look for: `the moon … has come`",
            "docs/troubleshooting.md: there is no such test: `blind` (tests/a.rs)",
            "docs/troubleshooting.md: sees does not look for: `a word is missing here`",
        ]
    );
}
