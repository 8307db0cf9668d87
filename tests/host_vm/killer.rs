//! A host without memory, and without swap.

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;

/// Whether the process outlives that there is no memory left, among many that are smaller than it.
fn outlives(vm: &mut HostVm, image: &str, left_out: &str) -> bool {
    let before = format!("EXTENTD_TEST_WITHOUT={left_out}");
    let served = Served::start(vm, "candidate", &before, image, "--swap");
    let kills = vm.counter("oom_kill");
    vm.run("for i in $(seq 50); do verifier memory 5 1000000 >/dev/null 2>&1 & done");
    // Whoever goes first, several have to go for as long as it lives.
    vm.wait_for(&format!(
        "[ $(sed -n 's/^oom_kill //p' /proc/vmstat) -ge {} ] || ! kill -0 {} 2>/dev/null",
        kills + 5,
        served.pid
    ));
    let lives = served.lives(vm);
    if lives {
        let load = "--pattern randrw --verify --seconds 2 --warm-up 0";
        let report = served.load(vm, load);
        assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
    }
    vm.run("killall verifier; until ! pidof verifier; do sleep 0.05; done");
    if lives {
        served.terminate(vm);
    }
    lives
}

#[test]
fn a_protected_process_outlives_a_host_without_memory_and_another_is_the_first_to_go() {
    let machine = HostMachine::new(256)
        .disk(Bus::Virtio, "disk", 64)
        .kernel_arguments("log_buf_len=8M");
    let Some(mut vm) = machine.boot() else {
        return;
    };
    // All of the kernel's messages are to be there at the end.
    vm.run("echo 0 >/proc/sys/vm/oom_dump_tasks");
    let device = vm.device("disk");
    let image = format!("{}/image", vm.mount("ext4", &device));
    vm.run(&format!("truncate -s 16M {image}"));
    assert!(outlives(&mut vm, &image, ""));
    let others = usize::try_from(vm.counter("oom_kill")).unwrap();
    assert!(others >= 5, "only {others} were ended");
    assert!(!outlives(&mut vm, &image, "oom"));
    let victims = vm.run("dmesg | sed -n 's/.*Killed process [0-9]* (\\([^)]*\\)).*/\\1/p'");
    let victims: Vec<_> = victims.lines().collect();
    println!("{others} others, and then {:?}", &victims[others..]);
    assert!(victims[..others].iter().all(|one| *one == "verifier"));
    assert_eq!(victims[others], "extentd");
    vm.power_off();
}
