#!/usr/bin/env bash
# How much of the parsers the inputs reach that fuzzing has kept: lines of the files that read what others chose.
# Expects an earlier run of tests/run.sh or of tests/fuzz.sh, and `rustup component add llvm-tools --toolchain nightly`.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
tools=$(rustc +nightly --print sysroot)/lib/rustlib/$host/bin
if [[ ! -x $tools/llvm-cov ]]; then
    echo "fuzz_coverage.sh: llvm-cov is missing: rustup component add llvm-tools --toolchain nightly" >&2
    exit 1
fi
FILES=(src/operator/{clients,control,metrics_listener,serving}.rs src/protocol/requests.rs
    src/options/{address,args,byte_range,config,size,usage}.rs
    vhost-backend/src/session/{config_space,device_state,handler,requests,vring,channel}.rs
    vhost-backend/src/queue.rs vhost-backend/src/queue/{chain,request,ring}.rs
    vhost-backend/src/memory.rs vhost-backend/src/memory/{dirty,inflight,sigbus}.rs
    mapping/src/source/fiemap.rs)

RUSTFLAGS="--cfg fuzzing -Cinstrument-coverage -Cdebug-assertions" CARGO_TARGET_DIR=$TARGET/fuzz-coverage \
    cargo +nightly build --release --manifest-path tests/fuzz/Cargo.toml --target "$host" --bins
profiles=$(mktemp -d)
trap 'rm -rf "$profiles"' EXIT
objects=()
while read -r name; do
    binary=$TARGET/fuzz-coverage/$host/release/$name
    objects+=(${objects:+--object} "$binary")
    inputs=()
    for folder in "$TARGET/fuzz/corpus/$name" "tests/fuzz/seeds/$name"; do
        [[ ! -d $folder ]] || inputs+=("$folder")
    done
    ((${#inputs[@]} > 0)) || continue
    # Each input by itself: without the fuzzer's own instrumentation a corpus is not read.
    find "${inputs[@]}" -type f -print0 |
        LLVM_PROFILE_FILE=$profiles/$name-%p.profraw xargs -0 -r -n 500 timeout 300 "$binary" >/dev/null 2>&1 ||
        echo "fuzz_coverage.sh: $name did not read all of its inputs" >&2
done < <(awk -F'"' '/^\[/ { bin = /^\[\[bin\]\]/ } bin && /^name *=/ { print $2 }' tests/fuzz/Cargo.toml)
"$tools/llvm-profdata" merge --sparse --output "$profiles/all" "$profiles"/*.profraw
"$tools/llvm-cov" report --instr-profile "$profiles/all" "${objects[@]}" "${FILES[@]}" |
    awk 'NR > 2 && NF > 9 { printf "%-45s %5s lines, %6s reached\n", $1, $8, $10 }'
