#!/usr/bin/env bash
# Shows a guest that swaps on extentd: 192 MiB of RAM, 600 MiB of memory used, every page verified.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    say "usage: swap-guest.sh [--kvm] [--image FILE] [--rounds N]
  --image FILE  the swap device: prepared if it is not yet, made with 640 MiB if there is none
                (default: a new one in \$TMPDIR, removed afterwards)
  --rounds N    how often all memory is written and verified (3)
  --kvm         run with KVM instead of emulating the CPU
It must lie on ext4 or XFS. Where a privilege is missing or the device under the file system cannot be
opened, extentd goes on without (--swap=best-effort), and what does not hold is shown.
Environment: EXTENTD=PATH uses that binary (and extentctl beside it) instead of building one."
}

image='' rounds=3 accel=tcg
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --kvm) accel=kvm ;;
    --image | --rounds)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --image) image=$2 ;;
        --rounds) rounds=$2 ;;
        esac
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "--rounds: '$rounds' is not a positive number"
[[ $accel == tcg ]] || require_kvm
have rustc || die "rustc is missing: install Rust first"

"$SCRIPTS/setup.sh"
if [[ -z ${EXTENTD:-} ]]; then
    cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" --bins || die "the build failed"
    EXTENTD=${CARGO_TARGET_DIR:-$ROOT/target}/release/extentd
fi
build_extentd
extentctl=$(dirname "$EXTENTD")/extentctl
work=$(mktemp -d "${TMPDIR:-/var/tmp}/extentd-swap.XXXXXX")
cleanup() {
    local status=$?
    trap - EXIT
    stop_extentd || true
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 143' TERM

step() { say "== $*"; }

step "1/4 preparing the swap device"
: "${image:=$work/swap.img}"
if [[ -e $image ]]; then
    "$extentctl" prepare "$image"
else
    "$extentctl" prepare "$image" --size 640M
fi

step "2/4 packing a guest"
rustc --edition=2024 -O -Ctarget-feature=+crt-static -Cstrip=symbols -o "$work/verifier" "$ROOT/tests/guest/verifier.rs"
cat >"$work/job" <<JOB
#!/bin/busybox sh
echo 30 >/proc/sys/kernel/hung_task_timeout_secs
mkswap /dev/vda && swapon /dev/vda || exit 1
free -m
verifier memory 600 $rounds || exit 1
grep -E '^pswp' /proc/vmstat
JOB
"$SCRIPTS/make-initramfs.sh" --out "$work/initramfs" --job "$work/job" --file "$work/verifier:/bin/verifier"

step "3/4 a guest with 192 MiB uses 600 MiB"
start_extentd "$work/disk.sock" --blk-file "$image" --swap=best-effort --control-path "$work/control"
mapfile -t arguments < <(guest_arguments "$accel" 192 2 && disk_arguments "$work/disk.sock" 1)
qemu-system-x86_64 "${arguments[@]}" -serial "file:$work/console" -kernel "$(guest_kernel)" \
    -initrd "$work/initramfs" -append "console=ttyS0 quiet panic=-1 hung_task_panic=1"
tr -d '\r' <"$work/console"
tr -d '\r' <"$work/console" | grep -q '^guest: job ended with status 0$' || die "the guest did not finish its job"

step "4/4 what held meanwhile"
"$extentctl" --control-path "$work/control" info | sed -n '/^swap/,/^[^ s]/p' | grep -v '^threads'
stop_extentd || die "extentd ended with status $?"
say "Every page was verified. swap-guest: OK"
