//! Manual pages from the definitions that `--help` is made of. They lie in the
//! tree, and are written anew where `MANUAL_UPDATE` is set.

use std::fmt::Write;
use std::path::Path;

use clap::{Arg, Command};
use clap_complete::Shell;

/// What a page has besides what the definition of its command says.
#[derive(Debug, Default)]
pub struct Rest<'a> {
    /// Section of the manual.
    pub section: u8,
    /// Further chapters: title and text, see [`page`].
    pub chapters: &'a [(&'a str, &'a str)],
    /// Other pages, as in `extentd(8)`.
    pub see_also: &'a [&'a str],
}

/// The page of a program.
///
/// Texts are paragraphs with an empty line between them; one whose lines are
/// indented is shown as it is.
pub fn page(mut command: Command, version: &str, rest: &Rest<'_>) -> String {
    command.build();
    let name = command.get_name().to_owned();
    let about = command.get_about().map(ToString::to_string);
    let about = about.expect("a program says what it is for");
    let mut text = begin(&name, rest.section, version, &first_small(&about));
    let options: Vec<_> = shown(&command).collect();
    let commands: Vec<_> = subcommands(&command).collect();
    chapter(&mut text, "Synopsis");
    write!(text, ".B {}\n[\\fIoptions\\fR]", escaped(&name)).unwrap();
    if !commands.is_empty() {
        text.push_str(" \\fIcommand\\fR [\\fIoptions\\fR]");
    }
    text.push('\n');
    chapter(&mut text, "Description");
    let long = command.get_long_about().map(ToString::to_string);
    paragraphs(&mut text, &long.unwrap_or_else(|| format!("{about}.")));
    chapter(&mut text, "Options");
    for option in options {
        describe(&mut text, option);
    }
    if !commands.is_empty() {
        chapter(&mut text, "Commands");
    }
    for one in commands {
        subcommand(&mut text, one);
    }
    if let Some(after) = command.get_after_long_help() {
        chapter(&mut text, "Notes");
        paragraphs(&mut text, &after.to_string());
    }
    end(text, rest)
}

/// The page of a file of options whose keys are those of `command`, but for
/// `without`.
pub fn file_page(
    name: &str,
    about: &str,
    description: &str,
    mut command: Command,
    without: &[&str],
    version: &str,
    rest: &Rest<'_>,
) -> String {
    command.build();
    let mut text = begin(name, rest.section, version, about);
    chapter(&mut text, "Description");
    paragraphs(&mut text, description);
    chapter(&mut text, "Keys");
    for option in shown(&command) {
        let key = option.get_long().expect("each option has a name");
        if without.contains(&key) {
            continue;
        }
        let value = match value(option) {
            Some(value) => format!(" = \\fI{}\\fR", escaped(&value)),
            None => " = \\fItrue|false\\fR".to_owned(),
        };
        writeln!(text, ".TP\n\\fB{}\\fR{value}", escaped(key)).unwrap();
        explain(&mut text, option);
    }
    end(text, rest)
}

/// The page of something that is no program.
pub fn overview(name: &str, about: &str, version: &str, rest: &Rest<'_>) -> String {
    end(begin(name, rest.section, version, about), rest)
}

/// What lies at `path` is `text`; where `MANUAL_UPDATE` is set it becomes it.
pub fn keep(path: &Path, text: &str) {
    if std::env::var_os("MANUAL_UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == text,
        "{} is not what --help says: set MANUAL_UPDATE=1 and run this test again",
        path.display()
    );
}

/// The completions of a program in this folder are those of its options, as
/// with [`keep`].
pub fn keep_completions(folder: &Path, name: &str, command: &mut Command) {
    let files = [
        (Shell::Bash, format!("{name}.bash")),
        (Shell::Zsh, format!("_{name}")),
        (Shell::Fish, format!("{name}.fish")),
    ];
    for (shell, file) in files {
        let mut text = Vec::new();
        clap_complete::generate(shell, command, name, &mut text);
        keep(&folder.join(file), &String::from_utf8(text).unwrap());
    }
}

/// The long options that a text names, without dashes.
pub fn options_in(text: &str) -> std::collections::BTreeSet<String> {
    let text = text.replace("\\fB", " ").replace("\\-", "-");
    let starts = text.match_indices("--").map(|(at, _)| at);
    let words = starts.filter_map(|at| {
        let word: String = text[at + 2..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
            .collect();
        let alone = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-');
        (alone && word.starts_with(|c: char| c.is_ascii_lowercase())).then_some(word)
    });
    words.collect()
}

fn begin(name: &str, section: u8, version: &str, about: &str) -> String {
    let title = name.to_uppercase();
    let mut text = format!(
        ".\\\" From the source of --help: MANUAL_UPDATE=1 writes it anew.\n\
         .TH {} {section} \"\" \"extentd {version}\" \"Disks of virtual machines\"\n.nh\n.ad l\n",
        escaped(&title)
    );
    chapter(&mut text, "Name");
    writeln!(text, "{} \\- {}", escaped(name), escaped(about)).unwrap();
    text
}

fn end(mut text: String, rest: &Rest<'_>) -> String {
    for (title, content) in rest.chapters {
        chapter(&mut text, title);
        paragraphs(&mut text, content);
    }
    if let Some((last, others)) = rest.see_also.split_last() {
        chapter(&mut text, "See also");
        for (pages, comma) in [(others, ","), (std::slice::from_ref(last), "")] {
            for page in pages {
                let (name, section) = page.split_once('(').expect("name(section)");
                writeln!(text, ".BR {} ({section}{comma}", escaped(name)).unwrap();
            }
        }
    }
    text
}

fn subcommand(text: &mut String, command: &Command) {
    let mut line = command.get_name().to_owned();
    for positional in command.get_positionals() {
        let name = value(positional).unwrap_or_default();
        let shape = if positional.is_required_set() {
            format!(" {name}")
        } else {
            format!(" [{name}]")
        };
        line.push_str(&shape);
        if positional
            .get_num_args()
            .is_some_and(|n| n.max_values() > 1)
        {
            line.push_str("...");
        }
    }
    writeln!(text, ".SS \"{}\"", escaped(&line)).unwrap();
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        paragraphs(
            text,
            &format!("{}.", about.to_string().trim_end_matches('.')),
        );
    }
    for positional in command.get_positionals() {
        let name = value(positional).unwrap_or_default();
        writeln!(text, ".TP\n\\fI{}\\fR", escaped(&name)).unwrap();
        explain(text, positional);
    }
    for option in shown(command).filter(|option| !option.is_global_set()) {
        describe(text, option);
    }
    if let Some(after) = command.get_after_long_help() {
        text.push_str(".PP\n");
        paragraphs(text, &after.to_string());
    }
}

fn describe(text: &mut String, option: &Arg) {
    let short = option.get_short().map(|c| format!("\\fB\\-{c}\\fR, "));
    let long = option.get_long().expect("each option has a name");
    let may_lack = option
        .get_num_args()
        .is_some_and(|number| number.min_values() == 0);
    let value = match value(option) {
        None => String::new(),
        Some(value) if may_lack => format!("[=\\fI{}\\fR]", escaped(&value)),
        Some(value) => format!(" \\fI{}\\fR", escaped(&value)),
    };
    let short = short.unwrap_or_default();
    writeln!(text, ".TP\n{short}\\fB\\-\\-{}\\fR{value}", escaped(long)).unwrap();
    explain(text, option);
}

/// What an option means, its default, and what may be given.
fn explain(text: &mut String, option: &Arg) {
    let help = option.get_long_help().or(option.get_help());
    let mut help = help.map(ToString::to_string).unwrap_or_default();
    if takes_value(option) && !option.get_default_values().is_empty() {
        let defaults = option.get_default_values().iter();
        let defaults: Vec<_> = defaults.map(|one| one.to_string_lossy()).collect();
        write!(help, " [default: {}]", defaults.join(" ")).unwrap();
    }
    let last = help.trim_end_matches(['.', ' ']).len();
    help.truncate(last);
    if !help.ends_with(']') {
        help.push('.');
    }
    writeln!(text, "{}", escaped(&help)).unwrap();
    if !takes_value(option) {
        return;
    }
    let values = option.get_possible_values();
    if values.iter().any(|value| value.get_help().is_some()) {
        text.push_str(".RS\n");
        for value in values {
            let help = value.get_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            writeln!(
                text,
                ".TP\n\\fB{}\\fR\n{}.",
                escaped(value.get_name()),
                escaped(&help)
            )
            .unwrap();
        }
        text.push_str(".RE\n");
    } else if !values.is_empty() {
        let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
        writeln!(text, "One of {}.", escaped(&names.join(", "))).unwrap();
    }
}

fn takes_value(option: &Arg) -> bool {
    option.get_action().takes_values()
}

fn value(option: &Arg) -> Option<String> {
    if !takes_value(option) {
        return None;
    }
    let names = option.get_value_names().unwrap_or_default();
    let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
    Some(if names.is_empty() {
        option.get_id().as_str().to_uppercase()
    } else {
        names.join(" ")
    })
}

fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    let options = command.get_arguments().filter(|one| !one.is_positional());
    options.filter(|one| !one.is_hide_set() && one.get_long().is_some_and(|long| long != "help"))
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    let all = command.get_subcommands();
    all.filter(|one| !one.is_hide_set() && one.get_name() != "help")
}

fn chapter(text: &mut String, title: &str) {
    writeln!(text, ".SH {}", escaped(&title.to_uppercase())).unwrap();
}

fn paragraphs(text: &mut String, content: &str) {
    for (index, paragraph) in content.trim().split("\n\n").enumerate() {
        if index > 0 {
            text.push_str(".PP\n");
        }
        let mut literal = false;
        for line in paragraph.lines() {
            if line.starts_with("  ") != literal {
                text.push_str(if literal {
                    ".EE\n.RE\n"
                } else {
                    ".RS 4\n.EX\n"
                });
                literal = !literal;
            }
            writeln!(text, "{}", escaped(line.trim_start())).unwrap();
        }
        if literal {
            text.push_str(".EE\n.RE\n");
        }
    }
}

fn first_small(text: &str) -> String {
    let mut letters = text.trim_end_matches('.').chars();
    let first = letters.next().map(|letter| letter.to_lowercase());
    first.into_iter().flatten().chain(letters).collect()
}

/// Text that roff shows as it is.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let text = text.replace('"', "\\(dq").replace('\'', "\\(aq");
    match text.starts_with('.') {
        true => format!("\\&{text}"),
        false => text,
    }
}
