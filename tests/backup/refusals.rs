//! What cannot be served is refused, in one line that says what to do.

use std::fs::{File, create_dir};
use std::process::Command;

use rig::file_systems::XFS;

use crate::rig::{image, mounted, nbd, run, snapshot, text};

#[test]
fn what_cannot_be_served_is_refused_in_one_line() {
    let Some(mounted) = mounted(XFS) else { return };
    let image = image(&mounted);
    let monday = snapshot(&mounted, "monday");
    create_dir(mounted.path("other")).unwrap();
    let twin = mounted.path("other/monday");
    std::fs::copy(&monday, &twin).unwrap();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let there = folder.path().join("file");
    File::create(&there).unwrap().set_len(1 << 20).unwrap();
    let socket = folder.path().join("socket");
    let occupied = folder.path().join("occupied");
    File::create(&occupied).unwrap();
    let missing = mounted.path("missing");
    let (monday, image) = (text(&monday), text(&image));
    for (status, arguments, says) in [
        (1, vec!["--file", text(&missing)], "No such file"),
        (1, vec!["--file", "/dev/null"], "not a regular file"),
        (
            1,
            vec!["--file", text(&there)],
            "does not tell where data lie",
        ),
        (
            1,
            vec!["--file", image, "--since", text(&missing)],
            "No such file",
        ),
        (
            1,
            vec!["--file", image, "--since", monday, "--since", text(&twin)],
            "has the same file name: rename",
        ),
        (2, vec![], "required arguments"),
        (2, vec!["--file", image, "--fd", "9"], "cannot be used with"),
    ] {
        let mut command = Command::new(nbd());
        command
            .args(["--socket-path", text(&socket)])
            .args(&arguments);
        let done = run(&mut command);
        assert_eq!(done.status, Some(status), "{}", done.error);
        assert!(done.error.contains(says), "{}", done.error);
        assert_eq!(done.error.lines().count(), 1, "{}", done.error);
    }
    let occupied = ["--socket-path", text(&occupied), "--file", image];
    let said = run(Command::new(nbd()).args(occupied)).refusal();
    assert!(said.contains("this is no socket"), "{said}");
    let said = run(Command::new(nbd()).args(["--fd", "0", "--file", image])).refusal();
    assert!(said.contains("--fd 0"), "{said}");
}
