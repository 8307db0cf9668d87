#!/usr/bin/env bash
# From nothing to a guest that partitions, formats, writes, reads back and verifies a disk served by
# extentd; then the host reads the same file out of the image and compares. Cleans up in any case.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

accel=tcg
for argument in "$@"; do
    case $argument in
    -h | --help)
        say "usage: quickstart.sh [--kvm]
  --kvm   run the guest with KVM instead of emulating its CPU
Installs QEMU and a guest kernel if they are missing (root or sudo), builds extentd, and shows a guest
using it. Environment: EXTENTD=PATH uses that binary instead of building one; EXTENTD_TEST_DIR names
the folder for the disk image (default /var/tmp); EXTENTD_CACHE the one for the guest kernel."
        exit 0
        ;;
    --kvm) accel=kvm ;;
    *) die "unknown argument '$argument' (see --help)" ;;
    esac
done
[[ $accel == tcg ]] || require_kvm

step() { printf '\n== %s\n' "$*"; }

step "1/6 what is needed: QEMU, a guest kernel, file-system tools"
"$SCRIPTS/setup.sh"
say "$(qemu-system-x86_64 --version | head -n 1); guest kernel $(guest_release)"

step "2/6 building extentd"
build_extentd
say "$EXTENTD"

work=$(mktemp -d "${EXTENTD_TEST_DIR:-/var/tmp}/extentd-quickstart.XXXXXX")
qemu_pid=''
cleanup() {
    local status=$?
    trap - EXIT
    # The time limit's process passes the signal on to QEMU.
    [[ -z $qemu_pid ]] || kill -TERM "$qemu_pid" 2>/dev/null || true
    stop_extentd || true
    rm -rf "$work"
    ((status == 0)) || say "quickstart: FAILED"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "3/6 a 256 MiB image, and extentd serving it"
truncate -s 256M "$work/disk.img"
start_extentd "$work/disk.sock" --blk-file "$work/disk.img" --num-queues 2 --serial quickstart
say "extentd (process $EXTENTD_PID) listens on $work/disk.sock"

step "4/6 a guest uses the disk"
cat >"$work/job" <<'JOB'
#!/bin/sh
set -e
show() { echo "guest# $*"; "$@"; }
echo "guest: Linux $(uname -r), disk /dev/vda of $(cat /sys/block/vda/size) sectors, serial $(cat /sys/block/vda/serial)"
echo "guest# sfdisk /dev/vda"
echo 'start=2048, type=L' | sfdisk --quiet --label gpt /dev/vda
show mkfs.ext4 -q -L quickstart /dev/vda1
mkdir -p /mnt
show mount -t ext4 /dev/vda1 /mnt
show dd if=/dev/urandom of=/mnt/data bs=1M count=64 2>/dev/null
written=$(sha256sum </mnt/data | cut -d' ' -f1)
show umount /mnt
echo 3 >/proc/sys/vm/drop_caches
show mount -t ext4 -o ro /dev/vda1 /mnt
read_back=$(sha256sum </mnt/data | cut -d' ' -f1)
show umount /mnt
[ "$written" = "$read_back" ] || { echo "guest: read back $read_back instead of $written"; exit 1; }
echo "guest: 64 MiB written and read back unchanged"
show e2fsck -fn /dev/vda1 2>/dev/null
echo "guest: sha256 $written"
JOB
"$SCRIPTS/make-initramfs.sh" --out "$work/initramfs" --job "$work/job" --tool sfdisk --tool mkfs.ext4 --tool e2fsck
mapfile -t arguments < <(guest_arguments "$accel" 256 2 && disk_arguments "$work/disk.sock" 2)
# The console goes to the screen and to a file; the time limit only keeps a stuck guest from staying for ever.
timeout 300 qemu-system-x86_64 "${arguments[@]}" -chardev stdio,id=console,logfile="$work/console" -serial chardev:console -kernel "$(guest_kernel)" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet panic=-1" </dev/null &
qemu_pid=$!
wait "$qemu_pid" || die "QEMU ended with status $?"
qemu_pid=''
tr -d '\r' <"$work/console" | grep -q '^guest: job ended with status 0$' || die "the guest did not finish its job"
checksum=$(tr -d '\r' <"$work/console" | sed -n 's/^guest: sha256 //p')

step "5/6 stopping extentd"
stop_extentd || die "extentd ended with status $?"
say "extentd ended with status 0"

step "6/6 the host reads the same file out of the image's first partition"
debugfs -R "dump /data $work/data" "$work/disk.img?offset=$((2048 * 512))" 2>/dev/null
seen=$(sha256sum "$work/data" | cut -d' ' -f1)
say "host:  sha256 $seen"
[[ -n $checksum && $seen == "$checksum" ]] || die "the host sees other bytes than the guest wrote ($checksum)"
say "The bytes agree. quickstart: OK"
