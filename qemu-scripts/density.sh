#!/usr/bin/env bash
# Many disks on one host: starts a process for each, and prints how much memory and CPU time a disk takes that nobody
# uses, one whose guest is idle, and one that is at work.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    say "usage: density.sh [--disks N] [--seconds N] [--extentd-arg ARG]...
  --disks N          how many (100)
  --seconds N        how long CPU time is measured in each state (10)
  --extentd-arg ARG  one more argument for each extentd
Memory is PSS, swapped or not: what several processes share, as their program's code, counts for each in part. A disk at work reads 4 KiB
at random with one request in flight. Environment: EXTENTD=PATH and EXTENTD_LOAD=PATH use those programs instead of building
them; EXTENTD_TEST_DIR names the folder for the images (default /var/tmp)."
}

disks=100 seconds=10 extra=()
while (($# > 0)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --disks | --seconds | --extentd-arg)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --disks) disks=$2 ;;
        --seconds) seconds=$2 ;;
        --extentd-arg) extra+=("$2") ;;
        esac
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
for pair in "--disks=$disks" "--seconds=$seconds"; do
    [[ ${pair#*=} =~ ^[1-9][0-9]*$ ]] || die "${pair%%=*}: '${pair#*=}' is not a positive number"
done
build_extentd
if [[ -z ${EXTENTD_LOAD:-} ]]; then
    cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" -p extentd-front-end --bin extentd-load || die "the build failed"
    EXTENTD_LOAD=${CARGO_TARGET_DIR:-$ROOT/target}/release/extentd-load
fi

work=$(mktemp -d "${EXTENTD_TEST_DIR:-/var/tmp}/extentd-density.XXXXXX")
pids=() loads=()
cleanup() {
    local status=$? pid
    trap - EXIT
    for pid in ${loads[@]+"${loads[@]}"} ${pids[@]+"${pids[@]}"}; do kill -TERM "$pid" 2>/dev/null || true; done
    wait || true
    rm -rf "$work"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# CPU time of all disks so far, in ticks.
ticks() {
    local pid sum=0 fields
    for pid in "${pids[@]}"; do
        read -r -a fields < <(sed 's/^.*) //' "/proc/$pid/stat")
        sum=$((sum + fields[11] + fields[12]))
    done
    echo "$sum"
}
# PSS and private memory of a disk on average, in KiB.
memory() {
    local pid
    for pid in "${pids[@]}"; do cat "/proc/$pid/smaps_rollup"; done |
        awk -v n="${#pids[@]}" '/^(Swap)?Pss:/ { pss += $2 } /^Private_/ { own += $2 } /^SwapPss:/ { own += $2 } END { printf "%d %d", pss / n, own / n }'
}
threads() {
    local pid
    for pid in "${pids[@]}"; do awk '/^Threads:/ { print $2 }' "/proc/$pid/status"; done | awk '{ sum += $1 } END { printf "%.0f", sum / NR }'
}
measure() {
    local before after pss own start=$EPOCHREALTIME took
    before=$(ticks)
    sleep "$seconds"
    after=$(ticks)
    # On a host that has more to do than it can, it is longer.
    took=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }')
    read -r pss own < <(memory && echo)
    awk -v what="$1" -v pss="$pss" -v own="$own" -v ticks=$((after - before)) -v hz="$(getconf CLK_TCK)" -v n="$disks" -v s="$took" -v threads="$(threads)" \
        'BEGIN { printf "| %s | %.1f MiB | %.1f MiB | %.2f %% | %s |\n", what, pss / 1024, own / 1024, 100 * ticks / hz / n / s, threads }'
}
# Has a front-end at each disk for so many seconds, with those further words.
load() {
    local index
    loads=()
    for ((index = 0; index < disks; index++)); do
        "$EXTENTD_LOAD" --socket-path "$work/$index.sock" --pattern randread --depth 1 --sleep --warm-up 1 --seconds "$1" --json >"$work/$index.json" &
        loads+=("$!")
    done
}

for ((index = 0; index < disks; index++)); do
    truncate -s 64M "$work/$index.img"
    # Blocks of its own, so that there is something to map.
    dd if=/dev/zero of="$work/$index.img" bs=1M count=16 conv=notrunc status=none
    EXTENTD_PID=''
    start_extentd "$work/$index.sock" --blk-file "$work/$index.img" ${extra[@]+"${extra[@]}"} 2>"$work/$index.log"
    pids+=("$EXTENTD_PID")
done
say "$disks disks, $("$EXTENTD" --version), $(nproc) CPUs"
say "| a disk that | PSS | of its own | CPU | threads |"
say "|---|---|---|---|---|"
measure "nobody uses"
load "$((seconds + 15))"
# All of them have their rings running before it is measured.
for ((index = 0; index < disks; index++)); do
    until grep -q 'a front-end has connected' "$work/$index.log"; do sleep 0.05; done
done
measure "reads without pause, as all others do"
for pid in "${loads[@]}"; do wait "$pid" || die "a load failed"; done
loads=()
awk -F'[:,]' '/"iops"/ { sum += $2; n++ } END { if (n) printf "%.0f requests a second together\n", sum }' "$work"/*.json
measure "was used, and whose guest has gone"
