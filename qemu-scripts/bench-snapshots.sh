#!/usr/bin/env bash
# Measures what a guest's load notices of a snapshot: the longest wait, and requests a second before, while the snapshot
# is made, and after it; beside it a plain clone of the same file, and what the file system gives without extentd. On
# XFS on a RAM disk. Writes snapshots.tsv. Cleans up in any case.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=bench-lib.sh
. "$SCRIPTS/bench-lib.sh"

usage() {
    say "usage: bench-snapshots.sh [options]
  --extents LIST     extents of the image in kilobytes: 4 makes a million of 4 GiB (1024,4)
  --image-size SIZE  of the image (4G)
  --rounds N         how often each is measured (3)
  --depth N          requests in flight (16)
  --read-percent N   reads among them (50)
  --seconds S        before it, and after it (10)
  --patience S       seconds within which it is whole (70)
  --without          measure the file system alone: rewrites by the file, before and after a clone (needs fio)
  --extentd ARGS     further options of extentd
  --client-cpu N, --backend-cpu N  where each of them runs (0 and 1)
  --out DIR          where the results go (target/bench)
Needs root. Environment: EXTENTD=PATH uses that binary instead of building one."
}

extents=1024,4 image_size=4G rounds=3 depth=16 read_percent=50 seconds=10 patience=70 client_cpu=0 backend_cpu=1 more='' alone=0
out=${CARGO_TARGET_DIR:-$ROOT/target}/bench
while (($# > 0)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --without) alone=1 ;;
    --extents | --image-size | --rounds | --depth | --read-percent | --seconds | --patience | --extentd | --client-cpu | --backend-cpu | --out)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --extents) extents=$2 ;;
        --image-size) image_size=$2 ;;
        --rounds) rounds=$2 ;;
        --depth) depth=$2 ;;
        --read-percent) read_percent=$2 ;;
        --seconds) seconds=$2 ;;
        --patience) patience=$2 ;;
        --extentd) more=$2 ;;
        --client-cpu) client_cpu=$2 ;;
        --backend-cpu) backend_cpu=$2 ;;
        --out) out=$2 ;;
        esac
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
[[ $(id -u) == 0 ]] || die "the RAM disk needs root"
((client_cpu != backend_cpu)) || die "--client-cpu and --backend-cpu must differ: they would measure each other"
bytes=$(numfmt --from=iec "$image_size") || die "--image-size '$image_size': give bytes, or a number with K, M or G"

"$SCRIPTS/setup.sh" --bench
build_extentd
cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" -p extentd-front-end -p extentd --bin extentd-load --bin extentctl ||
    die "the build failed"
tools=${CARGO_TARGET_DIR:-$ROOT/target}/release

begin_work extentd-snapshots
mkdir -p "$out"
: >"$out/snapshots.tsv"
socket=$work/socket control=$work/control ram=loop

# Makes the image $1 with extents of $2 KiB: parts of that size of two files, in turn.
make_image() {
    local size=$(($2 << 10)) other=$work/mnt/other
    dd if=/dev/urandom of="$1" bs=1M count="$bytes" iflag=fullblock,count_bytes oflag=direct conv=fsync status=none
    cp --reflink=always "$1" "$other"
    xfs_io -c "cowextsize $((size > 131072 ? size : 131072))" "$1"
    python3 - "$1" "$size" <<'PYTHON'
import os, sys
file, size = os.open(sys.argv[1], os.O_RDWR), int(sys.argv[2])
data = os.urandom(size)
for at in range(size, os.fstat(file).st_size, 2 * size):
    os.pwrite(file, data, at)
os.fsync(file)
PYTHON
    rm "$other"
    xfs_io -c "cowextsize 0" "$1"
    sync -f "$1"
}
# Requests a second and the longest latency of the load's report from second $1 to $2, in microseconds.
course() {
    python3 - "$work/report" "$1" "$2" <<'PYTHON'
import json, sys
report, begin, end = json.load(open(sys.argv[1])), float(sys.argv[2]), float(sys.argv[3])
every = report["interval_seconds"]
chosen = report["intervals"][round(begin / every) : round(end / every)]
assert chosen, "the load was over"
print(round(sum(i["requests"] for i in chosen) / (len(chosen) * every)), round(max(i["max_us"] for i in chosen)))
PYTHON
}
row() {
    (IFS=$'\t' && printf '%s\n' "$*") >>"$out/snapshots.tsv"
    printf '  %-10s %-34s %8.0f IOPS  longest %8.1f ms  %s\n' "$1" "$2" "$3" "$(awk -v us="$4" 'BEGIN { print us / 1000 }')" "${5:-}"
}
# Seconds since the counted time of the load began.
since() { awk -v began="$began" -v now="$(date +%s.%N)" 'BEGIN { print now - began - 3 }'; }
# Reports the time from second $2 to $4 seconds after second $3 as $1.
tell() {
    local figures
    figures=$(course "$2" "$(awk -v from="$3" -v more="$4" 'BEGIN { print from + more }')") || die "--patience is too short: $1"
    # shellcheck disable=SC2086
    row "$name" "$1" $figures
}
# Direct rewrites of the file $1 by io_uring, without a back-end.
rewrite() {
    local line
    line=$(fio --name=rewrite --filename="$1" --ioengine=io_uring --direct=1 --rw=randrw --rwmixread="$read_percent" --bs=4k --iodepth="$depth" \
        --norandommap --time_based --runtime="$seconds" --cpus_allowed="$backend_cpu" --output-format=terse --terse-version=3 | grep '^3;') || die "fio failed"
    awk -F';' '{ print $8 + $49 }' <<<"$line"
}

for size in ${extents//,/ }; do
    for ((round = 1; round <= rounds; round++)); do
        image_bytes=$((bytes * 2)) # with room for what is rewritten
        enter_ram xfs
        image=$work/mnt/image
        make_image "$image" "$size"
        count=$(filefrag "$image" | sed 's/.*: \([0-9]*\) extents\{0,1\} found/\1/')
        name="$size KiB"
        say "== round $round: $count extents of about $size KiB"
        begun=$(date +%s%N)
        cp --reflink=always "$image" "$work/mnt/clone"
        row "$name" "a plain clone" 0 $((($(date +%s%N) - begun) / 1000))
        rm "$work/mnt/clone"
        sync -f "$image"
        if ((alone)); then
            row "$name" "the file, before" "$(rewrite "$image")" 0
            cp --reflink=always "$image" "$work/mnt/clone"
            row "$name" "the file, after" "$(rewrite "$image")" 0
            leave_place
            continue
        fi
        mkdir "$work/mnt/snapshots"
        # shellcheck disable=SC2086
        start_backend extentd "$backend_cpu" "$EXTENTD" --socket-path "$socket" --blk-file "$image" --num-queues 1 \
            --control-path "$control" --snapshot-dir "$work/mnt/snapshots" $more
        "$tools/extentctl" --control-path "$control" advise --willneed >/dev/null 2>&1 || true
        total=$((2 * seconds + patience))
        "$tools/extentd-load" --socket-path "$socket" --pattern randrw --read-percent "$read_percent" --depth "$depth" --sleep \
            --warm-up 3 --seconds "$total" --every 0.1 --cpu "$client_cpu" --cpu-of "$backend_pid" --json >"$work/report" &
        loading=$!
        pids+=("$loading")
        began=$(date +%s.%N)
        sleep $((3 + seconds))
        moment=$(since)
        "$tools/extentctl" --control-path "$control" --json snapshot one >"$work/answer" || die "the snapshot failed"
        whole=$(since)
        wait "$loading" || die "the load failed"
        say "    all requests waited $(figure paused_us "$work/answer") us; whole after $(($(figure took_us "$work/answer") / 1000)) ms;" \
            "$(figure waited_requests "$work/answer") waited, the longest $(figure longest_wait_us "$work/answer") us"
        tell "before" 0 "$moment" -0.5
        tell "while it was made" "$moment" "$whole" 0
        tell "the $seconds s after its moment" "$moment" "$moment" "$seconds"
        tell "the $seconds s after it was whole" "$whole" "$whole" "$seconds"
        "$tools/extentctl" --control-path "$control" info >"$work/info"
        say "    $(grep -E '^ +path ' "$work/info" | tr -s ' ')"
        stop_all
        leave_place
    done
done
say "results: $out/snapshots.tsv"
