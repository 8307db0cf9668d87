//! Shows how far something is, on a terminal only; and asks whether it is to
//! go on.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};

/// Told how many bytes of how many are done; may ask to stop.
pub type Watch<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// A bar on standard error, if that is a terminal. It is gone when this is
/// dropped.
#[derive(Debug)]
pub struct Display(Option<ProgressBar>);

impl Display {
    /// With a word before it that says what is done.
    #[must_use]
    pub fn new(word: &'static str) -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let template = "{prefix} [{wide_bar}] {percent} %  {binary_bytes_per_sec}  {eta} left";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0)
                .with_style(style.progress_chars("=> "))
                .with_prefix(word)
        }))
    }

    /// It is this far, in bytes.
    pub fn show(&self, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
