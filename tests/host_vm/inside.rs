//! Scenes that play inside the machine: the test program is there too, and runs itself.

use crate::machine::{Bus, HostMachine, HostVm};
use crate::{failing, hanging, journalled, snapshot_unit, stacks, units, volumes};

/// Names the scene to a test program that runs in the machine.
const SCENE: &str = "EXTENTD_TEST_SCENE";
/// What runs there.
const NAME: &str = "inside::what_plays_in_the_machine";
/// Folder for files that are on none of the machine's disks.
const FOLDER: &str = "/tmp";

/// The disks of the machine that a scene may use.
pub struct Stage {
    pub devices: [String; 2],
}

type Scene = fn(&Stage);

const SCENES: [(&str, Scene); 17] = [
    ("hangs", hanging::hangs),
    ("is stopped", hanging::is_stopped),
    ("is killed", hanging::is_killed),
    ("is slow", hanging::is_slow),
    ("fails in places", failing::fails_in_places),
    ("fails at times", failing::fails_at_times),
    ("journals data", journalled::journals_data),
    ("volumes", stacks::volumes),
    ("volume changes", stacks::changes),
    ("LVM", volumes::change),
    ("encrypted", stacks::encrypted),
    ("partitions", stacks::partitions),
    ("large blocks", stacks::large_blocks),
    ("paths", stacks::paths),
    ("units", units::serve_restart_reload_and_recover),
    ("swap unit", units::serve_a_swap_device),
    ("snapshot unit", snapshot_unit::serve_a_snapshot),
];

/// Plays these in one machine, one after the other.
pub fn play(scenes: &[&str]) {
    let machine = HostMachine::new(768)
        .tests()
        .disk(Bus::Virtio, "first", 128)
        .disk(Bus::Virtio, "second", 128);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    vm.run("mkdir -p /run");
    let devices = [vm.device("first"), vm.device("second")];
    for scene in scenes {
        play_one(&mut vm, scene, &devices);
    }
    vm.power_off();
}

/// Plays one in a machine that has the programs.
pub fn play_one(vm: &mut HostVm, scene: &str, devices: &[String; 2]) {
    let devices = devices.join(" ");
    let said = vm.run(&format!(
        "{SCENE}='{scene}:{devices}' EXTENTD=$(command -v extentd) EXTENTD_TEST_DIR={FOLDER} TMPDIR={FOLDER} RUST_BACKTRACE=1 tests {NAME} --exact --nocapture"
    ));
    println!("{said}");
    assert!(said.contains("1 passed"), "{scene} was not played");
}

/// Nothing, where no scene is named.
#[test]
fn what_plays_in_the_machine() {
    let Ok(scene) = std::env::var(SCENE) else {
        return;
    };
    let (name, devices) = scene.split_once(':').unwrap();
    let (first, second) = devices.split_once(' ').unwrap();
    let play = SCENES.iter().find(|(scene, _)| *scene == name).unwrap().1;
    play(&Stage {
        devices: [first.to_owned(), second.to_owned()],
    });
}
