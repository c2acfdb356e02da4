#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The tests of the lane, tested: each bug that the lane can be built with (IPC_PLANT_<NAME>) must be found by the
# test named here. A bug that none finds fails this script. Builds only what it needs, with direct compiler calls.
#
# plant.sh [SOURCE [BUILD]]; PLANTS="NAME ..." tries only these.
set -euo pipefail

source=${1:-$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$source"

# Bug, and the test that finds it: unit-*, barrier and crash-OPERATION as they are, stress as processes, tsan the
# same as threads under ThreadSanitizer.
plants='
RELAXED_PEEK     tsan            the load that finds a record does not acquire
STAMP_LATE       crash-publish   the next word is stamped after the commit
TAIL_LATE        unit-writer     tail is not moved before records are overwritten
NO_BARRIER       barrier         a sleeper issues no barrier for the others
NO_OFTEN_FENCE   barrier         a writer does not fence for a reader that sleeps often
NO_RELOOK        barrier         a sleeper does not look again after arming
MOVED_ASLEEP     unit-reader     a sleeper moved on after arming, and sleeps
RING_STALE       stress          a ring is spent on a reader that has read the record already
RING_EARLY       stress          the ring comes before the commit
RING_AGAIN       unit-writer     more than one ring for a sleep
RING_CURSOR      stress          the ring goes to the cursor of a reader that holds records
WANT_UNHEARD     stress          a reader that crosses does not wake the writer
COMMIT_EARLY     crash-publish   the record is committed before its payload is there
START_EARLY      crash-admit     a slot has its start before its sequence number
START_NOT_REREAD crash-join      a reader that joins does not look at its slot again after it chose its start
REPORT_EARLY     tsan            the cursor moves before the record was read
NO_CHECK         unit-writer     a copy is not checked against tail
ROOM_SHORT       unit-writer     room is reckoned without the word behind the record
CURSOR_UNCHECKED unit-writer     the cursor of a reader is taken as it is
'

cc=${IPC_CC:-cc}
# ThreadSanitizer's shadow memory wants addresses that are not too random.
still=()
if setarch -R true 2>/dev/null; then still=(setarch -R); fi
flags=(-std=gnu17 -D_GNU_SOURCE -g -fno-strict-aliasing -fno-omit-frame-pointer -I"$work" -I.)
mapfile -t extra < <(pkg-config --cflags cmocka libprotobuf-c | tr ' ' '\n' | grep . || true)
lane=(tests/support/lane_fixture.c tests/support/watchdog.c libipc/lane/writer.c libipc/lane/reader.c
    libipc/lane/wait.c libipc/lane/segment.c)
protoc-c --c_out="$work" --proto_path=proto proto/control.proto

compile() { # OUTPUT TEST FLAGS...
    local output=$1 test=$2
    shift 2
    case $test in
        unit-*) "$cc" "${flags[@]}" "${extra[@]}" -O1 "$@" "tests/unit/lane/test_${test#unit-}.c" "${lane[@]}" \
            -o "$output" -lcmocka -lpthread ;;
        crash-*) "$cc" "${flags[@]}" "${extra[@]}" -O1 -Wl,-z,now "$@" tests/crash/test_lane.c "${lane[@]}" \
            -o "$output" -lpthread ;;
        barrier) "$cc" "${flags[@]}" "${extra[@]}" -O2 "$@" tests/stress/test_barrier.c "${lane[@]}" -o "$output" -lpthread ;;
        stress) "$cc" "${flags[@]}" "${extra[@]}" -O2 "$@" tests/stress/test_lane.c "${lane[@]}" -o "$output" -lpthread ;;
        tsan) clang "${flags[@]}" "${extra[@]}" -O1 -fsanitize=thread -DIPC_TSAN=1 "$@" tests/stress/test_lane.c \
            "${lane[@]}" -o "$output" -lpthread ;;
    esac
}

# A program that finds its bug fails; it may do so by any end. Stress gets more time if it found nothing.
finds() { # PROGRAM TEST LOG
    local program=$1 test=$2 log=$3 seconds
    case $test in
        unit-*) ! timeout 60 "$program" >"$log" 2>&1 ;;
        barrier)
            timeout 250 "$program" 5000000 >"$log" 2>&1 && return 1
            [[ $? != 124 ]] ;; # time is not what finds it
        crash-*) ! IPC_CRASH_POINTS=0 timeout 60 "$program" "${test#crash-}" >"$log" 2>&1 ;;
        *)
            for seconds in 2 4 12; do
                TSAN_OPTIONS=halt_on_error=1 timeout $((seconds + 60)) "${still[@]}" "$program" "$seconds" 7 500 \
                    >"$log" 2>&1 || return 0
            done
            return 1
            ;;
    esac
}

# What finds a bug must find none where there is none.
if [[ -z ${PLANTS:-} ]]; then
    for test in unit-writer unit-reader crash-publish crash-admit stress tsan; do
        [[ $test != tsan ]] || command -v clang >/dev/null || continue
        compile "$work/$test" "$test"
        case $test in
            stress | tsan) "${still[@]}" "$work/$test" 1 7 >"$work/log" 2>&1 ;;
            crash-*) "$work/$test" "${test#crash-}" >"$work/log" 2>&1 ;;
            *) "$work/$test" >"$work/log" 2>&1 ;;
        esac || {
            cat "$work/log"
            printf '%s fails without any bug planted\n' "$test"
            exit 1
        }
    done
fi

survived=0 tried=0
printf '%-16s  %-14s %-9s %s\n' bug "found by" after what
while read -r name test what; do
    [[ -n $name ]] || continue
    [[ -z ${PLANTS:-} || " $PLANTS " == *" $name "* ]] || continue
    if [[ $test == tsan ]] && ! command -v clang >/dev/null; then
        printf '%-16s  %-14s %-9s %s\n' "$name" "(no clang)" - "$what"
        continue
    fi
    tried=$((tried + 1))
    compile "$work/$name" "$test" "-DIPC_PLANT_$name=1" 2>"$work/log" || {
        cat "$work/log"
        exit 1
    }
    start=$SECONDS
    if finds "$work/$name" "$test" "$work/log"; then
        printf '%-16s  %-14s %6d s  %s\n' "$name" "$test" $((SECONDS - start)) "$what"
    else
        printf '%-16s  %-14s %6d s  %s\n' "$name" "SURVIVED $test" $((SECONDS - start)) "$what"
        survived=$((survived + 1))
    fi
    rm -f "$work/$name"
done <<<"$plants"
printf '%d planted, %d survived\n' "$tried" "$survived"
((survived == 0 && tried > 0))
