#!/usr/bin/env bash
# Boots a small guest on each kind of machine that docs/frontends.md shows, with its disks served by extentd. The guest
# writes to every disk, reads it back and compares; then the host looks into the images.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ALL=(q35 pc modern transitional microvm microvm-pci disks uefi hugepages numa old new)
usage() {
    say "usage: guests.sh [--kvm] [KIND...]
  --kvm         run guests with KVM instead of emulating the CPU
  q35, pc       the machines of most guests
  modern        a device of virtio 1 only
  transitional  a device that old drivers know as well
  microvm       a machine without PCI: the disk is a device of virtio-mmio
  microvm-pci   the same machine with PCI Express
  disks         four disks, told apart by their serial numbers
  uefi          booted from the disk by OVMF (needs ovmf, mtools, dosfstools)
  hugepages     guest memory on huge pages of 2 MiB (needs 128 free ones; root makes them, for as long as it takes)
  numa          guest memory on two nodes
  old           the kernel of Debian 11, 5.10 (fetched by old-kernel.sh)
  new           a kernel that has cachestat, 6.5 or newer (fetched by setup.sh --tests)
Without a kind all of them, one after the other. What cannot run here prints SKIP: and why.
Environment: EXTENTD=PATH uses that binary instead of building one; EXTENTD_TEST_DIR names the folder for the images
(default /var/tmp)."
}

accel=tcg kinds=()
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --kvm) accel=kvm ;;
    *)
        [[ " ${ALL[*]} " == *" $1 "* ]] || die "unknown argument '$1' (see --help)"
        kinds+=("$1")
        ;;
    esac
    shift
done
((${#kinds[@]} > 0)) || kinds=("${ALL[@]}")
cpu=()
if [[ $accel == kvm ]]; then
    require_kvm
    cpu=(-cpu host)
fi

"$SCRIPTS/setup.sh"
build_extentd
work=$(mktemp -d "${EXTENTD_TEST_DIR:-/var/tmp}/extentd-guests.XXXXXX")
qemu_pid='' pids=() huge_pages_before=''
cleanup() {
    local status=$?
    trap - EXIT
    [[ -z $qemu_pid ]] || kill -TERM "$qemu_pid" 2>/dev/null || true
    for EXTENTD_PID in ${pids[@]+"${pids[@]}"}; do stop_extentd || true; done
    rm -rf "$work"
    [[ -z $huge_pages_before ]] || echo "$huge_pages_before" >/proc/sys/vm/nr_hugepages || true
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The same work on every disk; the mark is for the host to find.
cat >"$work/job" <<'JOB'
#!/bin/sh
set -e
echo "guest: Linux $(uname -r)"
for disk in /sys/block/vd*; do
    name=${disk##*/}
    dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
    dd if=/tmp/data of="/dev/$name" bs=1M seek=40 conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    dd if="/dev/$name" bs=1M skip=40 count=4 2>/dev/null | cmp - /tmp/data
    echo "disk $(cat "$disk/serial")" | dd of="/dev/$name" bs=512 seek=98304 conv=fsync,sync 2>/dev/null
    echo "guest: $name, serial $(cat "$disk/serial"), $(ls "$disk/mq" | wc -l) queues, features $(cut -c1-40 "$disk/device/features" 2>/dev/null)"
done
JOB
"$SCRIPTS/make-initramfs.sh" --out "$work/initramfs" --job "$work/job" --module virtio_mmio

# Serves a new image of 64 MiB under that name, and sets `disk` to QEMU's words for its chardev.
serve() {
    [[ -e $work/$1.img ]] || truncate -s 64M "$work/$1.img"
    start_extentd "$work/$1.sock" --blk-file "$work/$1.img" --serial "$1"
    pids+=("$EXTENTD_PID")
    disk=(-chardev "socket,id=$1,path=$work/$1.sock,reconnect-ms=200")
}

# Runs QEMU with these arguments until the guest has powered off, and looks at what it said and wrote.
run() {
    local console=$work/console name
    rm -f "$console"
    # The time limit only keeps a stuck guest from staying for ever.
    timeout 120 qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -chardev "file,id=console,path=$console" -serial chardev:console ${cpu[@]+"${cpu[@]}"} -global virtio-mmio.force-legacy=false "$@" </dev/null &
    qemu_pid=$!
    wait "$qemu_pid" || die "QEMU ended with status $?"
    qemu_pid=''
    tr -d '\r' <"$console" | grep '^guest: ' || true
    tr -d '\r' <"$console" | grep -q '^guest: job ended with status 0$' || {
        tail -n 30 "$console"
        die "the guest did not finish its job"
    }
    for name in "${names[@]}"; do
        [[ $(dd if="$work/$name.img" bs=512 skip=98304 count=1 status=none | tr -d '\0') == "disk $name" ]] ||
            die "the host does not find in $name what the guest wrote"
    done
    for EXTENTD_PID in "${pids[@]}"; do stop_extentd || die "extentd ended with status $?"; done
    pids=()
    rm -f "$work"/*.img
}

memory() { printf '%s\n' -m 256M -smp 2 -object "memory-backend-memfd,id=mem,size=256M,share=on${1:-}"; }
kernel() { printf '%s\n' -kernel "$(guest_kernel)" -initrd "$work/initramfs" -append "console=ttyS0 quiet panic=-1${1:-}"; }

# A machine $1 with one disk of the device $2, memory with the properties $3, and the words $4 for its kernel.
one_disk() {
    names=("$kind")
    serve "$kind"
    mapfile -t arguments < <(memory "${3:-}" && kernel "${4:-}")
    run -machine "$1,memory-backend=mem,accel=$accel" "${arguments[@]}" "${disk[@]}" -device "$2,chardev=$kind"
}

several() {
    local all=() name
    names=(one two three four)
    for name in "${names[@]}"; do
        serve "$name"
        all+=("${disk[@]}" -device "vhost-user-blk-pci,chardev=$name")
    done
    mapfile -t arguments < <(memory && kernel)
    run -machine "q35,memory-backend=mem,accel=$accel" "${arguments[@]}" "${all[@]}"
}

# A disk whose EFI partition has the kernel, which the firmware's shell starts.
uefi() {
    local code=/usr/share/OVMF/OVMF_CODE_4M.fd image=$work/uefi.img
    if [[ ! -r $code ]] || ! have mcopy || ! have mkfs.vfat; then
        say "SKIP: no OVMF, mtools or dosfstools here"
        return
    fi
    names=(uefi)
    truncate -s 64M "$image"
    # What the guest writes lies behind the partition.
    echo 'start=2048, size=75776, type=U' | sfdisk --quiet --label gpt "$image"
    mkfs.vfat -F 16 --offset 2048 "$image" 37888 >/dev/null
    printf 'fs0:\r\nvmlinuz.efi console=ttyS0 quiet panic=-1 initrd=\\initramfs\r\n' >"$work/startup.nsh"
    MTOOLS_SKIP_CHECK=1 mcopy -i "$image@@1M" "$(guest_kernel)" ::/vmlinuz.efi
    MTOOLS_SKIP_CHECK=1 mcopy -i "$image@@1M" "$work/initramfs" "$work/startup.nsh" ::/
    serve uefi
    cp /usr/share/OVMF/OVMF_VARS_4M.fd "$work/vars"
    mapfile -t arguments < <(memory)
    run -machine "q35,memory-backend=mem,accel=$accel" "${arguments[@]}" \
        -drive "if=pflash,format=raw,readonly=on,file=$code" -drive "if=pflash,format=raw,file=$work/vars" \
        "${disk[@]}" -device vhost-user-blk-pci,chardev=uefi,bootindex=1
}

# Debian's kernel finds what is there by ACPI, with which it takes none of the clocks by which others measure how fast
# processors count. KVM tells it; else it has to be told, and an emulated processor counts as this one does.
microvm() {
    local words=''
    if [[ $accel != kvm ]]; then words=$(awk '/^cpu MHz/ { printf " tsc_early_khz=%d tsc=reliable", $4 * 1000; exit }' /proc/cpuinfo); fi
    one_disk "$1" "$2" '' "$words"
}

huge_pages() {
    local free pool=/proc/sys/vm/nr_hugepages
    free=$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)
    if ((free < 128)) && [[ -w $pool ]]; then
        huge_pages_before=$(<"$pool")
        echo $((huge_pages_before + 128 - free)) >"$pool"
        free=$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)
    fi
    if ((free < 128)); then
        say "SKIP: $free free huge pages of 2 MiB, and 128 are needed (vm.nr_hugepages)"
        return
    fi
    one_disk q35 vhost-user-blk-pci ,hugetlb=on,hugetlbsize=2M
}

numa() {
    names=(numa)
    serve numa
    mapfile -t arguments < <(kernel)
    run -machine "q35,accel=$accel" -m 256M -smp 2 \
        -object memory-backend-memfd,id=m0,size=128M,share=on -numa node,nodeid=0,cpus=0,memdev=m0 \
        -object memory-backend-memfd,id=m1,size=128M,share=on -numa node,nodeid=1,cpus=1,memdev=m1 \
        "${arguments[@]}" "${disk[@]}" -device vhost-user-blk-pci,chardev=numa
}

# The machine q35 with the kernel $1 and an initramfs for it, made with the option $2.
other_kernel() {
    "$SCRIPTS/make-initramfs.sh" --out "$work/initramfs-$kind" --job "$work/job" "$2"
    names=("$kind")
    serve "$kind"
    mapfile -t arguments < <(memory)
    run -machine "q35,memory-backend=mem,accel=$accel" "${arguments[@]}" "${disk[@]}" \
        -kernel "$1" -initrd "$work/initramfs-$kind" -append "console=ttyS0 quiet panic=-1" \
        -device "vhost-user-blk-pci,chardev=$kind"
}

old() {
    local image
    if ! image=$("$SCRIPTS/old-kernel.sh"); then
        say "SKIP: no old kernel here"
        return
    fi
    other_kernel "$image" --old
}

new() {
    local folder
    if ! folder=$(host_kernel_folder); then
        say "SKIP: no kernel of 6.5 or newer here"
        return
    fi
    other_kernel "$(kernel_image "$folder")" --host
}

for kind in "${kinds[@]}"; do
    say "== $kind"
    case $kind in
    q35 | pc) one_disk "$kind" vhost-user-blk-pci ;;
    modern) one_disk q35 vhost-user-blk-pci-non-transitional ;;
    transitional) one_disk pc vhost-user-blk-pci-transitional ;;
    microvm) microvm microvm vhost-user-blk,queue-size=1024 ;;
    microvm-pci) microvm microvm,pcie=on vhost-user-blk-pci ;;
    disks) several ;;
    uefi) uefi ;;
    hugepages) huge_pages ;;
    numa | old | new) "$kind" ;;
    esac
done
say "guests.sh: OK"
