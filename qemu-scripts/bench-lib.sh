# shellcheck shell=bash disable=SC2154,SC2034
# Shared by bench.sh and bench-guest.sh: places to measure in, back-ends, and what is gone again at the end. Sourced
# after lib.sh, never run. Written for bash.

pids=() mounts=() loop_device='' zram_number='' images=() ram_device='' ram_fs=''
# The kernel lets go of what io_uring held a little after the process has ended.
unmount() {
    local turns
    for ((turns = 0; turns < 100; turns++)); do
        umount "$1" 2>/dev/null && return 0
        sleep 0.1
    done
    umount --lazy "$1" || true
}
leave_place() {
    local index
    [[ ${#images[@]} -eq 0 ]] || rm -f "${images[@]}"
    images=()
    for ((index = ${#mounts[@]} - 1; index >= 0; index--)); do
        # The loop device goes between its file system and the file below it.
        if [[ ${mounts[index]} == "$work/memory" && -n $loop_device ]]; then
            losetup --detach "$loop_device" || true
            loop_device=''
        fi
        unmount "${mounts[index]}"
    done
    mounts=()
    if [[ -n $zram_number ]]; then
        echo 1 >"/sys/block/zram$zram_number/reset" || true
        echo "$zram_number" >/sys/class/zram-control/hot_remove || true
        zram_number=''
    fi
}
stop_all() {
    local pid
    for pid in "${pids[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    for pid in "${pids[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    pids=()
}
cleanup() {
    local status=$?
    trap - EXIT
    stop_all
    leave_place
    rm -rf --one-file-system "$work"
    exit "$status"
}
# Makes $work, the folder for all that is temporary, named after $1; what is made from now on is gone at the end.
begin_work() {
    work=$(mktemp -d "${EXTENTD_TEST_DIR:-/var/tmp}/$1.XXXXXX")
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# Makes the file system $1 on a RAM disk, of the kind $ram and for an image of $image_bytes, and mounts it on
# $work/mnt.
enter_ram() {
    local device size=$((image_bytes * 3 / 2 + (400 << 20)))
    if [[ $ram == loop ]]; then
        mkdir -p "$work/memory"
        mount -t tmpfs -o "size=$((size + (16 << 20)))" extentd-bench "$work/memory"
        mounts+=("$work/memory")
        truncate -s "$size" "$work/memory/disk"
        device=$(losetup --find --show --direct-io=on "$work/memory/disk" 2>/dev/null) ||
            device=$(losetup --find --show "$work/memory/disk")
        loop_device=$device
    else
        zram_number=$(cat /sys/class/zram-control/hot_add)
        echo lz4 >"/sys/block/zram$zram_number/comp_algorithm" || true
        echo "$size" >"/sys/block/zram$zram_number/disksize"
        device=/dev/zram$zram_number
    fi
    ram_device=$device ram_fs=$1
    mkdir -p "$work/mnt"
    format
    mounts+=("$work/mnt")
}
# Makes that file system anew, which is not mounted.
format() {
    case $ram_fs in
    ext4) mkfs.ext4 -q -F "$ram_device" ;;
    xfs) mkfs.xfs -q -f "$ram_device" ;;
    *) die "--fs '$ram_fs': give ext4 or xfs" ;;
    esac
    mount "$ram_device" "$work/mnt"
}

# The figure of key $1 in the JSON of extentd-load, or of extentctl, in file $2.
figure() { sed -n "s/^ *\"$1\": \([-+.0-9e]*\),\{0,1\}\$/\1/p" "$2"; }

# Adds a line to the results in $out: place, case, variant, IOPS, CPU, p50, p99, p99.9.
record() {
    (IFS=$'\t' && printf '%s\n' "$*") >>"$out/results.tsv"
    printf '  %-24s %-24s %10.0f IOPS  %6.2f CPU s/M  p99 %9.1f us\n' "$2" "$3" "$4" "$5" "$7"
}

# Completes $variants, the values of --extentd.
check_variants() {
    local variant
    ((${#variants[@]} > 0)) || variants=("extentd=")
    for variant in "${variants[@]}"; do
        [[ $variant == ?*=* ]] || die "--extentd '$variant': give NAME=ARGS"
    done
}
# Takes the value $1 of --extentd apart: sets name, binary and arguments.
split_variant() {
    name=${1%%=*} binary=$EXTENTD
    read -ra arguments <<<"${1#*=}"
    if [[ ${arguments[0]:-} == /* ]]; then
        binary=${arguments[0]}
        arguments=("${arguments[@]:1}")
    fi
}
# Starts the back-end $3..., which is called $1, on CPU $2, and waits until it listens; sets backend_pid.
start_backend() {
    local name=$1 cpu=$2
    shift 2
    rm -f "$socket"
    taskset -c "$cpu" "$@" 2>>"$out/$name.log" &
    backend_pid=$!
    pids+=("$backend_pid")
    wait_socket "$socket" "$backend_pid" || die "$name did not start: $(tail -n 1 "$out/$name.log")"
}
# Sets qsd to the command of a qemu-storage-daemon for the image $1 with $2 queues. discard=unmap, so that a discard
# frees blocks as it does with extentd.
qsd_command() {
    # shellcheck disable=SC2054 # commas of QEMU's
    qsd=(qemu-storage-daemon --object iothread,id=io0
        --blockdev "driver=file,node-name=f,filename=$1,cache.direct=on,aio=io_uring,discard=unmap"
        --export "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=$socket,writable=on,num-queues=$2,iothread=io0")
}
