#!/usr/bin/env bash
# Draws the pictures of the documents: a process with a load on an image in an ext4, its map and its
# counters. Cleans up in any case.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
"") ;;
-h | --help)
    say "usage: pictures.sh
Writes docs/pictures/map.svg, top.svg and dashboard.svg from a real process. Needs root for a loop device, mkfs.ext4,
prometheus and python3. Environment:
EXTENTD=PATH uses that binary, and extentctl and extentd-load beside it, instead of building them; EXTENTD_TEST_DIR names
the folder for the disk image (default /var/tmp)."
    exit 0
    ;;
*) die "unknown argument '$1' (see --help)" ;;
esac
((EUID == 0)) || die "needs root for a loop device"
for program in prometheus python3; do
    command -v "$program" >/dev/null || die "$program is missing: apt-get install $program"
done

if [[ -z ${EXTENTD:-} ]]; then
    cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" -p extentd -p extentd-front-end --bins || die "the build failed"
    EXTENTD=${CARGO_TARGET_DIR:-$ROOT/target}/release/extentd
fi
programs=$(dirname "$EXTENTD")
work=$(mktemp -d "${EXTENTD_TEST_DIR:-/var/tmp}/extentd-pictures.XXXXXX")
load_pid=''
exporter_pid=''
prometheus_pid=''
loop=''
cleanup() {
    local status=$?
    trap - EXIT
    [[ -z $load_pid ]] || kill "$load_pid" 2>/dev/null || true
    [[ -z $exporter_pid ]] || kill "$exporter_pid" 2>/dev/null || true
    [[ -z $prometheus_pid ]] || { kill "$prometheus_pid" 2>/dev/null && wait "$prometheus_pid"; } || true
    stop_extentd || true
    umount "$work/mounted" 2>/dev/null || true
    [[ -z $loop ]] || losetup --detach "$loop" || true
    rm -rf --one-file-system "$work"
    ((status == 0)) || say "pictures: FAILED"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

truncate --size 1G "$work/device"
loop=$(losetup --find --show --direct-io=on "$work/device")
mkfs.ext4 -q -F "$loop"
mkdir "$work/mounted"
mount "$loop" "$work/mounted"

# An image as it becomes in use: written in turn with another file, with holes, and a part that was set aside.
image=$work/mounted/image
for part in $(seq 0 39); do
    dd if=/dev/urandom of="$image" bs=1M count=$((part % 5 + 2)) seek=$((part * 9)) conv=notrunc,fsync status=none
    dd if=/dev/zero of="$work/mounted/other" bs=1M count=$((part % 3 + 1)) oflag=append conv=notrunc,fsync status=none
done
fallocate --offset 400M --length 64M "$image"
truncate --size 512M "$image"

# Free ports; where somebody takes one meanwhile, whoever wants it says so.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
metrics=127.0.0.1:$(free_port)
port=$(free_port)
start_extentd "$work/socket" --blk-file "$image" --control-path "$work/vm1.control" --pin-reserve 1M --num-queues 2
"$programs/extentctl" --control-path "$work/vm1.control" exporter --listen "$metrics" &
exporter_pid=$!
printf 'scrape_configs: [{job_name: extentd, scrape_interval: 1s, static_configs: [{targets: ["%s"]}]}]\n' "$metrics" >"$work/prometheus.yml"
prometheus --config.file "$work/prometheus.yml" --storage.tsdb.path "$work/series" --web.listen-address "127.0.0.1:$port" \
    >"$work/prometheus.log" 2>&1 &
prometheus_pid=$!
ctl() { "$programs/extentctl" --control-path "$work/vm1.control" "$@"; }
"$programs/extentd-load" --socket-path "$work/socket" --pattern randrw --range 200M --depth 4 --queues 2 --seconds 90 >"$work/load.log" 2>&1 &
load_pid=$!
# Its rings start twice; once it is at work they stay.
until ctl --json stats | grep -Eq '"requests": [0-9]{4,}' && ctl io-path disk >/dev/null 2>&1; do
    kill -0 "$load_pid" || die "the load has ended: $(cat "$work/load.log")"
    sleep 0.1
done
ctl advise pin 0..64M >/dev/null
ctl populate 0..256M >/dev/null
mkdir -p "$ROOT/docs/pictures"
ctl map --heat=4 --svg "$ROOT/docs/pictures/map.svg"
ctl top --interval 0.25 --count 40 --svg "$ROOT/docs/pictures/top.svg"
# A minute of series, while the load goes on and the map is used.
for _ in $(seq 6); do
    sleep 10
    ctl advise dontneed 64M..256M >/dev/null
done
"$ROOT/qemu-scripts/dashboard.py" "$ROOT/packaging/grafana-dashboard.json" "http://127.0.0.1:$port" 60 "$ROOT/docs/pictures/dashboard.svg" ||
    die "no picture of the dashboard; prometheus says: $(tail -n 3 "$work/prometheus.log")"
sed -i "s|$work|/run/extentd|g" "$ROOT/docs/pictures/dashboard.svg"
# The folder is another one each time.
sed -i "s|$work|/run/extentd|g" "$ROOT/docs/pictures/top.svg"
