//! What dm-crypt costs an image on a device of it. The machine is emulated, encryption included, so
//! the figures are for comparison within one run: they are printed, and only the ways that requests
//! took are judged. `EXTENTD_TEST_CRYPT_ROUNDS` says how many rounds there are.

use std::time::Instant;

use front_end::LIMIT;

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;
use crate::stacks::{WITHOUT_QUEUES, crypt};

const LOADS: [&str; 4] = [
    "--pattern randread",
    "--pattern randread --depth 16",
    "--pattern randwrite --depth 16",
    "--pattern read --size 128K --depth 4",
];

/// What is asked of a process, and how it asks its device.
struct Case {
    name: &'static str,
    before: &'static str,
    folder: String,
    expected: (&'static str, &'static str),
}

/// A file system with an image, on that device of a disk.
fn home(vm: &mut HostVm, device: &str) -> String {
    let folder = vm.mount("ext4", device);
    vm.run(&format!(
        "dd if=/dev/zero of={folder}/image bs=1M count=64 && sync {folder}/image"
    ));
    folder
}

fn on_crypt(vm: &mut HostVm, name: &str, disk: &str, options: &str) -> String {
    let disk = vm.device(disk);
    let sectors = vm.number(&format!("blockdev --getsz {disk}"));
    let target = crypt(&disk, options);
    let minor = vm.number(&format!(
        "dmsetup create {name} --noudevsync --noudevrules --table '0 {sectors} {target}' && dmsetup info -c --noheadings -o minor {name}"
    ));
    home(vm, &format!("/dev/dm-{minor}"))
}

#[test]
fn an_image_on_an_encrypted_device_and_on_another() {
    let rounds = std::env::var("EXTENTD_TEST_CRYPT_ROUNDS");
    // Who gives none wants no figures.
    let seconds = if rounds.is_ok() { 1.0 } else { 0.2 };
    let rounds: usize = rounds.map_or(1, |text| text.parse().unwrap());
    let machine = HostMachine::new(384)
        .disk(Bus::Virtio, "plain", 128)
        .disk(Bus::Virtio, "queued", 128)
        .disk(Bus::Virtio, "direct", 128);
    let Some(mut vm) = machine.boot() else {
        return;
    };
    let device = vm.device("plain");
    let plain = home(&mut vm, &device);
    let queued = on_crypt(&mut vm, "queued", "queued", "1 allow_discards");
    let direct = on_crypt(&mut vm, "direct", "direct", WITHOUT_QUEUES);
    let waits = "EXTENTD_TEST_WITHOUT=inlinelimit";
    let case = |name, before, folder: &String, expected| Case {
        name,
        before,
        folder: folder.clone(),
        expected,
    };
    let cases = [
        case("plain, disk", "", &plain, ("disk", "queued")),
        case("crypt, file", "", &queued, ("file", "queued")),
        case("crypt, disk", waits, &queued, ("disk", "inline")),
        case("crypt-direct, file", "", &direct, ("file", "queued")),
        case("crypt-direct, disk", waits, &direct, ("disk", "inline")),
    ];
    let mut figures = vec![vec![Vec::new(); LOADS.len()]; cases.len()];
    for _ in 0..rounds {
        for (case, figures) in cases.iter().zip(&mut figures) {
            let image = format!("{}/image", case.folder);
            let served = Served::start(&mut vm, "cost", case.before, &image, "--threads 1");
            for (load, figures) in LOADS.iter().zip(figures) {
                let load = format!("{load} --seconds {seconds} --warm-up 0.3");
                let report = served.load(&mut vm, &load);
                figures.push(report["iops"].as_f64().unwrap());
            }
            let (path, manner) = case.expected;
            let begun = Instant::now();
            let info = loop {
                let info = served.ask(&mut vm, "info");
                let raw = info["disk"]["operations"]["disk_operations"].as_u64();
                if (raw.unwrap() > 0) == (path == "disk") {
                    break info;
                }
                // On a busy machine all was over before the disk path was there.
                assert!(
                    path == "disk" && begun.elapsed() < LIMIT,
                    "{}: {info}",
                    case.name
                );
                served.load(&mut vm, &format!("{} --seconds 1 --warm-up 0.3", LOADS[0]));
            };
            assert_eq!(info["disk"]["device_io"], manner, "{info}");
            served.terminate(&mut vm);
        }
    }
    println!("requests a second, medians of {rounds} rounds: {LOADS:?}");
    for (case, figures) in cases.iter().zip(&mut figures) {
        let medians = figures.iter_mut().map(|figures| {
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        });
        let medians: Vec<String> = medians.map(|median| format!("{median:8.0}")).collect();
        println!("{:20}{}", case.name, medians.join(""));
    }
    vm.power_off();
}
