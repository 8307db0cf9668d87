//! Whether the log goes to systemd's journal, which takes the priority of a
//! line from a mark in front of it (sd-daemon(3)).

use std::sync::LazyLock;

use log::Level;

/// Standard error is the journal. It may lead elsewhere although a service
/// manager has set the variable, for another process.
static LISTENS: LazyLock<bool> = LazyLock::new(|| {
    let stream = std::env::var("JOURNAL_STREAM").ok();
    stream.is_some_and(|stream| {
        rustix::fs::fstat(rustix::stdio::stderr())
            .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
    })
});

/// Finds that out, so that nobody has to later.
pub(super) fn find() {
    LazyLock::force(&LISTENS);
}

/// What stands in front of a line of this level; nothing where nobody
/// understands it.
pub(super) fn mark(level: Level) -> &'static str {
    if !*LISTENS {
        return "";
    }
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}
