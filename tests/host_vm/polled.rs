//! A disk that need not interrupt: NVMe with a queue that is polled.

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;

/// Loads it, verified; how many operations there were, and how many of them were polled for.
fn load(vm: &mut HostVm, served: &Served) -> (u64, u64) {
    let verified = "--pattern randrw --depth 8 --verify --seconds 1 --warm-up 0";
    let report = served.load(vm, verified);
    assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
    let info = served.ask(vm, "info");
    let count = |name: &str| info["disk"]["operations"][name].as_u64().unwrap();
    let all = count("disk_operations") + count("file_operations");
    (all, count("polled_operations"))
}

/// As the image itself, and as the device under one.
#[test]
fn a_disk_that_need_not_interrupt_is_polled_where_that_pays() {
    let machine = HostMachine::new(384)
        .disk(Bus::Nvme, "fast", 320)
        .disk(Bus::Nvme, "raw", 32)
        .kernel_arguments("nvme.poll_queues=1");
    let Some(mut vm) = machine.boot() else {
        return;
    };
    let device = vm.device("fast");
    let file = format!("{}/image", vm.mount("ext4", &device));
    vm.run(&format!(
        "dd if=/dev/urandom of={file} bs=1M count=32 && sync {file}"
    ));
    let raw = vm.device("raw");
    for (name, image) in [("file", file), ("raw", raw)] {
        let mut serve = |poll: &str, expected: &str| {
            let options = format!("--threads 1 --poll-us {poll}");
            let unique = format!("{name}-{poll}");
            let served = Served::start(&mut vm, &unique, "", &image, &options);
            let counted = load(&mut vm, &served);
            let info = served.ask(&mut vm, "info");
            assert_eq!(info["disk"]["device_io"], expected, "{info}");
            served.terminate(&mut vm);
            println!("{name}, --poll-us {poll}: {counted:?} operations, and polled");
            counted
        };
        // Nobody looks.
        assert_eq!(serve("0", "queued").1, 0);
        // Looks for longer than an emulated disk takes.
        let (all, polled) = serve("100000", "polled");
        assert!(polled > all / 2, "{name}: {polled} of {all}");
        // Gives up before it has answered, at least now and then: many go the usual way.
        let (all, polled) = serve("1", "polled");
        assert!(polled + 256 <= all, "{name}: {polled} of {all}");
        assert!(polled > 0, "{name}: never tried");
    }
    vm.power_off();
}
