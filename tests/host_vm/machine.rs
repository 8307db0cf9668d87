//! The machine: how much it has, and its disks.

use std::ops::{Deref, DerefMut};
use std::path::Path;

use rig::qemu::vm::{Guest, Machine};
use rig::scratch::Scratch;

use crate::boot::{self, With};

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    Virtio,
    Nvme,
}

/// A machine to be booted.
pub struct HostMachine {
    machine: Machine,
    scratch: Scratch,
    with: With,
}

impl HostMachine {
    /// Two CPUs and `memory` MiB, of which the system and its programs take about 90.
    pub fn new(memory: u32) -> Self {
        Self {
            machine: Machine::new(2, memory),
            scratch: Scratch::new(),
            with: With::Ours,
        }
    }

    /// Adds an empty disk of `mebibytes`, of which [`HostVm::device`] tells the device.
    pub fn disk(self, bus: Bus, name: &str, mebibytes: u64) -> Self {
        self.disk_with(bus, name, mebibytes, "")
    }

    /// As [`disk`](Self::disk), with these properties of QEMU's device.
    pub fn disk_with(self, bus: Bus, name: &str, mebibytes: u64, properties: &str) -> Self {
        let image = self.scratch.image(&format!("{name}.disk"), mebibytes);
        self.node(name, &image).device(bus, name, name, properties)
    }

    /// One disk that is there under two names.
    pub fn disk_by_two(self, bus: Bus, names: [&str; 2], mebibytes: u64) -> Self {
        let image = self.scratch.image("shared.disk", mebibytes);
        let machine = self.node("shared", &image);
        names.iter().fold(machine, |machine, name| {
            machine.device(bus, "shared", name, ",share-rw=on")
        })
    }

    /// Files that live as long as the machine.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Adds a disk that is there already.
    pub fn disk_from(self, bus: Bus, name: &str, image: &Path) -> Self {
        self.node(name, image).device(bus, name, name, "")
    }

    fn node(mut self, name: &str, image: &Path) -> Self {
        self.machine = self.machine.with([
            "-blockdev".to_owned(),
            format!(
                "driver=raw,node-name={name},discard=unmap,file.driver=file,file.filename={}",
                image.display()
            ),
        ]);
        self
    }

    fn device(mut self, bus: Bus, node: &str, name: &str, properties: &str) -> Self {
        let driver = match bus {
            Bus::Virtio => "virtio-blk-pci",
            Bus::Nvme => "nvme",
        };
        self.machine = self.machine.with([
            "-device".to_owned(),
            format!("{driver},drive={node},serial={name}{properties}"),
        ]);
        self
    }

    /// More words on the kernel's command line.
    pub fn kernel_arguments(mut self, arguments: &'static str) -> Self {
        self.machine = self.machine.kernel_arguments(arguments);
        self
    }

    /// Its clock goes by the instructions that it executes, not by how busy this machine is. It has
    /// one CPU: two would have to take turns, and long ones.
    pub fn clock_by_instructions(mut self) -> Self {
        self.machine = self.machine.with(["-icount", "shift=2", "-smp", "1"]);
        self
    }

    /// qemu-storage-daemon is there too.
    pub fn storage_daemon(mut self) -> Self {
        self.with = With::StorageDaemon;
        self
    }

    /// This test program is there too.
    pub fn tests(mut self) -> Self {
        self.with = With::Tests;
        self
    }

    /// As [`tests`](Self::tests), and LVM too.
    pub fn volumes(mut self) -> Self {
        self.with = With::Volumes;
        self
    }

    /// Boots it, and leaves all else to the system in it; `None` as for [`boot`](Self::boot).
    pub fn boot_system(self) -> Option<HostVm> {
        let files = boot::files(self.with)?;
        Some(HostVm {
            guest: self.machine.boot(files, &self.scratch),
            _scratch: self.scratch,
        })
    }

    /// Boots it; `None`, after a line that says why, where something is not installed.
    pub fn boot(self) -> Option<HostVm> {
        let mut vm = self.boot_system()?;
        vm.run("mount -t cgroup2 cgroup /sys/fs/cgroup");
        vm.run("echo +memory >/sys/fs/cgroup/cgroup.subtree_control");
        vm.run("mkdir /dev/shm && mount -t tmpfs shm /dev/shm");
        Some(vm)
    }
}

/// A booted machine: a shell, as root.
pub struct HostVm {
    guest: Guest,
    _scratch: Scratch,
}

impl HostVm {
    /// The device of a disk of this machine.
    pub fn device(&mut self, name: &str) -> String {
        // NVMe has a second, hidden disk for each path to it, without a node.
        self.run(&format!(
            "cd /sys/block && grep -lx '{name} *' */serial */device/serial 2>/dev/null | cut -d/ -f1 | while read -r disk; do [ ! -b /dev/$disk ] || echo /dev/$disk; done"
        ))
    }

    /// Makes a file system (`ext4` or `xfs`) on a disk and mounts it; the folder.
    pub fn mount(&mut self, kind: &str, device: &str) -> String {
        let folder = format!(
            "/mnt/{}",
            device.trim_start_matches("/dev/").replace('/', "-")
        );
        self.run(&format!(
            "mkfs.{kind} -q {device} && mkdir {folder} && mount -t {kind} {device} {folder}"
        ));
        folder
    }

    /// A number that a command prints.
    pub fn number(&mut self, command: &str) -> u64 {
        let text = self.run(command);
        text.parse()
            .unwrap_or_else(|_| panic!("`{command}` printed {text:?}"))
    }

    /// Shuts it down; QEMU must end well.
    pub fn power_off(self) {
        self.guest.power_off();
    }
}

impl Deref for HostVm {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for HostVm {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}
