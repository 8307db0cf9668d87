//! The description of all methods, made from the types: OpenRPC, which is JSON
//! Schema with names of methods around it.

use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::done::{
    Advised, LogLevelNow, OnErrorNow, OptionsNow, PathNow, Quiesced, Resized, Resumed, Retried,
    SnapshotCancelled, SnapshotList, SnapshotTaken, UnshareCancelled, Unsharing,
};
use super::events::{EVENT, Subscribed, Told};
use super::extents::{Heat, Page};
use super::failure::Code;
use super::hello::{HELLO, Hello, PROTOCOL};
use super::info::{Info, Selftest};
use super::limits::LimitsNow;
use super::requests::{OfConnection, Request};
use super::statistics::Statistics;

/// A method's name, and the form of its result.
type Row = (&'static str, fn(&mut SchemaGenerator) -> Schema);

/// The methods of a disk.
const OF_DISK: &[Row] = &[
    ("info", of::<Info>),
    ("selftest", of::<Selftest>),
    ("resize", of::<Resized>),
    ("stats", of::<Statistics>),
    ("advise", of::<Advised>),
    ("map", of::<Page>),
    ("heat", of::<Heat>),
    ("log-level", of::<LogLevelNow>),
    ("io-path", of::<PathNow>),
    ("on-error", of::<OnErrorNow>),
    ("retry", of::<Retried>),
    ("quiesce", of::<Quiesced>),
    ("resume", of::<Resumed>),
    ("snapshot", of::<SnapshotTaken>),
    ("snapshot-cancel", of::<SnapshotCancelled>),
    ("snapshots", of::<SnapshotList>),
    ("unshare", of::<Unsharing>),
    ("unshare-cancel", of::<UnshareCancelled>),
    ("options", of::<OptionsNow>),
    ("limits", of::<LimitsNow>),
];

/// The methods of a connection.
const OF_CONNECTION: &[Row] = &[
    ("rpc.discover", of::<Map<String, Value>>),
    ("subscribe", of::<Subscribed>),
];

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Whether it is a method of the disk.
pub(super) fn is_of_disk(name: &str) -> bool {
    OF_DISK.iter().any(|(method, _)| *method == name)
}

/// Whether it is a method of the connection.
pub(super) fn is_of_connection(name: &str) -> bool {
    OF_CONNECTION.iter().any(|(method, _)| *method == name)
}

/// The document, which is the same in each build of a version.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(make)
}

fn make() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut methods = of_enum(
        Request::json_schema(&mut generator),
        OF_DISK,
        &mut generator,
    );
    let own = OfConnection::json_schema(&mut generator);
    methods.extend(of_enum(own, OF_CONNECTION, &mut generator));
    let hello = of::<Hello>(&mut generator);
    let told = of::<Told>(&mut generator);
    let errors = Code::ALL.map(|code| {
        let error = json!({ "code": code.number(), "message": code.meaning() });
        (format!("{code:?}"), error)
    });
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "Control socket of extentd",
            "description": "JSON-RPC 2.0 on a Unix socket, one object or batch a line",
            "version": PROTOCOL.to_string(),
        },
        "methods": methods,
        "x-notifications": [{
            "name": HELLO,
            "summary": "The first line on a connection",
            "params": hello,
        }, {
            "name": EVENT,
            "summary": "Something has happened; told to those who have subscribed",
            "params": told,
        }],
        "components": {
            "schemas": generator.take_definitions(true),
            "errors": Map::from_iter(errors),
        },
    })
}

/// The methods of an enum of calls, each a variant with its parameters.
fn of_enum(calls: Schema, results: &[Row], generator: &mut SchemaGenerator) -> Vec<Value> {
    let variants = calls.get("oneOf").and_then(Value::as_array);
    let variants = variants.map(Vec::as_slice).unwrap_or_default();
    let methods = variants.iter().filter_map(|variant| {
        let name = variant.pointer("/properties/method/const")?.as_str()?;
        let (_, result) = results.iter().find(|(method, _)| *method == name)?;
        Some(json!({
            "name": name,
            "summary": variant.get("description"),
            "paramStructure": "by-name",
            "params": params(variant.pointer("/properties/params")?),
            "result": { "name": "result", "schema": result(generator) },
            "errors": [{ "$ref": "#/components/errors/Refused" }],
        }))
    });
    methods.collect()
}

fn params(of: &Value) -> Vec<Value> {
    let required = of.get("required").and_then(Value::as_array);
    let required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
    let fields = of.get("properties").and_then(Value::as_object);
    let fields = fields.into_iter().flatten();
    fields
        .map(|(name, schema)| json!({ "name": name, "required": required(name), "schema": schema }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_method() {
        let mut generator = SchemaGenerator::default();
        for (calls, rows) in [
            (Request::json_schema(&mut generator), OF_DISK),
            (OfConnection::json_schema(&mut generator), OF_CONNECTION),
        ] {
            let calls = serde_json::to_value(calls).unwrap();
            let names = calls["oneOf"].as_array().unwrap().iter();
            let names: Vec<_> = names
                .map(|one| one.pointer("/properties/method/const").unwrap().as_str())
                .collect();
            let table: Vec<_> = rows.iter().map(|(name, _)| Some(*name)).collect();
            assert_eq!(names, table);
        }
    }

    /// Everything that is pointed to is there.
    #[test]
    fn references_lead_somewhere() {
        fn look(value: &Value, found: &mut usize) {
            match value {
                Value::Object(fields) => {
                    for (name, value) in fields {
                        if let (true, Some(to)) = (name == "$ref", value.as_str()) {
                            let pointer = to.strip_prefix('#').unwrap();
                            assert!(document().pointer(pointer).is_some(), "{to}");
                            *found += 1;
                        }
                        look(value, found);
                    }
                }
                Value::Array(items) => items.iter().for_each(|item| look(item, found)),
                _ => {}
            }
        }
        let mut found = 0;
        look(document(), &mut found);
        assert!(found > 20, "{found}");
    }

    /// What is published is what `rpc.discover` tells. `OPENRPC_UPDATE=1` writes
    /// it anew.
    #[test]
    fn what_is_published_is_what_is_spoken() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openrpc.json");
        let text = format!("{:#}\n", document());
        if std::env::var_os("OPENRPC_UPDATE").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let published = std::fs::read_to_string(path).unwrap();
        assert!(
            published == text,
            "docs/openrpc.json is not what the types say: OPENRPC_UPDATE=1 writes it"
        );
    }
}
