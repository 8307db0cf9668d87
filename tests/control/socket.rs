//! The control socket as any program may use it: by lines of bytes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use ::rig::operator::call;
use front_end::limit;
use serde_json::{Value, json};

use crate::rig::{IMAGE, Line, Rig};

/// All that is answered to some bytes, as `socat` would print it.
fn socat(control: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.set_read_timeout(Some(limit())).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn some_bytes_of_a_shell_are_answered_line_by_line() {
    let rig = Rig::on_tmpfs(&[]);
    let mode = std::fs::metadata(rig.control()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let text = socat(
        rig.control(),
        b"{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"io-path\",\"params\":{\"path\":\"file\"}}\nhello\n\
          {\"jsonrpc\":\"2.0\",\"method\":\"info\"}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"stats\"}",
    );
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(
        lines[0]
            .starts_with("{\"jsonrpc\":\"2.0\",\"method\":\"hello\",\"params\":{\"protocol\":1,")
    );
    assert!(lines[1].starts_with("{\"jsonrpc\":\"2.0\",\"result\":{\"path\":\"file\","));
    assert!(lines[1].ends_with(",\"id\":\"a\"}"));
    assert!(lines[2].starts_with("{\"jsonrpc\":\"2.0\",\"error\":{\"code\":-32700,"));
    assert!(lines[3].ends_with(",\"id\":2}"), "{text}");
}

#[test]
fn a_script_of_before_is_answered_as_before() {
    let rig = Rig::on_tmpfs(&[]);
    let text = socat(
        rig.control(),
        b"{\"command\":\"io-path\",\"path\":\"file\"}\n{\"command\":\"resize\",\"bytes\":1}\n",
    );
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("{\"result\":{\"path\":\"file\","),
        "{text}"
    );
    assert!(lines[1].starts_with("{\"error\":\"") && lines[1].contains("round it"));
}

#[test]
fn every_method_that_is_told_of_is_answered_while_a_guest_works() {
    let Some(rig) = Rig::on_ext4(&[]) else { return };
    let at_work = rig.under_io(rig.attach_to_disk());
    let mut line = Line::open(rig.control());
    let whole = json!({ "start": 0, "end": null });
    let told = line.call("rpc.discover", "{}")["result"].take();
    let published = include_str!("../../docs/openrpc.json");
    assert_eq!(told, serde_json::from_str::<Value>(published).unwrap());
    for method in told["methods"].as_array().unwrap() {
        let name = method["name"].as_str().unwrap();
        let params = match name {
            "resize" => json!({ "bytes": IMAGE }),
            "advise" => json!({ "advice": "willneed", "range": whole }),
            "map" => json!({ "range": whole, "most": 4096 }),
            "heat" => json!({ "range": whole, "during_ms": 1 }),
            "io-path" => json!({ "path": "auto" }),
            "snapshot" => json!({ "name": "one" }),
            _ => json!({}),
        };
        let named = method["params"].as_array().unwrap().iter();
        let required = named.filter(|one| one["required"] == true);
        assert_eq!(
            required.count(),
            params.as_object().unwrap().len(),
            "{name}"
        );
        let answer = line.call(name, &params.to_string());
        assert_eq!(answer["id"], 1, "{name}: {answer}");
        let refused = [
            "selftest",
            "snapshot",
            "snapshot-cancel",
            "snapshots",
            "unshare",
            "unshare-cancel",
        ];
        if refused.contains(&name) {
            // Without --swap, --snapshot-dir and XFS, with a code of its own.
            assert_eq!(answer["error"]["code"], 1, "{answer}");
            continue;
        }
        let result = answer["result"].as_object().unwrap();
        // What the schema says is there is there.
        let schema = &method["result"]["schema"];
        let Some(place) = schema["$ref"].as_str() else {
            continue;
        };
        let schema = told.pointer(&place[1..]).unwrap();
        for key in schema["required"].as_array().into_iter().flatten() {
            assert!(result.contains_key(key.as_str().unwrap()), "{name}: {key}");
        }
    }
    drop(at_work);
}

#[test]
fn a_batch_is_carried_out_in_order_and_refusals_stand_in_it() {
    let rig = Rig::on_tmpfs(&[]);
    let mut line = Line::open(rig.control());
    let calls = [
        call("resize", "{\"bytes\":16777216}"),
        call("info", "{}"),
        call("resize", "{\"bytes\":1}"),
        call("resize", "{\"bytes\":12582912}").replace(",\"id\":1", ""),
        call("dance", "{}"),
        call("stats", "{}"),
    ];
    line.say(&format!("[{}]", calls.join(",")));
    let answers = line.hear();
    let answers = answers.as_array().unwrap();
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!(answers[1]["result"]["disk"]["size_bytes"], 16 << 20);
    let refused = &answers[2]["error"];
    assert_eq!(refused["code"], 1, "{refused}");
    let said = refused["message"].as_str().unwrap();
    assert!(
        said.contains("round it") && said.lines().count() == 1,
        "{said}"
    );
    assert_eq!(answers[3]["error"]["code"], -32601);
    assert!(answers[4]["result"]["uptime_ms"].is_u64());
    // Also what only notified was done.
    let info = line.call("info", "{}");
    assert_eq!(info["result"]["disk"]["size_bytes"], IMAGE);
}
