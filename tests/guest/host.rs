//! The host's side: what the guests boot from, and looking into an image.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rig::program::run;
use rig::qemu::boot::{self, BootFiles};

use crate::pattern;

/// Prepared once per run. `None`, after a line that says why, where something is not installed.
pub fn boot_files() -> Option<&'static BootFiles> {
    static FILES: OnceLock<Result<BootFiles, String>> = OnceLock::new();
    match FILES.get_or_init(prepare) {
        Ok(files) => Some(files),
        Err(reason) => {
            println!("SKIP: {reason}");
            None
        }
    }
}

fn prepare() -> Result<BootFiles, String> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut arguments = vec!["--module".to_owned(), "xfs".to_owned()];
    for tool in [
        "mkfs.ext4",
        "e2fsck",
        "mkfs.xfs",
        "xfs_repair",
        "blkdiscard",
    ] {
        arguments.extend(["--tool".to_owned(), tool.to_owned()]);
    }
    let verifier = format!("{}:/bin/verifier", boot::verifier(built)?.display());
    arguments.extend(["--file".to_owned(), verifier]);
    boot::pack(&built.join("guest-initramfs"), "--kernel", &arguments)
}

/// Calls `visit` with the number and the bytes of each sector of an image.
pub fn each_sector(image: &Path, mut visit: impl FnMut(u64, &[u8])) {
    let file = File::open(image).unwrap();
    let sectors = file.metadata().unwrap().len() / pattern::SECTOR as u64;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut bytes = [0; pattern::SECTOR];
    for sector in 0..sectors {
        reader.read_exact(&mut bytes).unwrap();
        visit(sector, &bytes);
    }
}

/// The digest of an image that `verifier random` wrote; every sector must be intact.
pub fn digest(image: &Path) -> String {
    let mut digest = 0;
    each_sector(image, |sector, bytes| {
        digest ^= pattern::digest(sector, pattern::generation(bytes, sector).unwrap());
    });
    format!("{digest:016x}")
}

/// The MD5 sum of a file, as the guest's md5sum prints it.
pub fn md5(path: &Path) -> String {
    let line = run(Command::new("md5sum").arg(path)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

/// Bytes that the file system holds for a file.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}
