//! The firmware's own driver, which polls, uses one small request at a time and never sets up an
//! interrupt.

use rig::qemu::vm::Machine;
use rig::scratch::Scratch;

use crate::daemon::Daemon;
use crate::host;

/// A boot sector that reads the second sector by the BIOS, sends its text to the serial port, and
/// ends QEMU by writing 0x10 to the port of isa-debug-exit.
const BOOT_CODE: [u8; 40] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0x8e, 0xc0, // mov es, ax
    0xb8, 0x01, 0x02, // mov ax, 0x0201: read one sector
    0xbb, 0x00, 0x7e, // mov bx, 0x7e00
    0xb9, 0x02, 0x00, // mov cx, 2: the second sector of the first track
    0xb6, 0x00, // mov dh, 0
    0xcd, 0x13, // int 0x13
    0x72, 0x0e, // jc end
    0xbe, 0x00, 0x7e, // mov si, 0x7e00
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz end
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xb0, 0x10, // end: mov al, 0x10
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

#[test]
fn firmware_boots_from_the_disk() {
    // The kernel is not used, but what else a guest needs is there where it is.
    if host::boot_files().is_none() {
        return;
    }
    let scratch = Scratch::new();
    let text = b"read by the firmware\n";
    let mut content = vec![0; 1 << 20];
    content[..BOOT_CODE.len()].copy_from_slice(&BOOT_CODE);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content[512..512 + text.len()].copy_from_slice(text);
    let image = scratch.path("disk");
    std::fs::write(&image, content).unwrap();
    let daemon = Daemon::start(&scratch.path("disk.sock"), &image, &[]);
    let machine = Machine::new(1, 64)
        .disk(&daemon, "vd0", 1)
        .with(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    let (status, console) = machine.run_firmware(&scratch);
    // isa-debug-exit shifts the value and sets the lowest bit.
    assert_eq!(status.code(), Some(0x21), "{console}");
    assert!(console.contains("read by the firmware"), "{console}");
    assert!(daemon.terminate().success());
}
