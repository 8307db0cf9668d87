# shellcheck shell=bash disable=SC2154
# A short run of each fuzz target, for run.sh; sourced, never run. Expects ROOT, TARGET and results.sh.
# Builds with the flags that cargo-fuzz would pass, so nothing has to be installed for it.

# The target is named so that build scripts and macros are built without the instrumentation.
fuzz_build() {
    local flags='--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Zsanitizer=address -Cpasses=sancov-module'
    local option
    for option in level=4 inline-8bit-counters pc-table trace-compares; do
        flags+=" -Cllvm-args=-sanitizer-coverage-$option"
    done
    RUSTFLAGS=$flags CARGO_TARGET_DIR=$TARGET/fuzz timeout 1200 \
        cargo +nightly build --release --manifest-path tests/fuzz/Cargo.toml --target x86_64-unknown-linux-gnu --bins
}

# Starts from the inputs kept in tests/fuzz/seeds/NAME; what it finds on the way is kept with the build.
fuzz_run() {
    local name=$1 corpus=$TARGET/fuzz/corpus/$1 seeds=()
    mkdir -p "$corpus"
    [[ ! -d tests/fuzz/seeds/$name ]] || seeds=("tests/fuzz/seeds/$name")
    "$TARGET/fuzz/x86_64-unknown-linux-gnu/release/$name" -max_total_time="${FUZZ_SECONDS:-10}" -timeout=20 \
        -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix="$LOGS/" "$corpus" ${seeds[@]+"${seeds[@]}"}
}

fuzz_all() {
    local name
    if ! timed "fuzz build" fuzz_build; then
        failed=$((failed + 1))
        failures+=("fuzz build")
        tail -n 60 "$log"
        return 0
    fi
    while read -r name; do
        check "fuzz $name" fuzz_run "$name"
    done < <(awk -F'"' '/^\[/ { bin = /^\[\[bin\]\]/ } bin && /^name *=/ { print $2 }' tests/fuzz/Cargo.toml)
}
