//! Latency of page-sized I/O while the host swaps, with the lock on memory and without it, and
//! beside qemu-storage-daemon. Only what was read is
//! judged, and counted faults; times are printed, as ratios of one run: the machine is emulated.
//! `EXTENTD_TEST_LATENCY_ROUNDS` says how many rounds there are.

use serde_json::Value;

use crate::machine::{Bus, HostMachine, HostVm};
use crate::served::Served;
use crate::stress::sheltered;

/// Page by page, as swap goes, and the front-end sleeps as a guest does.
const LOAD: &str =
    "--pattern randrw --depth 4 --verify --sleep --warm-up 0 --range 16M --seconds 2";

/// What the processors do besides, with so many MiB: nothing, or the same work on memory that fits
/// and on memory that does not.
const STATES: [(&str, u64); 3] = [("idle", 0), ("busy", 20), ("swapping", 250)];
const BUSY: usize = 1;
const SWAPPING: usize = 2;

/// The figures of one back-end in one state, in microseconds, a round each.
#[derive(Default)]
struct Figures {
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    faults: u64,
}

impl Figures {
    fn add(&mut self, report: &Value) {
        for (name, figures) in [
            ("p50_us", &mut self.p50),
            ("p99_us", &mut self.p99),
            ("p999_us", &mut self.p999),
        ] {
            figures.push(report[name].as_f64().unwrap());
        }
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn storage_daemon(vm: &mut HostVm, image: &str) -> Served {
    let command = format!(
        "qemu-storage-daemon --object iothread,id=io0 --blockdev driver=file,node-name=f,filename={image},cache.direct=on,aio=io_uring --export type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=/tmp/qsd.sock,writable=on,num-queues=1,iothread=io0"
    );
    Served::run(vm, "qsd", &command).unwrap()
}

#[test]
fn latency_while_the_host_swaps_beside_qemu_storage_daemon() {
    let rounds = std::env::var("EXTENTD_TEST_LATENCY_ROUNDS");
    let rounds: usize = rounds.map_or(1, |text| text.parse().unwrap());
    let machine = HostMachine::new(256)
        .disk(Bus::Virtio, "disk", 144)
        .disk(Bus::Virtio, "swap", 512)
        .clock_by_instructions()
        .storage_daemon();
    let Some(mut vm) = machine.boot() else {
        return;
    };
    vm.watch_for_stalls();
    vm.shelter();
    let (device, swap) = (vm.device("disk"), vm.device("swap"));
    vm.run(&format!("mkswap {swap} && swapon {swap}"));
    let folder = vm.mount("ext4", &device);
    let images = ["locked", "unlocked", "qsd"].map(|name| format!("{folder}/{name}"));
    for image in &images {
        vm.run(&format!("extentctl prepare --size 32M {image} 2>&1"));
    }
    let unlocked = "EXTENTD_TEST_WITHOUT=lock";
    let back_ends = [
        Served::start(&mut vm, "locked", "", &images[0], "--swap"),
        Served::start(&mut vm, "unlocked", unlocked, &images[1], "--swap"),
        storage_daemon(&mut vm, &images[2]),
    ];
    let mut figures: [[Figures; 3]; 3] = Default::default();
    for _ in 0..rounds {
        for (state, (_, memory)) in STATES.into_iter().enumerate() {
            if memory > 0 {
                vm.strain(memory);
            }
            for (served, figures) in back_ends.iter().zip(&mut figures) {
                // It has nothing to do meanwhile, and what can be swapped out is.
                if state == SWAPPING {
                    vm.wait_swapped(20_000);
                }
                let faults = served.major_faults(&mut vm);
                let text = vm.run(&sheltered(&served.load_command(LOAD)));
                let report: Value = serde_json::from_str(&text).unwrap();
                assert!(report["verified_blocks"].as_u64().unwrap() > 0, "{report}");
                figures[state].add(&report);
                figures[state].faults += served.major_faults(&mut vm) - faults;
            }
            if memory > 0 {
                vm.relax();
            }
        }
    }
    println!("medians of {rounds} rounds, in microseconds; ratios to the same back-end when busy");
    let names = ["extentd", "extentd, not locked", "qemu-storage-daemon"];
    for (name, figures) in names.iter().zip(&figures) {
        let busy = median(&figures[BUSY].p999);
        for ((state, _), one) in STATES.iter().zip(figures) {
            let p999 = median(&one.p999);
            println!(
                "{name:20} {state:10} p50 {:9.0}  p99 {:9.0}  p99.9 {p999:9.0} ({:.2}x)  major faults {}",
                median(&one.p50),
                median(&one.p99),
                p999 / busy,
                one.faults
            );
        }
    }
    let [locked, unlocked, daemon] = figures.map(|figures| figures[SWAPPING].faults);
    assert_eq!(locked, 0);
    assert!(unlocked > 0 && daemon > 0, "the host swapped nothing out");
    let [locked, unlocked, _] = back_ends;
    locked.terminate(&mut vm);
    unlocked.terminate(&mut vm);
    vm.power_off();
}
