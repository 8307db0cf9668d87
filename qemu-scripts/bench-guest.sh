#!/usr/bin/env bash
# Compares disks inside a virtual machine: QEMU's own virtio-blk with an iothread, qemu-storage-daemon and extentd, in
# one interleaved run. The guest is a program without a kernel (guest-load/) that polls its ring, so that what is
# measured is the path between the virtual CPU and the disk. Writes results.tsv, results.md and results.svg.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=bench-lib.sh
. "$SCRIPTS/bench-lib.sh"

# name | shown as | pattern,bytes,depth
ALL_CASES=(
    "randread-1|4k random read, depth 1|randread,4096,1"
    "randread-32|4k random read, depth 32|randread,4096,32"
    "randread-128|4k random read, depth 128|randread,4096,128"
    "randwrite-32|4k random write, depth 32|randwrite,4096,32"
    "read-128k-16|128k read, depth 16|read,131072,16"
)

usage() {
    say "usage: bench-guest.sh [options]
  --cases LIST        of: $(printf '%s ' "${ALL_CASES[@]%%|*}")
  --rounds N          how often each disk is measured (3)
  --ms N              how long a measurement takes, in milliseconds (1000)
  --ram loop|zram     the RAM disk: a loop device over a file in memory, or zram (zram)
  --fs ext4|xfs       the file system on it (ext4)
  --image-size SIZE   of the image, which is written in full first (512M)
  --extentd NAME=ARGS a variant of extentd; may be given again. If ARGS begin with /, the first is its
                      binary (extentd=)
  --accel kvm|tcg     how the guest runs; figures of TCG say something of disks only (kvm, where it is there)
  --guest-cpu N, --host-cpu N  where the virtual CPU runs, and all else of QEMU and the back-end (0 and 1)
  --out DIR           where the results go (target/bench-guest)
Needs root. Environment: EXTENTD=PATH uses that binary instead of building one."
}

cases='' rounds=3 ms=1000 ram=zram filesystem=ext4 image_size=512M accel='' guest_cpu=0 host_cpu=1
out=${CARGO_TARGET_DIR:-$ROOT/target}/bench-guest variants=()
while (($# > 0)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --cases | --rounds | --ms | --ram | --fs | --image-size | --extentd | --accel | --guest-cpu | --host-cpu | --out)
        (($# > 1)) || die "$1 needs a value (see --help)"
        case $1 in
        --cases) cases=$2 ;;
        --rounds) rounds=$2 ;;
        --ms) ms=$2 ;;
        --ram) ram=$2 ;;
        --fs) filesystem=$2 ;;
        --image-size) image_size=$2 ;;
        --extentd) variants+=("$2") ;;
        --accel) accel=$2 ;;
        --guest-cpu) guest_cpu=$2 ;;
        --host-cpu) host_cpu=$2 ;;
        --out) out=$2 ;;
        esac
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
check_variants
[[ $(id -u) == 0 ]] || die "the RAM disk needs root: run this as root"
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "--rounds '$rounds': give a number from 1"
[[ $ms =~ ^[1-9][0-9]*$ ]] || die "--ms '$ms': give a number from 1"
[[ $ram =~ ^(loop|zram)$ ]] || die "--ram '$ram': give loop or zram"
[[ $filesystem =~ ^(ext4|xfs)$ ]] || die "--fs '$filesystem': give ext4 or xfs"
[[ $accel =~ ^(|kvm|tcg)$ ]] || die "--accel '$accel': give kvm or tcg"
((guest_cpu != host_cpu)) || die "--guest-cpu and --host-cpu must differ: they would measure each other"
image_bytes=$(numfmt --from=iec "$image_size") || die "--image-size '$image_size': give bytes, or a number with K, M or G"
((image_bytes % (1 << 20) == 0)) || die "--image-size '$image_size': give whole MiB"
if [[ -z $accel ]]; then
    accel=tcg
    [[ ! -w /dev/kvm ]] || accel=kvm
fi
loads='' shown=()
for name in ${cases//,/ }; do
    [[ " ${ALL_CASES[*]%%|*} " == *" $name "* ]] || die "--cases: there is no '$name' (see --help)"
done
for entry in "${ALL_CASES[@]}"; do
    IFS='|' read -r name title load <<<"$entry"
    [[ -z $cases || ",$cases," == *",$name,"* ]] || continue
    loads+="$load,$ms;"
    shown+=("$title")
done

"$SCRIPTS/setup.sh" --bench
build_extentd
cargo build --quiet --release --manifest-path "$ROOT/Cargo.toml" -p extentd-front-end --bin extentd-bench-report ||
    die "the build failed"
tools=${CARGO_TARGET_DIR:-$ROOT/target}/release

begin_work extentd-bench-guest

# Makes the guest's program, $work/guest.
make_guest() {
    local flags=(-m64 -O2 -Wall -ffreestanding -fpie -nostdlib -fno-jump-tables -fno-tree-loop-distribute-patterns -mno-red-zone
        -mno-sse -mno-mmx -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables -fvisibility=hidden)
    cc "${flags[@]}" -c "$SCRIPTS/guest-load/load.c" -o "$work/load.o"
    cc -m64 -c "$SCRIPTS/guest-load/start.S" -o "$work/start.o"
    ld -m elf_x86_64 -N -z noexecstack --no-warn-rwx-segments -Ttext 0x100000 --section-start=.note.pvh=0x1f0000 \
        -e start "$work/start.o" "$work/load.o" -o "$work/guest"
}

# Writes the image $1: what does not compress, with the number of each sector at its beginning.
make_image() {
    images+=("$1")
    perl -e 'my ($mib, $sector) = ($ARGV[0], 0);
        open my $noise, "<:raw", "/dev/urandom" or die;
        binmode STDOUT;
        for (1 .. $mib) {
            read($noise, my $piece, 1 << 20) == 1 << 20 or die;
            substr($piece, 512 * $_, 8) = pack "Q<", $sector++ for 0 .. 2047;
            print $piece;
        }' "$((image_bytes >> 20))" | dd of="$1" bs=1M iflag=fullblock oflag=direct conv=fsync status=none
}

# Nanoseconds of CPU that the processes $@ have used, without the thread of the virtual CPU.
host_time() {
    local pid task name spent=0 used
    for pid; do
        for task in "/proc/$pid/task/"*; do
            read -r name <"$task/comm" || continue
            [[ $name != *CPU* ]] || continue
            read -r used _ <"$task/schedstat" || continue
            ((spent += used))
        done
    done
    echo "$spent"
}

# Boots the guest with the disk of QEMU's arguments $3..., which is called $1 and served by process $2 (or QEMU alone,
# if that is empty), and records what it tells.
measure_guest() {
    local name=$1 pids_of=() line word number requests nanoseconds p50 p99 p999 bad task before after
    [[ -z $2 ]] || pids_of=("$2")
    shift 2
    coproc GUEST {
        exec taskset -c "$host_cpu" qemu-system-x86_64 -name guest,debug-threads=on -accel "$accel" -nodefaults -display none \
            -m 256 -machine pc,memory-backend=mem -object memory-backend-memfd,id=mem,size=256M,share=on \
            -kernel "$work/guest" -append "$loads" -serial stdio -device isa-debug-exit,iobase=0xf4 -no-reboot "$@" 2>"$out/qemu.log"
    }
    local guest=$GUEST_PID
    pids+=("$guest")
    pids_of+=("$guest")
    while read -r -t 60 -u "${GUEST[0]}" line; do
        read -r word number requests nanoseconds p50 p99 p999 _ bad <<<"${line%$'\r'}"
        case $word in
        hello)
            for task in "/proc/$guest/task/"*; do
                [[ $(<"$task/comm") != *CPU* ]] || taskset -pc "$guest_cpu" "${task##*/}" >/dev/null
            done
            ;;
        begin) before=$(host_time "${pids_of[@]}") ;;
        end)
            after=$(host_time "${pids_of[@]}")
            ((bad == 0)) || die "$name: $bad requests of '${shown[number]}' failed, or read what is not there"
            # shellcheck disable=SC2046
            record "$place" "${shown[number]}" "$name" $(awk -v n="$requests" -v ns="$nanoseconds" -v cpu="$((after - before))" \
                -v a="$p50" -v b="$p99" -v c="$p999" 'BEGIN { print n * 1e9 / ns, cpu / 1000 / n, a / 1000, b / 1000, c / 1000 }')
            ;;
        done) break ;;
        FAIL) die "$name: the guest says: $line" ;;
        esac
    done
    [[ ${word:-} == "done" ]] || die "$name: the guest has not come to its end: $(tail -n 1 "$out/qemu.log")"
    stop_all
}

# Starts the back-end $2..., which is called $1, and measures it.
measure_backend() {
    start_backend "$1" "$host_cpu" "${@:2}"
    measure_guest "$1" "$backend_pid" -chardev "socket,id=c,path=$socket" \
        -device vhost-user-blk-pci,chardev=c,num-queues=1,queue-size=256,disable-legacy=on
}
measure_extentd() {
    local name binary arguments
    split_variant "$1"
    measure_backend "$name" "$binary" --socket-path "$socket" --blk-file "$image" --num-queues 1 "${arguments[@]}"
}

socket=$work/socket image=$work/mnt/image place="$filesystem on a RAM disk ($ram), inside a guest ($accel)"
mkdir -p "$out"
rm -f "$out"/*.log
: >"$out/results.tsv"
make_guest
enter_ram "$filesystem"
make_image "$image"
qsd_command "$image" 1
for ((round = 1; round <= rounds; round++)); do
    for variant in "${variants[@]}"; do
        measure_extentd "$variant"
    done
    measure_backend qemu-storage-daemon "${qsd[@]}"
    measure_guest "QEMU's own" "" -object iothread,id=io0 \
        -blockdev "driver=file,node-name=f,filename=$image,cache.direct=on,aio=io_uring" \
        -device virtio-blk-pci,drive=f,iothread=io0,num-queues=1,queue-size=256,disable-legacy=on
done
leave_place

note="$rounds interleaved rounds of $ms ms on Linux $(uname -r), $(nproc) CPUs; medians, and ratios of medians to QEMU's own virtio-blk with an iothread ($(qemu-system-x86_64 --version | sed -n '1s/.*version \([^ ]*\).*/\1/p')). The guest's CPU is CPU $guest_cpu, all else is on CPU $host_cpu; CPU seconds are the host's without the virtual CPU."
"$tools/extentd-bench-report" "$out/results.tsv" --title "Disks inside a guest" --reference "QEMU's own" --markdown "$out/results.md" --svg "$out/results.svg" --note "$note"
cat "$out/results.md"
say "results: $out/results.md, $out/results.svg, $out/results.tsv"
