//! Clients of the control socket that keep a place, send nonsense, never read,
//! or are not the ones that may ask.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rig::operator::call;

use crate::looked_after::LookedAfter;

const MAP: &[u8] = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"map\",\"params\":{\"range\":{\"start\":0,\"end\":null},\"most\":4096}}\n";

#[test]
fn silent_and_deaf_clients_keep_no_operator_waiting() {
    let one = LookedAfter::start(&[]);
    let before = one.open_files();
    let endless = vec![b'{'; 200_000];
    let mut held = Vec::new();
    for said in [&b""[..], b"{\"method\":", MAP, &MAP.repeat(200), &endless] {
        for _ in 0..60 {
            let mut line = one.operator();
            // It is left by then where that is too much; none may wait for it.
            let _ = line.say(said.get(..100_000).unwrap_or(said));
            held.push(line);
        }
        one.assert_answered();
    }
    assert!(one.open_files() < before + 190, "{}", one.open_files());
    one.assert_all_served();
    drop(held);
}

#[test]
fn nonsense_is_answered_and_the_next_request_as_well() {
    let one = LookedAfter::start(&[]);
    let mut line = one.greeted();
    let deep = "[".repeat(3000);
    for said in [
        "\0\0",
        "null",
        "[]",
        "\"info\"",
        "{\"jsonrpc\":\"2.0\",\"method\":\"info\",\"method\":\"resize\"}",
        &call("resize", "{\"bytes\":18446744073709551616}"),
        &call("resize", "{\"bytes\":1e300}"),
        &call(
            "map",
            "{\"range\":{\"start\":9223372036854775807,\"end\":1},\"most\":0}",
        ),
        &deep,
    ] {
        line.say(format!("{said}\n").as_bytes()).unwrap();
        let answer = line.hear();
        assert!(answer.contains("\"error\":{\"code\":"), "{said}: {answer}");
    }
    line.say(b"\xff\xfe\n").unwrap();
    line.say(format!("{}\n", call("info", "{}")).as_bytes())
        .unwrap();
    assert!(line.hear().contains("\"error\":{\"code\":-32700,"));
    assert!(line.hear().contains("\"result\":{"));
}

#[test]
fn who_changes_something_is_named_in_the_log() {
    let one = LookedAfter::start(&[]);
    let mut line = one.greeted();
    let call = call("io-path", "{\"path\":\"file\"}");
    line.say(format!("{call}\n").as_bytes()).unwrap();
    line.hear();
    let said = one
        .daemon
        .wait_stderr(|line| line.contains("asks: io-path file"))
        .unwrap();
    let me = format!("pid {}, uid ", std::process::id());
    assert!(
        said.contains("control socket: ") && said.contains(&me),
        "{said}"
    );
}

#[test]
fn another_user_is_refused_whatever_the_mode_of_the_socket() {
    let one = LookedAfter::start(&[]);
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: only root can become another user");
        return;
    }
    // As if somebody had opened it to all.
    for (path, mode) in [(one.files.path(), 0o755), (&one.control, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = one.files.path().join("extentctl");
    fs::copy(rig::extentctl!(), &program).unwrap();
    let output = Command::new(&program)
        .arg("--control-path")
        .arg(&one.control)
        .args(["resize", "1M"])
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("uid 65534: only the user that runs extentd may ask, and root"),
        "{said}"
    );
    one.daemon
        .wait_stderr(|line| line.contains("uid 65534: only the user of this process may ask"))
        .unwrap();
    one.assert_all_served();
}
