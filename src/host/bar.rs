//! A bar on standard error that shows how far something is.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

/// The bar, where standard error is a terminal. It is gone when this is dropped.
#[derive(Debug)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
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

    /// As where there is no terminal.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// It is this far, in bytes; whether somebody sees that.
    pub fn show(&self, done: u64, total: u64) -> bool {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
        self.0.is_some()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
