//! Every command explains itself.

use std::process::Command;

fn help(arguments: &[&str]) -> String {
    let output = Command::new(rig::extentctl!())
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_names_every_command_and_each_has_its_own() {
    let all = help(&[]);
    let commands = [
        "info", "resize", "stats", "top", "map", "advise", "io-path", "metrics",
    ];
    for command in commands {
        assert!(
            all.lines()
                .any(|line| line.split_whitespace().next() == Some(command)),
            "{command} in\n{all}"
        );
        assert!(help(&[command]).contains("Usage: extentctl"), "{command}");
    }
    assert!(all.contains("Examples:") && all.contains("Exit status:"));
    for advice in [
        "willneed",
        "dontneed",
        "pin",
        "unpin",
        "sequential",
        "random",
    ] {
        assert!(help(&["advise"]).contains(advice), "{advice}");
    }
}
