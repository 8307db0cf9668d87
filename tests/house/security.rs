//! docs/security.md names tests that exist.

use super::Tree;

const DOCUMENT: &str = "docs/security.md";

/// Tests that are named as `` `test` (file) `` and are not there.
pub fn proofs(tree: &Tree) -> Vec<String> {
    let Some(text) = tree.get(DOCUMENT) else {
        return Vec::new();
    };
    let mut named = 0;
    let mut broken = Vec::new();
    for row in text.lines().filter(|line| line.starts_with('|')) {
        for part in row.split("` (").skip(1).zip(row.split("` (")) {
            let (after, before) = part;
            let test = before.rsplit('`').next().unwrap_or_default();
            let file = after.split(')').next().unwrap_or_default();
            named += 1;
            let has = |text: &String| text.contains(&format!("fn {test}()"));
            if !tree.get(file).is_some_and(has) {
                broken.push(format!("{DOCUMENT}: there is no {test} in {file}"));
            }
        }
    }
    if named == 0 {
        broken.push(format!("{DOCUMENT}: no test is named"));
    }
    broken
}

#[test]
fn guarantees_without_their_test_are_noticed() {
    let tree = |row: &str| -> Tree {
        let test = "fn sees() {}".to_owned();
        [
            (DOCUMENT.to_owned(), row.to_owned()),
            ("tests/a.rs".to_owned(), test),
        ]
        .into()
    };
    let row = "| log | lives | `sees` (tests/a.rs), `blind` (tests/a.rs), `sees` (tests/b.rs) |";
    assert_eq!(
        proofs(&tree(row)),
        [
            "docs/security.md: there is no blind in tests/a.rs",
            "docs/security.md: there is no sees in tests/b.rs",
        ]
    );
    assert_eq!(
        proofs(&tree("| log | lives | nothing |")),
        ["docs/security.md: no test is named"]
    );
}
