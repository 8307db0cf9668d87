//! What guests boot from, and the program that runs inside them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::program::run;

/// The root of the source tree.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What a guest boots from.
#[derive(Debug)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initramfs, with the programs of the guest.
    pub initramfs: PathBuf,
}

/// Compiles the program that runs inside guests into the folder `built`; where it is, or why not.
/// Once for all machines of a process, whose tests ask for it at the same time: two linkers with
/// one output make each other crash.
pub fn verifier(built: &Path) -> Result<PathBuf, String> {
    static COMPILED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    COMPILED.get_or_init(|| compile(built)).clone()
}

fn compile(built: &Path) -> Result<PathBuf, String> {
    let source = Path::new(ROOT).join("tests/guest/verifier.rs");
    let name = format!("verifier-{}", std::process::id());
    let (verifier, new) = (built.join("verifier"), built.join(name));
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
        .arg(&new)
        .arg(source)
        .current_dir(built))?;
    std::fs::rename(new, &verifier).map_err(|error| error.to_string())?;
    Ok(verifier)
}

/// Packs an initramfs, a file of that path, with what make-initramfs.sh is told to take along, for
/// the kernel that setup.sh names when asked for it by `kernel`.
pub fn pack(initramfs: &Path, kernel: &str, arguments: &[String]) -> Result<BootFiles, String> {
    let scripts = Path::new(ROOT).join("qemu-scripts");
    run(Command::new("qemu-system-x86_64").arg("--version"))?;
    let kernel = run(Command::new(scripts.join("setup.sh")).arg(kernel))?
        .trim()
        .into();
    run(Command::new(scripts.join("make-initramfs.sh"))
        .arg("--out")
        .arg(initramfs)
        .args(arguments))?;
    Ok(BootFiles {
        kernel,
        initramfs: initramfs.to_owned(),
    })
}
