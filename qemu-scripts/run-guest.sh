#!/usr/bin/env bash
# Boots the user's own image or kernel in QEMU with its disk served by extentd.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    say "usage: run-guest.sh --image FILE [options] [-- QEMU-ARGUMENT...]
  --image FILE       the disk: a raw image or a block device. The guest boots from it unless --kernel
                     or --shell is given
  --kernel FILE      boot this kernel instead
  --initrd FILE      with this initramfs
  --append STRING    and this kernel command line (default: console=ttyS0 root=/dev/vda1)
  --shell            boot the small busybox guest of this folder and open a shell, the disk is /dev/vda
  --cpus N           virtual CPUs (2)
  --memory MIB       memory in MiB (1024)
  --num-queues N     queues of the disk (as many as CPUs)
  --read-only        the guest may not write to the disk
  --extentd-arg ARG  one more argument for extentd (repeatable)
  --kvm              run with KVM instead of emulating the CPU
What follows -- goes to QEMU, e.g. -- -nic user. The console is the terminal; Ctrl-a x ends QEMU.
Environment: EXTENTD=PATH uses that binary instead of building one."
}

image='' kernel='' initrd='' append='console=ttyS0 root=/dev/vda1' shell=0 cpus=2 memory=1024 queues='' accel=tcg
extentd_arguments=() qemu_arguments=()
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --shell) shell=1 ;;
    --kvm) accel=kvm ;;
    --read-only) extentd_arguments+=(--read-only) ;;
    --)
        shift
        qemu_arguments=("$@")
        break
        ;;
    --image | --kernel | --initrd | --append | --cpus | --memory | --num-queues | --extentd-arg)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --image) image=$2 ;;
        --kernel) kernel=$2 ;;
        --initrd) initrd=$2 ;;
        --append) append=$2 ;;
        --cpus) cpus=$2 ;;
        --memory) memory=$2 ;;
        --num-queues) queues=$2 ;;
        --extentd-arg) extentd_arguments+=("$2") ;;
        esac
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
[[ -n $image ]] || die "--image FILE is missing (see --help)"
[[ -f $image || -b $image ]] || die "--image: $image is neither a file nor a block device"
[[ -z $kernel || -r $kernel ]] || die "--kernel: cannot read $kernel"
[[ -z $initrd || -r $initrd ]] || die "--initrd: cannot read $initrd"
[[ -z $kernel || $shell == 0 ]] || die "--kernel and --shell exclude each other"
[[ -z $initrd || -n $kernel ]] || die "--initrd needs --kernel"
for pair in "--cpus=$cpus" "--memory=$memory" "--num-queues=${queues:=$cpus}"; do
    [[ ${pair#*=} =~ ^[1-9][0-9]*$ ]] || die "${pair%%=*}: '${pair#*=}' is not a positive number"
done
[[ $accel == tcg ]] || require_kvm

"$SCRIPTS/setup.sh"
build_extentd
work=$(mktemp -d "${TMPDIR:-/tmp}/extentd-guest.XXXXXX")
cleanup() {
    local status=$?
    trap - EXIT
    stop_extentd || true
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 143' TERM

boot=()
if ((shell)); then
    tools=()
    for tool in sfdisk mkfs.ext4 e2fsck blkdiscard; do tools+=(--tool "$tool"); done
    "$SCRIPTS/make-initramfs.sh" --out "$work/initramfs" "${tools[@]}"
    kernel=$(guest_kernel) initrd=$work/initramfs append='console=ttyS0 quiet'
fi
if [[ -n $kernel ]]; then
    boot=(-kernel "$kernel" -append "$append")
    [[ -z $initrd ]] || boot+=(-initrd "$initrd")
fi

start_extentd "$work/disk.sock" --blk-file "$image" --num-queues "$queues" ${extentd_arguments[@]+"${extentd_arguments[@]}"}
mapfile -t arguments < <(guest_arguments "$accel" "$memory" "$cpus" && disk_arguments "$work/disk.sock" "$queues")
status=0
qemu-system-x86_64 "${arguments[@]}" -serial mon:stdio ${boot[@]+"${boot[@]}"} ${qemu_arguments[@]+"${qemu_arguments[@]}"} || status=$?
stop_extentd || die "extentd ended with status $?"
exit "$status"
