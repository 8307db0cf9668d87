//! The host's side: where images live, what the guests boot from, and looking into an image.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

use crate::pattern;

/// How long anything may take before a test gives it up as stuck. Nothing is proved by it.
pub const LIMIT: Duration = Duration::from_secs(180);

/// The files of one test; removed with it.
pub struct Scratch(TempDir);

impl Scratch {
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

/// What every guest boots from.
#[derive(Debug)]
pub struct BootFiles {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

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
    let verifier = format!("{}:/bin/verifier", verifier()?.display());
    arguments.extend(["--file".to_owned(), verifier]);
    pack("guest-initramfs", "--kernel", &arguments)
}

/// Compiles the program that runs inside the guests; where it is.
pub fn verifier() -> Result<PathBuf, String> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/verifier.rs");
    let verifier = built.join("verifier");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let flags = [
        "--edition=2024",
        "-O",
        "-Dwarnings",
        "-Ctarget-feature=+crt-static",
        "-Cstrip=symbols",
        "-o",
    ];
    run(Command::new(rustc)
        .args(flags)
        .arg(&verifier)
        .arg(source)
        .current_dir(built))?;
    Ok(verifier)
}

/// Packs an initramfs of that name with what make-initramfs.sh is told to take along, for the
/// kernel that setup.sh names when asked for it by `kernel`.
pub fn pack(name: &str, kernel: &str, arguments: &[String]) -> Result<BootFiles, String> {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu-scripts");
    run(Command::new("qemu-system-x86_64").arg("--version"))?;
    let kernel = run(Command::new(scripts.join("setup.sh")).arg(kernel))?
        .trim()
        .into();
    let initramfs = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    run(Command::new(scripts.join("make-initramfs.sh"))
        .arg("--out")
        .arg(&initramfs)
        .args(arguments))?;
    Ok(BootFiles { kernel, initramfs })
}

/// Runs a program to its end; its output, or a line that tells what failed.
pub fn run(command: &mut Command) -> Result<String, String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command
        .output()
        .map_err(|error| format!("cannot run {name}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let message = String::from_utf8_lossy(&output.stderr);
        Err(format!(
            "{name} failed ({}): {}",
            output.status,
            message.trim()
        ))
    }
}

/// Waits for the end of `child`, which is killed when that takes too long.
pub fn wait_exit(mut child: Child) -> ExitStatus {
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    let waiter = std::thread::spawn(move || sender.send(child.wait()));
    let Ok(status) = receiver.recv_timeout(LIMIT) else {
        signal(pid, "KILL");
        waiter.join().unwrap().unwrap();
        panic!("process {pid} did not end");
    };
    waiter.join().unwrap().unwrap();
    status.unwrap()
}

/// Sends a signal to a process of ours that was not waited for yet.
pub fn signal(pid: u32, name: &str) {
    run(Command::new("kill").args(["-s", name, &pid.to_string()])).unwrap();
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
