//! A machine that runs a real systemd, with the programs and the units where a package puts them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::program::run;
use rig::scratch::Scratch;

use crate::machine::{Bus, HostMachine, HostVm};

/// Units of Debian that want what the machine has not.
const MASKED: [&str; 8] = [
    "getty@.service",
    "serial-getty@.service",
    "getty-static.service",
    "console-getty.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-firstboot.service",
];
const AGENT: &str = "[Service]\nExecStart=/usr/bin/guest-agent /dev/ttyS1\nEnvironment=PATH=/usr/sbin:/usr/bin TERM=linux\n[Install]\nWantedBy=multi-user.target\n";
const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nextentd:x:990:990::/:/bin/false\n";
const GROUPS: &str = "root:x:0:\ndisk:x:6:\nextentd:x:990:\n";

/// Boots it, with a disk called `data` that holds an empty ext4; `None`, after a line that says
/// why, where something is not installed.
pub fn boot() -> Option<HostVm> {
    let machine = HostMachine::new(768);
    let made = root(machine.scratch()).and_then(|root| {
        let data = machine.scratch().image("data.disk", 256);
        run(Command::new("mkfs.ext4").arg("-q").arg(&data))?;
        Ok((root, data))
    });
    match made {
        Ok((root, data)) => machine
            .disk_from(Bus::Virtio, "root", &root)
            .disk_from(Bus::Virtio, "data", &data)
            .kernel_arguments(
                "extentd.root=vda fsck.mode=skip systemd.journald.forward_to_console=1",
            )
            .boot_system(),
        Err(reason) => {
            println!("SKIP: {reason}");
            None
        }
    }
}

/// The swap unit as the documentation shows it.
fn swap_unit() -> String {
    let text = include_str!("../../docs/swap.md");
    let unit = text.split("```ini\n# /etc/systemd/system/extentd-swap@.service\n");
    unit.last().unwrap().split("```").next().unwrap().to_owned()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("qemu-scripts")
        .join(name)
}

/// Makes the disk that the system is on.
fn root(scratch: &Scratch) -> Result<PathBuf, String> {
    let systemd = run(Command::new(script("setup.sh")).arg("--systemd"))?;
    let tree = scratch.path("root");
    run(Command::new("cp").args(["-a", systemd.trim()]).arg(&tree))?;
    fill(&tree).map_err(|error| format!("the system's root: {error}"))?;
    programs(&tree)?;
    let image = scratch.image("root.disk", 256);
    run(Command::new("mkfs.ext4")
        .args(["-q", "-d"])
        .arg(&tree)
        .arg(&image))?;
    fs::remove_dir_all(&tree).map_err(|error| error.to_string())?;
    Ok(image)
}

fn fill(tree: &Path) -> std::io::Result<()> {
    for folder in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "root",
        "mnt",
        "var/lib/extentd",
    ] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let units = tree.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted)?;
    for unit in MASKED {
        symlink("/dev/null", units.join(unit))?;
    }
    fs::write(units.join("agent.service"), AGENT)?;
    symlink("../agent.service", wanted.join("agent.service"))?;
    fs::write(units.join("extentd-swap@.service"), swap_unit())?;
    symlink(
        "/usr/lib/systemd/system/multi-user.target",
        units.join("default.target"),
    )?;
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    for unit in [
        "extentd@.service",
        "extentd@.socket",
        "extentd-nbd@.service",
        "extentd-nbd@.socket",
    ] {
        fs::copy(
            packaging.join(unit),
            tree.join("usr/lib/systemd/system").join(unit),
        )?;
    }
    fs::copy(packaging.join("debian/postinst"), tree.join(POSTINST))?;
    for kind in ["sysusers", "tmpfiles"] {
        let folder = tree.join(format!("usr/lib/{kind}.d"));
        fs::create_dir_all(&folder)?;
        fs::copy(
            packaging.join(format!("{kind}.conf")),
            folder.join("extentd.conf"),
        )?;
    }
    // Without one it would be the first boot.
    fs::write(tree.join("etc/machine-id"), format!("{:032x}\n", 7))?;
    fs::write(tree.join("etc/passwd"), PASSWD)?;
    fs::write(tree.join("etc/group"), GROUPS)
}

/// Where the package's script of an installation is, without the leading slash.
pub const POSTINST: &str = "usr/share/extentd.postinst";

/// Ours, and busybox' for all that Debian's few packages do not bring.
fn programs(tree: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let bin = tree.join("usr/bin");
    let this = std::env::current_exe().map_err(failed)?;
    for (program, name) in [
        (rig::extentd!(), "extentd"),
        (rig::extentctl!(), "extentctl"),
        (
            rig::program::named("EXTENTD_NBD", env!("CARGO_BIN_EXE_extentd-nbd")),
            "extentd-nbd",
        ),
        (this, "tests"),
    ] {
        run(Command::new("strip")
            .arg("-o")
            .arg(bin.join(name))
            .arg(program))?;
    }
    fs::copy(script("guest-agent"), bin.join("guest-agent")).map_err(failed)?;
    let shell = "cd \"$0\" && . ./lib.sh && static_busybox";
    let folder = script("");
    let busybox = run(Command::new("bash").args(["-c", shell]).arg(&folder))?;
    let to = bin.join("busybox");
    fs::copy(busybox.trim(), &to).map_err(failed)?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    for name in run(Command::new(&to).arg("--list"))?.lines() {
        let there = [&bin, &tree.join("usr/sbin")]
            .iter()
            .any(|folder| folder.join(name).exists());
        if !there {
            symlink("busybox", bin.join(name)).map_err(failed)?;
        }
    }
    Ok(())
}
