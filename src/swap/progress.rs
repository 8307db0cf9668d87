//! Shows how far a preparation is: a bar on a terminal, else a line for every
//! tenth.

use std::path::Path;

use crate::host::bar::Bar;
use crate::options::size;
use crate::swap::prepare::Progress;

/// Where progress is shown.
pub(crate) struct Display {
    name: String,
    bar: Bar,
    /// Tenths that were told.
    told: Option<u64>,
    line: Box<dyn FnMut(&str)>,
}

impl Display {
    /// Of the preparation of `image`, on standard error. Where that is no
    /// terminal, `line` gets each line.
    pub(crate) fn new(image: &Path, line: impl FnMut(&str) + 'static) -> Self {
        Self {
            name: image.display().to_string(),
            bar: Bar::new("preparing"),
            told: None,
            line: Box::new(line),
        }
    }

    /// It is this far.
    pub(crate) fn show(&mut self, progress: Progress) {
        if self.bar.show(progress.done, progress.total) {
            return;
        }
        let percent = percent(progress);
        let tenth = percent / 10;
        if self.told != Some(tenth) {
            self.told = Some(tenth);
            let (done, total) = (size::display(progress.done), size::display(progress.total));
            (self.line)(&format!(
                "preparing {}: {percent} % ({done} of {total})",
                self.name
            ));
        }
    }
}

/// How far it is; 100 only at the end.
pub(crate) fn percent(progress: Progress) -> u64 {
    let hundredth = u128::from(progress.done) * 100;
    let percent = hundredth.checked_div(u128::from(progress.total));
    u64::try_from(percent.unwrap_or(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn every_tenth_is_told_once() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let mut display = Display::new(Path::new("i"), move |line| {
            seen.lock().unwrap().push(line.to_owned());
        });
        display.bar = Bar::none();
        for done in 0..=1000 {
            display.show(Progress { done, total: 1000 });
        }
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 11, "{lines:?}");
        assert_eq!(lines[4], "preparing i: 40 % (400 bytes of 1000 bytes)");
    }

    #[test]
    fn nothing_to_do_is_all_done() {
        assert_eq!(percent(Progress { done: 0, total: 0 }), 100);
        assert_eq!(
            percent(Progress {
                done: 999,
                total: 1000
            }),
            99
        );
    }
}
