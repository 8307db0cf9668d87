//! `extentctl unshare` of a disk that is served: begins it, and follows it to its
//! end where that is wanted.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::thread;
use std::time::Duration;

use extentd::options::size;
use extentd::protocol::Request;
use extentd::protocol::done::Unsharing;
use extentd::protocol::info::Info;
use serde_json::Value;

use crate::ask::{PATIENCE, ask, understand};
use crate::bar;
use crate::commands;
use crate::disks::Shown;
use crate::output::harmless;
use crate::status::Failure;

/// How often is looked how far it is.
const STEP: Duration = Duration::from_millis(100);

/// Has the disk of the socket at `path` begin, and waits for the end if that is
/// wanted; `draws`: with a bar.
///
/// # Errors
/// It is refused, nobody answers, or it has ended early.
pub fn begin(path: &Path, rate: Option<u64>, waits: bool, draws: bool) -> Result<Shown, Failure> {
    let begun = commands::request(&Request::Unshare { rate }, path)?;
    if !waits {
        return Ok(begun);
    }
    let shared = understand::<Unsharing>(&begun.json)?.shared_bytes;
    let shown = (draws && io::stderr().is_terminal()).then(|| bar::of_bytes(shared));
    loop {
        let info: Info = understand(&ask(path, &Request::Info {}, PATIENCE)?)?;
        let Some(now) = info.unshare else {
            return Err("unshare: the extentd that had begun it has gone"
                .to_owned()
                .into());
        };
        if now.running {
            if let Some(bar) = &shown {
                bar.set_position(now.unshared_bytes);
            }
            thread::sleep(STEP);
            continue;
        }
        if let Some(bar) = shown {
            bar.finish_and_clear();
        }
        if let Some(error) = now.error {
            return Err(harmless(&error).into());
        }
        return Ok(Shown {
            text: ended(&now),
            json: serde_json::to_value(&now).unwrap_or(Value::Null),
            failure: None,
        });
    }
}

fn ended(now: &Unsharing) -> String {
    let left = match now.left_bytes {
        None | Some(0) => "nothing is shared any more".to_owned(),
        Some(left) => format!("{} are shared by now", size::display(left)),
    };
    format!(
        "{} were copied, and {left}\n",
        size::display(now.unshared_bytes)
    )
}
