//! Commands of documents are understood by the programs, and XML by libvirt's
//! schema.

use std::collections::BTreeMap;
use std::process::Command;

use clap::Parser;
use clap::error::ErrorKind;

use extentd::options::args::Args as ExtentdArgs;
use front_end::load::Args as LoadArgs;

use super::{Tree, tree};

/// The blocks of code of a document that are in this language, or in any.
fn blocks<'a>(text: &'a str, language: Option<&str>) -> Vec<&'a str> {
    let parts = text.split("```").collect::<Vec<_>>();
    let inside = parts.iter().skip(1).step_by(2);
    let with_language = inside.filter_map(|part| part.split_once('\n'));
    let wanted = with_language.filter(|(name, _)| language.is_none_or(|one| one == name.trim()));
    wanted.map(|(_, code)| code).collect()
}

/// What is in backquotes within a line.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|line| !line.starts_with("```"));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// A command of ours: its program and words. What is left out (`...`) and
/// what a reader fills in have gone or have become examples.
#[derive(Debug, PartialEq)]
struct Line {
    program: String,
    words: Vec<String>,
    whole: bool,
}

const PROGRAMS: [&str; 3] = ["extentd", "extentctl", "extentd-load"];

fn line(text: &str) -> Option<Line> {
    let text = text.split(" #").next().unwrap_or(text);
    let text = text.split(['|', '>', '&', ';']).next().unwrap_or(text);
    let mut words = text.split_whitespace().map(str::to_owned);
    let first = words.next()?;
    let program = first.rsplit('/').next()?.to_owned();
    if !PROGRAMS.contains(&&*program) {
        return None;
    }
    let words: Vec<_> = words.collect();
    // How a command may be used, and not one.
    let synopsis = words.iter().any(|word| word.contains(['[', ']', '…']));
    if words.is_empty() || synopsis || words.iter().any(|word| word == "COMMAND") {
        return None;
    }
    let left_out = |word: &String| word.contains("...") || word.starts_with('$');
    let whole = !words.iter().any(left_out);
    let words = words.into_iter().filter(|word| !left_out(word));
    let example = |word: String| match word.trim_matches(['"', '\'']) {
        "N" => "1".to_owned(),
        "S" => "5".to_owned(),
        "SIZE" | "BYTES" => "1G".to_owned(),
        "LEVEL" => "info".to_owned(),
        plain => plain.to_owned(),
    };
    Some(Line {
        program,
        words: words.map(example).collect(),
        whole,
    })
}

/// Why it is not understood.
fn wrong(line: &Line) -> Option<String> {
    let words = std::iter::once(&line.program).chain(&line.words);
    let missing = |error: &clap::Error| error.kind() == ErrorKind::MissingRequiredArgument;
    let parsed = match &*line.program {
        "extentd" => ExtentdArgs::try_parse_from(words).map(drop),
        "extentd-load" => LoadArgs::try_parse_from(words).map(drop),
        _ => return unknown_to_extentctl(line),
    };
    parsed
        .err()
        .filter(|error| error.use_stderr() && (line.whole || !missing(error)))
        .map(|error| error.to_string())
}

/// With `--help` behind it, it does nothing else; what stands before it is
/// looked at all the same.
fn unknown_to_extentctl(line: &Line) -> Option<String> {
    let output = Command::new(rig::extentctl!())
        .args(&line.words)
        .arg("--help")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(text)
}

/// Each command of ours in a document.
fn commands(text: &str) -> Vec<Line> {
    let code = blocks(text, None)
        .into_iter()
        .map(|code| code.replace("\\\n", " "));
    let lines: Vec<String> = code
        .flat_map(|code| code.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let lines = lines.iter().map(|one| one.trim_start_matches("$ ").trim());
    let code = lines.filter_map(line);
    // Of those within a line only extentctl's are commands as a whole.
    let within = spans(text).filter_map(line);
    code.chain(within.filter(|one| one.program == "extentctl"))
        .collect()
}

fn documents(tree: &Tree) -> BTreeMap<&str, &str> {
    let own = |name: &str| !name.starts_with("target") && name.ends_with(".md");
    let all = tree.iter().filter(|(name, _)| own(name));
    all.map(|(name, text)| (&**name, &**text)).collect()
}

#[test]
fn commands_of_documents_are_understood() {
    let tree = tree();
    let mut broken = Vec::new();
    let mut count = 0;
    for (name, text) in documents(&tree) {
        for line in commands(text) {
            count += 1;
            if let Some(why) = wrong(&line) {
                let words = line.words.join(" ");
                broken.push(format!("{name}: {} {words}: {why}", line.program));
            }
        }
    }
    assert!(count > 40, "{count} commands");
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn commands_that_are_none_are_noticed() {
    let wrongs = |text: &str| commands(text).iter().filter_map(wrong).count();
    assert_eq!(
        wrongs("```sh\nextentctl --control-path x info # yes\n```\n"),
        0
    );
    assert_eq!(wrongs("```sh\nextentctl --control-path x inform\n```\n"), 1);
    assert_eq!(
        wrongs("`extentctl resize 1X` is wrong, `ls --nonsense` is not ours\n"),
        1
    );
    assert_eq!(
        wrongs("```\nextentd --blk-file a \\\n  --socket-pat s &\n```\n"),
        1
    );
    assert_eq!(wrongs("```\nextentd ... --num-queues 4\n```\n"), 0);
    assert_eq!(wrongs("```\nextentd --num-queues 4\n```\n"), 1);
    assert_eq!(
        wrongs("```\nextentd-load --socket-path s --depth N\n```\n"),
        0
    );
}

#[test]
fn domains_of_documents_are_valid_for_libvirt() {
    if Command::new("virt-xml-validate")
        .arg("--help")
        .output()
        .is_err()
    {
        println!("SKIP: no virt-xml-validate here");
        return;
    }
    let tree = tree();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domain.xml");
    let valid = |xml: &str| {
        std::fs::write(&path, xml).unwrap();
        let output = Command::new("virt-xml-validate")
            .arg(&path)
            .arg("domain")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let mut count = 0;
    for (name, text) in documents(&tree) {
        for xml in blocks(text, Some("xml")) {
            if xml.starts_with("<domain") {
                count += 1;
                let (is_valid, why) = valid(xml);
                assert!(is_valid, "{name}: {why}");
                let wrong = xml.replace("<reconnect ", "<connect-again ");
                assert!(
                    wrong == xml || !valid(&wrong).0,
                    "{name}: anything is valid"
                );
            }
        }
    }
    assert!(count > 0, "no document has a domain");
}
