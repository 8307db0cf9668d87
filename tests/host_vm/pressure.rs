//! A host that swaps all the time, on the disk that holds the image too.

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;
use crate::stress::sheltered;

/// Major faults of the process while the host swaps and it serves.
fn faults_while_the_host_swaps(vm: &mut HostVm, image: &str, left_out: &str) -> u64 {
    let before = format!("EXTENTD_TEST_WITHOUT={left_out}");
    let served = Served::start(vm, "strained", &before, image, "--swap");
    let load = "--pattern randrw --depth 8 --verify --sleep --seconds";
    served.load(vm, &format!("{load} 1"));
    let before = served.major_faults(vm);
    vm.strain(260);
    // It has nothing to do for a while, and so its memory is what the kernel takes first.
    vm.wait_swapped(40_000);
    let swapped = vm.counter("pswpin");
    let text = vm.run(&sheltered(&served.load_command(&format!("{load} 6"))));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
    let swapped = vm.counter("pswpin") - swapped;
    println!("without {left_out:?}: {swapped} pages came back while it served: {report}");
    assert!(swapped > 1000, "the host swaps no more");
    vm.relax();
    let faults = served.major_faults(vm) - before;
    let holds = served.ask(vm, "info")["swap"]["holds"] == true;
    assert_eq!(holds, left_out.is_empty());
    served.terminate(vm);
    faults
}

#[test]
fn a_host_that_swaps_on_the_same_disk_stalls_nothing_and_only_locked_memory_stays() {
    let machine = HostMachine::new(256).disk(Bus::Virtio, "disk", 640);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    vm.watch_for_stalls();
    vm.shelter();
    let disk = vm.device("disk");
    vm.run(&format!(
        "printf '%s\\n' 'label: dos' size=100MiB type=82 | sfdisk -q {disk}"
    ));
    vm.run(&format!("mkswap {disk}2 && swapon {disk}2"));
    let image = format!("{}/image", vm.mount("ext4", &format!("{disk}1")));
    vm.run(&format!("extentctl prepare --size 64M {image} 2>&1"));
    assert_eq!(faults_while_the_host_swaps(&mut vm, &image, ""), 0);
    let faults = faults_while_the_host_swaps(&mut vm, &image, "lock");
    println!("{faults} major faults without the lock");
    assert!(faults > 0);
    assert_eq!(vm.counter("oom_kill"), 0);
    vm.power_off();
}
