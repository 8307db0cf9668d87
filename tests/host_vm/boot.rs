//! What the machine boots from, and which programs are in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rig::program::run;
use rig::qemu::boot::{self, BootFiles};

/// Kernel modules; NVMe and ext4 are built in.
const MODULES: [&str; 15] = [
    "xfs",
    "loop",
    "brd",
    "zram",
    "null_blk",
    "dm_delay",
    "dm_flakey",
    "dm_crypt",
    "algif_skcipher",
    "xts",
    "dm_mirror",
    "dm_thin_pool",
    "dm_snapshot",
    "dm_multipath",
    "dm_round_robin",
];
/// Programs of this machine. What is not here is busybox'.
const TOOLS: [&str; 9] = [
    "mkfs.ext4",
    "mkfs.xfs",
    "dmsetup",
    "losetup",
    "setpriv",
    "prlimit",
    "blkdiscard",
    "blockdev",
    "sfdisk",
];

/// The programs that the machine has besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// extentd, extentctl and extentd-load.
    Ours,
    /// qemu-storage-daemon too.
    StorageDaemon,
    /// This test program too, and what its scenes need.
    Tests,
    /// As `Tests`, and LVM.
    Volumes,
}

/// Prepared once per run. `None`, after a line that says why, where something is not installed.
pub fn files(with: With) -> Option<&'static BootFiles> {
    type Files = OnceLock<Result<BootFiles, String>>;
    static OURS: Files = OnceLock::new();
    static STORAGE_DAEMON: Files = OnceLock::new();
    static TESTS: Files = OnceLock::new();
    static VOLUMES: Files = OnceLock::new();
    let files = match with {
        With::Ours => OURS.get_or_init(|| prepare("host-vm", with)),
        With::StorageDaemon => STORAGE_DAEMON.get_or_init(|| prepare("host-vm-qsd", with)),
        With::Tests => TESTS.get_or_init(|| prepare("host-vm-tests", with)),
        With::Volumes => VOLUMES.get_or_init(|| prepare("host-vm-volumes", with)),
    };
    match files {
        Ok(files) => Some(files),
        Err(reason) => {
            println!("SKIP: {reason}");
            None
        }
    }
}

fn prepare(name: &str, with: With) -> Result<BootFiles, String> {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = built.join(name);
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    for module in MODULES {
        add("--module", module.to_owned());
    }
    let peer = match with {
        With::Ours => None,
        With::StorageDaemon => Some("qemu-storage-daemon"),
        With::Tests | With::Volumes => Some("cryptsetup"),
    };
    for tool in TOOLS.into_iter().chain(peer) {
        add("--tool", tool.to_owned());
    }
    let mut programs = vec![
        (rig::extentd!(), "extentd"),
        (rig::extentctl!(), "extentctl"),
        (load()?, "extentd-load"),
    ];
    if matches!(with, With::Tests | With::Volumes) {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        programs.push((this, "tests"));
    }
    for (program, name) in programs {
        // All of it lies in the memory of the machine.
        let stripped = folder.join(name);
        let mut strip = Command::new("strip");
        run(strip.arg("-o").arg(&stripped).arg(program))?;
        add("--tool", stripped.display().to_string());
    }
    if with == With::Volumes {
        for file in lvm()? {
            arguments.extend(["--file".to_owned(), file]);
        }
    }
    let verifier = format!("{}:/bin/verifier", boot::verifier(built)?.display());
    arguments.extend(["--file".to_owned(), verifier, "--host".to_owned()]);
    boot::pack(
        &built.join(format!("{name}-initramfs")),
        "--host-kernel",
        &arguments,
    )
}

/// LVM's program, unpacked and not installed, and the libraries that it needs; where each goes.
/// Those that this machine has are taken as they are, for the loader is this machine's too.
fn lvm() -> Result<Vec<String>, String> {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("qemu-scripts/setup.sh");
    let tree = PathBuf::from(run(Command::new(setup).arg("--lvm"))?.trim());
    let program = tree.join("usr/sbin/lvm");
    let own = tree.join("usr/lib/x86_64-linux-gnu");
    let said = run(Command::new("ldd")
        .env("LD_LIBRARY_PATH", &own)
        .arg(&program))?;
    let names = said.lines().filter_map(|line| line.split_once(" => "));
    let libraries = names.map(|(name, _)| {
        let name = name.trim();
        let to = Path::new("/lib/x86_64-linux-gnu").join(name);
        let from = if to.exists() {
            to.clone()
        } else {
            own.join(name)
        };
        format!("{}:{}", from.display(), to.display())
    });
    let program = format!("{}:/bin/lvm", program.display());
    Ok(std::iter::once(program).chain(libraries).collect())
}

/// Where extentd-load is: `$EXTENTD_LOAD`, else it is built, as cargo builds no program of another
/// package for a test.
fn load() -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("EXTENTD_LOAD") {
        return Ok(named.into());
    }
    let built = Path::new(env!("CARGO_BIN_EXE_extentd")).parent();
    let target = built.and_then(Path::parent).ok_or("no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "-p",
            "extentd-front-end",
            "--bin",
            "extentd-load",
        ])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR")))?;
    Ok(target.join("debug/extentd-load"))
}
