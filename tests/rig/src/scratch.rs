//! Folders for the files of a test.

use std::fs::File;
use std::path::PathBuf;

use tempfile::TempDir;

/// A folder for the files of a test of `suite`, removed when dropped: in
/// `$EXTENTD_TEST_DIR`, else in /var/tmp.
pub fn folder(suite: &str) -> TempDir {
    let parent = std::env::var_os("EXTENTD_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::Builder::new()
        .prefix(&format!("extentd-{suite}."))
        .tempdir_in(parent)
        .unwrap()
}

/// The files of one test with a guest; removed with it.
pub struct Scratch(TempDir);

impl Scratch {
    /// A new [`folder`].
    pub fn new() -> Self {
        Self(folder("guest"))
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
