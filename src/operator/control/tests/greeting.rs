//! Who is greeted, and who not.

use std::io::Read;

use super::*;

/// The next line, whatever it is.
fn next(reader: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

#[test]
fn who_connects_is_greeted_with_the_version() {
    let rig = rig();
    let version = env!("CARGO_PKG_VERSION");
    let hello = format!(
        "{{\"jsonrpc\":\"2.0\",\"method\":\"hello\",\"params\":{{\"protocol\":1,\"program\":\"extentd\",\"version\":\"{version}\"}}}}\n"
    );
    let (mut patient, mut writer) = connect(&rig);
    assert_eq!(next(&mut patient), hello);
    writeln!(writer, "{INFO}").unwrap();
    assert_eq!(next(&mut patient), HAS_INFO);
    let (mut hasty, mut writer) = connect(&rig);
    writeln!(writer, "{INFO}").unwrap();
    assert_eq!(next(&mut hasty), hello);
    assert_eq!(next(&mut hasty), HAS_INFO);
    // Who ends its half without asking is told who was there.
    let (mut reader, writer) = connect(&rig);
    writer.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, hello);
}

#[test]
fn who_asks_in_the_form_of_before_is_answered_in_it_and_not_greeted() {
    let rig = rig();
    let (mut reader, mut writer) = connect(&rig);
    for (said, answer) in [
        ("{\"command\":\"info\"}", "{\"result\":{\"pid\":7}}\n"),
        (
            "{\"command\":\"resize\",\"bytes\":1024}",
            "{\"result\":null}\n",
        ),
        (
            "{\"command\":\"resize\",\"bytes\":1}",
            "{\"error\":\"1 is odd\"}\n",
        ),
        (INFO, HAS_INFO),
    ] {
        writeln!(writer, "{said}").unwrap();
        assert_eq!(next(&mut reader), answer, "{said}");
    }
    writeln!(writer, "{{\"command\":\"dance\"}}").unwrap();
    let line = next(&mut reader);
    assert!(line.starts_with("{\"error\":\"no method "), "{line}");
}
