//! Which file of a crate imports which, and whether it may.

use std::collections::{BTreeMap, BTreeSet};

use super::{Tree, is_product, sources};

/// A room, and those that it may import.
type Room = (&'static str, &'static [&'static str]);

/// Each folder of sources with its rooms: a room is a file there, with its
/// folder, and may import those behind it and what is its own.
const ROOMS: &[(&str, &[Room])] = &[
    (
        "src",
        &[
            ("host", &[]),
            ("fuzzing", &["host", "operator", "options"]),
            ("options", &["host"]),
            ("protocol", &["options"]),
            ("engine", &["host", "options"]),
            ("block_io", &["engine", "host", "options"]),
            (
                "disk",
                &["block_io", "engine", "host", "options", "protocol"],
            ),
            ("swap", &["disk", "host", "options", "protocol"]),
            ("operator", &["disk", "host", "options", "protocol", "swap"]),
            ("backup", &["disk", "host"]),
            ("nbd", &["disk"]),
            (
                "process",
                &[
                    "disk", "host", "nbd", "operator", "options", "protocol", "swap",
                ],
            ),
        ],
    ),
    (
        "mapping/src",
        &[
            ("sys", &[]),
            ("sync", &[]),
            ("error", &[]),
            ("source", &["sync", "sys"]),
            ("map", &["error", "source", "sync", "sys"]),
            ("difference", &["source", "sync", "sys"]),
            ("pending", &["map", "sync"]),
            ("threads", &[]),
            ("filler", &["error", "map", "source", "sync", "threads"]),
            ("device", &["source", "sync", "sys", "threads"]),
            (
                "path",
                &["device", "filler", "map", "source", "sys", "threads"],
            ),
            ("fuzzing", &["source", "sys"]),
        ],
    ),
    (
        "vhost-backend/src",
        &[
            ("aside", &[]),
            ("crash", &[]),
            ("device", &[]),
            ("probes", &[]),
            ("sys", &[]),
            ("peer", &["sys"]),
            ("status", &["peer"]),
            ("memory", &["crash", "device", "sys"]),
            ("error", &["memory", "sys"]),
            ("command", &["memory"]),
            ("options", &["error"]),
            ("held", &["device", "sys"]),
            ("limits", &["device", "memory", "sys"]),
            ("meter", &["device", "sys"]),
            (
                "queue",
                &[
                    "command", "crash", "device", "held", "limits", "memory", "meter", "probes",
                    "sys",
                ],
            ),
            (
                "worker",
                &[
                    "command", "device", "error", "held", "limits", "memory", "meter", "options",
                    "probes", "queue", "sys",
                ],
            ),
            (
                "session",
                &[
                    "aside", "command", "device", "error", "held", "limits", "memory", "meter",
                    "options", "peer", "status", "sys", "worker",
                ],
            ),
            (
                "testing",
                &[
                    "command", "device", "held", "limits", "memory", "queue", "session",
                ],
            ),
        ],
    ),
];
/// A file's code without comments and tests.
pub fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let for_tests = line.starts_with("#[cfg(test)") || line.starts_with("#[cfg(all(test");
        if for_tests
            && lines
                .peek()
                .is_some_and(|next| next.ends_with("mod tests {"))
        {
            break;
        }
        let line = line.split("//").next().unwrap_or_default();
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// `a::{b, c::{d}}` as `a::b` and `a::c::d`.
fn expand(path: &str) -> Vec<String> {
    let Some((before, inner)) = path.split_once('{') else {
        return vec![path.trim().to_owned()];
    };
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut part, mut parts) = (0, String::new(), Vec::new());
    for c in inner.chars().chain([',']) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    let filled = parts.iter().filter(|part| !part.trim().is_empty());
    filled
        .flat_map(|part| expand(&format!("{}{}", before.trim(), part.trim())))
        .collect()
}

/// The paths within its crate that a file imports or names, from the crate's
/// root. What a file only shows on of its own children is no import.
fn imports(module: &[&str], text: &str) -> Vec<Vec<String>> {
    let code = code(text);
    let mut paths = Vec::new();
    for statement in code.split(';') {
        let statement = statement.trim_start();
        let start = statement.find("use ").filter(|at| {
            let before = &statement[..*at];
            before.is_empty()
                || before.ends_with([' ', '\n', '}'])
                || before.ends_with("pub(crate) ")
        });
        if let Some(start) = start {
            let shown = statement[..start].trim_end().ends_with(['b', ')']);
            let path = &statement[start + 4..];
            let own = path.starts_with("self::") || path.starts_with("super::");
            if path.starts_with("crate::") || (own && !shown) {
                paths.extend(expand(path));
                continue;
            }
        }
        for named in statement.split("crate::").skip(1) {
            let end = named.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
            paths.push(format!("crate::{}", &named[..end.unwrap_or(named.len())]));
        }
    }
    let absolute = |path: String| {
        let mut parts: Vec<String> = path
            .split("::")
            .map(|part| part.trim().to_owned())
            .collect();
        let mut at: Vec<String> = module.iter().map(|part| (*part).to_owned()).collect();
        match parts.first().map(String::as_str) {
            Some("crate") => at.clear(),
            Some("self") => {}
            _ => {
                while parts.first().is_some_and(|part| part == "super") {
                    at.pop();
                    parts.remove(0);
                }
                at.extend(parts);
                return at;
            }
        }
        at.extend(parts.drain(1..));
        at
    };
    paths.into_iter().map(absolute).collect()
}

/// Which file of a crate imports which.
fn edges<'a>(tree: &'a Tree, base: &str) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut modules: BTreeMap<Vec<&str>, &str> = BTreeMap::new();
    for (name, _) in sources(tree).filter(|(name, _)| is_product(name)) {
        let inside = name
            .strip_prefix(base)
            .and_then(|rest| rest.strip_prefix('/'));
        let Some(inside) = inside.filter(|inside| !inside.starts_with("bin/")) else {
            continue;
        };
        let module: Vec<&str> = inside.trim_end_matches(".rs").split('/').collect();
        if module != ["lib"] && module != ["main"] {
            modules.insert(module, name);
        }
    }
    let mut edges = BTreeMap::new();
    for (module, name) in &modules {
        let targets = imports(module, &tree[*name])
            .into_iter()
            .filter_map(|path| {
                (1..=path.len()).rev().find_map(|len| {
                    let module: Vec<&str> = path[..len].iter().map(String::as_str).collect();
                    modules.get(&module).copied()
                })
            });
        let targets: BTreeSet<&str> = targets.filter(|target| target != name).collect();
        edges.insert(*name, targets);
    }
    edges
}

fn room<'a>(base: &str, name: &'a str) -> &'a str {
    let inside = &name[base.len() + 1..];
    inside
        .split('/')
        .next()
        .unwrap_or(inside)
        .trim_end_matches(".rs")
}

/// Rooms import those that they may.
pub fn rooms(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for (base, table) in ROOMS {
        for (name, targets) in edges(tree, base) {
            let own = room(base, name);
            let Some((_, allowed)) = table.iter().find(|(room, _)| *room == own) else {
                broken.push(format!("{name}: '{own}' is no room of {base}"));
                continue;
            };
            for target in targets {
                let other = room(base, target);
                if other != own && !allowed.contains(&other) {
                    broken.push(format!(
                        "{name} imports {target}: {own} may not import {other}"
                    ));
                }
            }
        }
    }
    broken
}

/// No file imports, over others, itself.
pub fn circles(tree: &Tree) -> Vec<String> {
    fn reaches<'a>(
        from: &'a str,
        to: &str,
        edges: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        seen: &mut BTreeSet<&'a str>,
    ) -> bool {
        edges.get(from).is_some_and(|targets| {
            targets
                .iter()
                .any(|next| *next == to || (seen.insert(next) && reaches(next, to, edges, seen)))
        })
    }
    let mut broken = Vec::new();
    for base in [
        "src",
        "src/bin/extentctl",
        "src/bin/extentd-nbd",
        "mapping/src",
        "vhost-backend/src",
        "front-end/src",
    ] {
        let edges = edges(tree, base);
        for name in edges.keys() {
            if reaches(name, name, &edges, &mut BTreeSet::new()) {
                broken.push(format!("{name} is in a circle of imports"));
            }
        }
    }
    broken
}
