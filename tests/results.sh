# shellcheck shell=bash disable=SC2154
# Running and counting checks, for run.sh; sourced, never run. Expects TARGET, LOGS, groups_before.

passed=0 failed=0 skipped=0
skips=() failures=()

# Runs the command of stage $1 into its log; its status. Prints one line with the time taken.
timed() {
    local name=$1 status=0 start=$EPOCHREALTIME took
    shift
    log=$LOGS/${name// /-}.log
    "$@" >"$log" 2>&1 </dev/null || status=$?
    took=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    printf '== %-28s %-7s %7s s\n' "$name" "$( ((status == 0)) && echo ok || echo FAILED)" "$took"
    return "$status"
}

# A stage without which the rest makes no sense: ends the run when it fails.
stage() {
    timed "$@" && return 0
    cat "$log"
    failed=$((failed + 1))
    failures+=("$1")
    summary
}

# A stage that counts as one test.
check() {
    if timed "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        failures+=("$1")
        tail -n 100 "$log"
    fi
}

skip() {
    skipped=$((skipped + 1))
    skips+=("$1: $2")
}

# A stage of many tests, counted by what cargo's test runners say.
suite() {
    local status=0 sums runners results reasons
    timed "$@" || status=$?
    # A runner that crashed has no result line.
    read -r runners results sums < <(awk '
        /^ +(Running|Doc-tests) / { runners++ }
        /^test result: / { results++; passed += $4; failed += $6; ignored += $8 }
        END { printf "%d %d %d %d %d\n", runners, results, passed, failed, ignored }' "$log")
    local counts
    read -r -a counts <<<"$sums"
    # Tests that could not run pass for the runner; they say so in their output.
    mapfile -t reasons < <(awk '
        /^---- .* stdout ----$/ { name = $2; seen = 0 }
        /^test result: / { name = "" }
        sub(/^SKIP: */, "") && !seen { print (name == "" ? "a test" : name) ": " $0; seen = name != "" }' "$log")
    local reason
    for reason in ${reasons[@]+"${reasons[@]}"}; do
        skip "${reason%%: *}" "${reason#*: }"
    done
    passed=$((passed + counts[0] - ${#reasons[@]}))
    failed=$((failed + counts[1]))
    ((counts[2] == 0)) || { skipped=$((skipped + counts[2])) && skips+=("$1: ${counts[2]} ignored tests"); }
    local names
    mapfile -t names < <(awk '/^test .* \.\.\. FAILED$/ { print $2 }' "$log")
    failures+=(${names[@]+"${names[@]}"})
    if ((runners > results)); then
        failed=$((failed + runners - results))
        failures+=("$1: $((runners - results)) test programs without a result")
    elif ((status != 0 && counts[1] == 0)); then
        failed=$((failed + 1))
        failures+=("$1 (status $status)")
    fi
    ((status == 0)) || failed_output "$log"
    return 0
}

# What the failed tests printed; for a failed build, its end.
failed_output() {
    awk '/^failures:$/ { on = 1 } /^test result: / { on = 0 } on' "$1" | head -n 300
    tail -n 40 "$1"
    echo "(all of it: $1)"
}

# The control groups that carry the tests' name.
own_groups() { find /sys/fs/cgroup -depth -type d -name 'extentd*' 2>/dev/null; }

# Fails and tells what the tests left on the machine: processes, mounts, loop devices, control groups.
nothing_left() {
    local environ pid left=0
    for environ in /proc/[0-9]*/environ; do
        pid=${environ#/proc/}
        pid=${pid%/environ}
        # Not this script, nor what it runs to look.
        [[ $pid != "$$" && $pid != "$BASHPID" ]] || continue
        grep -qzsFx "EXTENTD_TEST_RUN=$EXTENTD_TEST_RUN" "$environ" 2>/dev/null || continue
        echo "process left: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)"
        kill -KILL "$pid" 2>/dev/null
        left=1
    done
    # Inner mounts first.
    while read -r path; do
        echo "mount left: $path"
        umount "$path"
        left=1
    done < <(awk -v dir="$EXTENTD_TEST_DIR/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
    while read -r device file; do
        [[ $file == "$EXTENTD_TEST_DIR"/* ]] || continue
        echo "loop device left: $device for $file"
        losetup -d "$device"
        left=1
    done < <(losetup -l -n -O NAME,BACK-FILE 2>/dev/null)
    while read -r path; do
        echo "control group left: $path"
        rmdir "$path"
        left=1
    done < <(own_groups | grep -vxF "$groups_before")
    ((left == 0))
}

# Prints what was skipped and what failed, then the one line that sums up, and ends the run.
summary() {
    local line
    if [[ ${CI:-} == true ]]; then
        for line in ${skips[@]+"${skips[@]}"}; do failures+=("skipped in CI, $line"); done
        failed=$((failed + skipped))
        skipped=0
    fi
    for line in ${skips[@]+"${skips[@]}"}; do echo "skipped: $line"; done
    for line in ${failures[@]+"${failures[@]}"}; do echo "failed: $line"; done
    echo "total time: $SECONDS s"
    echo "$passed passed, $failed failed, $skipped skipped"
    ((failed == 0)) && exit 0
    exit 1
}
