//! Guests under QEMU, emulated without KVM.

pub mod boot;
pub mod qmp;
pub mod vm;
