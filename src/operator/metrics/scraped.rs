//! Disks, and what is known of them.

use std::time::Duration;

use crate::protocol::statistics::Statistics;

/// A disk, and what it said.
#[derive(Debug, Clone)]
pub struct Scraped {
    /// Whom an exporter asked, and for how long; `None` where a disk tells of
    /// itself.
    pub asked: Option<Asked>,
    /// `None` where no answer came.
    pub statistics: Option<Statistics>,
}

/// Whom an exporter has asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The name of the control socket; with its folder where several have one
    /// name.
    pub control: String,
    /// How long the answer took, or its want was borne.
    pub time: Duration,
}

impl From<Statistics> for Scraped {
    fn from(statistics: Statistics) -> Self {
        Self {
            asked: None,
            statistics: Some(statistics),
        }
    }
}

/// A name and its value.
pub(super) type Label<'a> = (&'a str, &'a str);

impl Scraped {
    /// What all samples of this disk have.
    pub(super) fn labels(&self) -> Vec<Label<'_>> {
        let control = self
            .asked
            .iter()
            .map(|asked| ("control", asked.control.as_str()));
        let disk = self
            .statistics
            .iter()
            .map(|statistics| ("disk", statistics.image.as_str()));
        control.chain(disk).collect()
    }
}
