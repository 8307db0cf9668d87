#!/bin/bash
# QEMU's own tests of vhost-user-blk with extentd as their back-end: tests/qemu_qtests.sh QEMU_BUILD [TIMES]
#
# QEMU_BUILD is where QEMU was built with --enable-vhost-user --enable-tools for x86_64-softmmu: qemu-system-x86_64 and
# tests/qtest/qos-test are needed. Its source package has no firmware: link SeaBIOS's *.bin and ipxe's *.rom into
# QEMU_BUILD/qemu-bundle/usr/local/share/qemu. BACK_END=qsd runs qemu-storage-daemon instead, to compare with.
set -u
if [[ ${1-} == --as-storage-daemon ]]; then
    # Started by the tests with the command line of qemu-storage-daemon: one extentd for each export.
    declare -A file
    pids=()
    value() { local rest=",$2,"; rest=${rest#*,"$1"=}; printf %s "${rest%%,*}"; }
    while (($#)); do
        case $1 in
        --blockdev) file[$(value node-name "$2")]=$(value filename "$2") ;;
        --export)
            "$EXTENTD" --fd "$(value addr.str "$2")" --blk-file "${file[$(value node-name "$2")]}" \
                --num-queues "$(value num-queues "$2")" &
            pids+=($!) ;;
        esac
        shift
    done
    trap 'kill "${pids[@]}" 2>/dev/null' TERM
    status=0
    for pid in "${pids[@]}"; do
        # A signal interrupts the first wait; the second one tells how the process ended.
        wait "$pid"; code=$?
        ((code == 143)) && { wait "$pid"; code=$?; }
        ((code)) && status=1
    done
    exit "$status"
fi

here=$(cd "$(dirname "$0")/.." && pwd)
build=$(cd "${1:?QEMU_BUILD is missing}" && pwd) || exit 1
times=${2:-1}
export EXTENTD=${EXTENTD:-$here/target/debug/extentd}
work=$(mktemp -d /var/tmp/extentd-qtests.XXXXXX) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
printf '#!/bin/bash\nexec "%s" --as-storage-daemon "$@" 2>>"%s/log"\n' "$here/tests/qemu_qtests.sh" "$work" >daemon
chmod +x daemon
export QTEST_QEMU_BINARY=$build/qemu-system-x86_64 QTEST_QEMU_STORAGE_DAEMON_BINARY=$work/daemon
[[ ${BACK_END-} == qsd ]] && QTEST_QEMU_STORAGE_DAEMON_BINARY=$build/storage-daemon/qemu-storage-daemon

failed=0 passed=0
mapfile -t tests < <("$build/tests/qtest/qos-test" -l 2>/dev/null | grep '^/.*/vhost-user-blk-pci/')
for test in "${tests[@]}"; do
    for ((i = 0; i < times; i++)); do
        if timeout 60 "$build/tests/qtest/qos-test" -p "$test" >out 2>&1 && grep -q '^ok' out && ! grep -q SKIP out; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "FAILED: $test"; tail -n 5 out; [[ -f log ]] && tail -n 5 log
        fi
    done
done
echo "$passed passed, $failed failed"
((passed > 0 && failed == 0))
