#!/usr/bin/env bash
# Compares extentd with qemu-storage-daemon and with direct I/O without any back-end, in one interleaved
# run: every round measures each of them in turn, so that what else the machine does meets all alike.
# Writes results.tsv, results.md and results.svg. Cleans up in any case.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=bench-lib.sh
. "$SCRIPTS/bench-lib.sh"

# name | shown as | fio's rw | bytes | depth | queues | further options of extentd-load
ALL_CASES=(
    "randread-1|4k random read, depth 1|randread|4096|1|1|--pattern randread"
    "randread-32|4k random read, depth 32|randread|4096|32|1|--pattern randread"
    "randread-128|4k random read, depth 128|randread|4096|128|1|--pattern randread"
    "randwrite-32|4k random write, depth 32|randwrite|4096|32|1|--pattern randwrite"
    "randwrite-16|4k random write, depth 16|randwrite|4096|16|1|--pattern randwrite"
    "write-128k-8|128k write, depth 8|write|131072|8|1|--pattern write"
    "read-128k-16|128k read, depth 16|read|131072|16|1|--pattern read"
    "queues-4x32|4k random read, 4 x 32|randread|4096|32|4|--pattern randread --threads 1"
    "churn-read|churn, 4k read, depth 1||4096|1|2|--pattern churn --threads 1"
    "steady-read|100 MiB/s churn, 4k read||4096|1|2|--pattern churn --threads 1 --churn-rate 100"
    "steady-write|100 MiB/s churn, 4k write||4096|1|2|--pattern churn --read-percent 0 --threads 1 --churn-rate 100"
    "churn-write|churn, 4k write, depth 1||4096|1|2|--pattern churn --read-percent 0 --threads 1"
)

usage() {
    say "usage: bench.sh [options]
  --short             about two minutes: two cases, ext4 only, 3 rounds of 2 s
  --cases LIST        of: $(printf '%s ' "${ALL_CASES[@]%%|*}")
  --rounds N          how often each case is measured (3)
  --seconds S         how long a measurement takes (5)
  --warm-up S         what is not counted before it (1)
  --ram loop|zram|no  the RAM disk: a loop device over a file in memory, zram, or none (loop)
  --fs LIST           file systems to make on the RAM disk (ext4,xfs)
  --dir DIR           also measure on this folder's file system; may be given again
  --image-size SIZE   of the image (512M)
  --image KIND        written: in full, before all that is measured; sparse, allocated: a new one for each
                      measurement, in which nothing is written yet, without or with blocks. For first
                      writes: it should be larger than what is written in the time (written)
  --extentd NAME=ARGS a variant of extentd; may be given again. If ARGS begin with /, the first is its
                      binary (extentd=)
  --client HOW        sleep until an interrupt as a guest's driver does, or spin (sleep)
  --pieces WHERE      where churn has its pieces, apart or among (see extentd-load --help; apart)
  --no-qsd, --no-fio  leave qemu-storage-daemon or the direct I/O out
  --client-cpu N, --backend-cpu N  where each of them runs (0 and 1)
  --out DIR           where the results go (target/bench)
The RAM disk needs root. Environment: EXTENTD=PATH uses that binary instead of building one."
}

cases='' rounds=3 seconds=5 warm_up=1 ram=loop filesystems=ext4,xfs image_size=512M pieces=apart client=sleep kind=written
client_cpu=0 backend_cpu=1 with_qsd=1 with_fio=1 out=${CARGO_TARGET_DIR:-$ROOT/target}/bench
dirs=() variants=()
while (($# > 0)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --short) cases=randread-32,churn-read filesystems=ext4 seconds=2 ;;
    --no-qsd) with_qsd=0 ;;
    --no-fio) with_fio=0 ;;
    --cases | --rounds | --seconds | --warm-up | --ram | --fs | --dir | --image | --image-size | --extentd | --client | --pieces | --client-cpu | --backend-cpu | --out)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --cases) cases=$2 ;;
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --warm-up) warm_up=$2 ;;
        --ram) ram=$2 ;;
        --fs) filesystems=$2 ;;
        --dir) dirs+=("$2") ;;
        --image) kind=$2 ;;
        --image-size) image_size=$2 ;;
        --extentd) variants+=("$2") ;;
        --client) client=$2 ;;
        --pieces) pieces=$2 ;;
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
check_variants
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "--rounds '$rounds': give a number from 1"
[[ $client =~ ^(sleep|spin)$ ]] || die "--client '$client': give sleep or spin"
[[ $ram =~ ^(loop|zram|no)$ ]] || die "--ram '$ram': give loop, zram or no"
[[ $kind =~ ^(written|sparse|allocated)$ ]] || die "--image '$kind': give written, sparse or allocated"
[[ $ram == no || $(id -u) == 0 ]] || die "the RAM disk needs root: run this as root, or give --ram no and --dir DIR"
[[ $ram != no || ${#dirs[@]} -gt 0 ]] || die "--ram no leaves nothing to measure on: give --dir DIR"
((client_cpu != backend_cpu)) || die "--client-cpu and --backend-cpu must differ: they would measure each other"
for dir in "${dirs[@]}"; do
    [[ -d $dir && -w $dir ]] || die "--dir $dir: not a folder that can be written"
done
image_bytes=$(numfmt --from=iec "$image_size") || die "--image-size '$image_size': give bytes, or a number with K, M or G"
chosen=()
if [[ -z $cases ]]; then
    chosen=("${ALL_CASES[@]}")
else
    for name in ${cases//,/ }; do
        found=''
        for entry in "${ALL_CASES[@]}"; do
            [[ ${entry%%|*} != "$name" ]] || found=$entry
        done
        [[ -n $found ]] || die "--cases: there is no '$name' (see --help)"
        chosen+=("$found")
    done
fi

"$SCRIPTS/setup.sh" --bench
build_extentd
cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" -p extentd-front-end -p extentd --bin extentd-load --bin extentd-bench-report --bin extentctl ||
    die "the build failed"
tools=${CARGO_TARGET_DIR:-$ROOT/target}/release

begin_work extentd-bench

# Makes the image $1. One that is written is filled with what does not compress, so that all its extents are there.
make_image() {
    images+=("$1")
    case $kind in
    sparse) truncate -s "$image_bytes" "$1" ;;
    allocated) fallocate -l "$image_bytes" "$1" ;;
    *) write_image "$1" ;;
    esac
}
# A new image for the next measurement: on a RAM disk in a new file system, as what is left of the image before makes
# XFS half as fast, or not.
renew_image() {
    [[ $kind != written ]] || return 0
    rm -f "$1"
    if [[ $1 == "$work/mnt/"* ]]; then
        unmount "$work/mnt"
        format
    fi
    make_image "$1"
}
write_image() {
    dd if=/dev/urandom of="$1" bs=1M count="$image_bytes" iflag=fullblock,count_bytes oflag=direct conv=fsync status=none
}

# Loads the back-end of process $1, whose name is $2, as the case's variables say.
load() {
    local pid=$1 name=$2 generator
    local further=()
    [[ $options != *churn* ]] || further+=(--pieces "$pieces")
    [[ $client == spin ]] || further+=(--sleep)
    # shellcheck disable=SC2086
    "$tools/extentd-load" --socket-path "$socket" $options "${further[@]}" --size "$bytes" --depth "$depth" --queues "$queues" \
        --seconds "$seconds" --warm-up "$warm_up" --cpu "$client_cpu" --cpu-of "$pid" --json >"$work/report" &
    generator=$!
    pids+=("$generator")
    if [[ -e $work/control ]]; then
        # In the midst of the warm-up, when a lease has long been taken.
        sleep "$(awk -v w="$warm_up" 'BEGIN { print w / 2 }')"
        "$tools/extentctl" --control-path "$work/control" info >"$work/info" || true
        if ! grep -qE '^ +path +disk$' "$work/info"; then
            say "  NOTE: $name is not on the disk path: $(sed -n 's/^ *path reason *//p' "$work/info")"
        fi
    fi
    wait "$generator" || die "the load on $name failed"
    record "$place" "$shown" "$name" "$(figure iops "$work/report")" "$(figure cpu_seconds_per_million "$work/report")" \
        "$(figure p50_us "$work/report")" "$(figure p99_us "$work/report")" "$(figure p999_us "$work/report")"
    [[ $options != *churn* ]] || say "      with $(figure pieces_per_second "$work/report") MiB/s discarded and refilled"
}

# Starts the given back-end on its CPU, loads it, and stops it.
measure_backend() {
    rm -f "$work/control"
    start_backend "$1" "$backend_cpu" "${@:2}"
    load "$backend_pid" "$1"
    stop_all
}
measure_extentd() {
    local name binary arguments
    split_variant "$1"
    [[ ${arguments[*]} == *--io-path* ]] || arguments+=(--io-path auto)
    measure_backend "$name" "$binary" --socket-path "$socket" --blk-file "$image" --num-queues "$queues" \
        --control-path "$work/control" "${arguments[@]}"
}
measure_qsd() {
    local qsd
    qsd_command "$image" "$queues"
    measure_backend qemu-storage-daemon "${qsd[@]}"
}
# Fields of fio's terse output, version 3: 6 to 46 of reads, 47 to 87 of writes, 88 and 89 CPU.
measure_fio() {
    [[ -n $rw ]] || return 0
    local line
    line=$(fio --name=floor --filename="$image" --ioengine=io_uring --direct=1 --fixedbufs=1 --registerfiles=1 \
        --rw="$rw" --bs="$bytes" --iodepth="$depth" --numjobs="$queues" --group_reporting --norandommap \
        --size="$((image_bytes / queues))" --offset_increment="$((image_bytes / queues))" --cpus_allowed="$backend_cpu" \
        --time_based --runtime="$seconds" --ramp_time="$warm_up" --percentile_list=50:99:99.9 \
        --output-format=terse --terse-version=3 | grep '^3;') || die "fio failed"
    local values
    values=$(awk -F';' -v bytes="$bytes" -v jobs="$queues" -v write="$([[ $rw == *write ]] && echo 41 || echo 0)" '{
        for (i = 0; i < 3; i++) { split($(18 + write + i), part, "="); latency[i] = part[2] }
        cpu = ($88 + $89) / 100 * $(9 + write) / 1000 * jobs / ($(6 + write) * 1024 / bytes) * 1e6
        print $(8 + write), cpu, latency[0], latency[1], latency[2] }' <<<"$line")
    # shellcheck disable=SC2086
    record "$place" "$shown" "fio (no back-end)" $values
}

# Measures all cases on the image $2; the place is shown as $1.
measure_place() {
    local place=$1 image=$2 socket=$work/socket
    local entry name shown rw bytes depth queues options round variant
    say "== $place"
    make_image "$image"
    for entry in "${chosen[@]}"; do
        IFS='|' read -r name shown rw bytes depth queues options <<<"$entry"
        for ((round = 1; round <= rounds; round++)); do
            for variant in "${variants[@]}"; do
                renew_image "$image"
                measure_extentd "$variant"
            done
            ((!with_qsd)) || { renew_image "$image" && measure_qsd; }
            ((!with_fio)) || { renew_image "$image" && measure_fio; }
        done
    done
}

mkdir -p "$out"
rm -f "$out"/*.log
: >"$out/results.tsv"
if [[ $ram != no ]]; then
    for filesystem in ${filesystems//,/ }; do
        enter_ram "$filesystem"
        measure_place "$filesystem on a RAM disk ($ram)" "$work/mnt/image"
        leave_place
    done
fi
for dir in "${dirs[@]}"; do
    image=$(mktemp "$dir/extentd-bench.XXXXXX")
    measure_place "$dir ($(stat -f -c %T "$dir"))" "$image"
    leave_place
done

note="$rounds interleaved rounds of $seconds s on Linux $(uname -r), $(nproc) CPUs; medians, and ratios of medians to qemu-storage-daemon's $(qemu-storage-daemon --version | sed -n '1s/.*version \([^ ]*\).*/\1/p'). The client ${client}s on CPU $client_cpu, the back-end is on CPU $backend_cpu; CPU seconds are the back-end's."
"$tools/extentd-bench-report" "$out/results.tsv" --markdown "$out/results.md" --svg "$out/results.svg" --note "$note"
cat "$out/results.md"
say "results: $out/results.md, $out/results.svg, $out/results.tsv"
