//! Folders for the files of a test.

use std::fs::File;
use std::path::PathBuf;

use tempfile::TempDir;

/// The files of one test; removed with it.
pub struct Scratch(TempDir);

impl Scratch {
    /// A new folder: in `$EXTENTD_TEST_DIR`, else in /var/tmp.
    pub fn new() -> Self {
        let parent = std::env::var_os("EXTENTD_TEST_DIR")
            .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        Self(
            tempfile::Builder::new()
                .prefix("extentd-guest.")
                .tempdir_in(parent)
                .unwrap(),
        )
    }

    /// Where a file of that name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new sparse image of `mebibytes`.
    pub fn image(&self, name: &str, mebibytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create_new(&path)
            .unwrap()
            .set_len(mebibytes << 20)
            .unwrap();
        path
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}
