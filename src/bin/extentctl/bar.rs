//! The bar of what is asked of an extentd, on standard error.

use indicatif::{ProgressBar, ProgressStyle};

/// What it looks like.
const STYLE: &str = "{wide_bar} {binary_bytes} of {binary_total_bytes}, {eta} left";

/// One for so many bytes.
pub fn of_bytes(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(STYLE);
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_style_is_sound() {
        assert!(ProgressStyle::with_template(STYLE).is_ok());
    }
}
