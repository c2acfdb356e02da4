#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks lane.pml: every configuration must pass, every mutation must be caught, and what the protocol does not
# depend on must pass without. README.md says what each line is.
#
#   run.sh [--quick | --full] [SOURCE_DIR BUILD_DIR]
#
# Full by default, quick if called with the two folders (as ctest does). JOBS: how many at a time (all cores).
# Exit status: 0; 1 something is not as it should be; 77 there is no spin or no C compiler.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
mode=
case ${1:-} in
    --quick | --full) mode=${1#--}; shift ;;
    -*) echo "usage: run.sh [--quick | --full] [SOURCE_DIR BUILD_DIR]" >&2; exit 1 ;;
esac
[[ -n $mode ]] || { (($# >= 2)) && mode=quick || mode=full; }

cc=${CC:-cc}
if ! command -v spin >/dev/null || ! command -v "$cc" >/dev/null; then
    echo "skipped: needs spin and $cc"
    exit 77
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/lane-model.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 1' INT TERM HUP

wake="N=4 M=3"
bell="BELL N=4 M=3"
room="N=3 M=4"
lap="DROP N=3 M=5"
lap_body="DROP SZ=2 N=3 M=4"
join="JOIN STALE=4 N=3 M=4"
join_narrow="JOIN STALE=3 N=2 M=3"
oldest="JOIN OLDEST SZ=2 STALE=4 N=3 M=3"
reuse="JOIN REUSE N=3 M=4"
kill_writer="KILLW KILLS=1 N=3 M=3"
kill_reader="KILLR KILLS=1 N=3 M=4"
more="MORE N=4 M=3"
more_room="MORE N=3 M=4"

# verdict|name|configuration. base: must pass; full: the same, not with --quick; caught: a mutation, must fail;
# spare: a step removed that is there for speed alone, must pass.
runs="
base|wake|$wake
base|wake, cursor reported late|STEP=2 N=4 M=4
base|wake, two readers|R=2 N=3 M=2
base|wake by bell|$bell
base|room|$room
base|room, cursor reported late|STEP=2 N=4 M=5
base|room, records with bodies|SZ=2 N=5 M=4
base|drop-oldest lap|$lap
base|drop-oldest lap, records with bodies|$lap_body
base|join|$join
base|join, start at the oldest|$oldest
base|join, drop-oldest|JOIN DROP N=3 M=4
base|join, several notices|JOIN NUDGE STALE=4 N=3 M=3
base|slot and cell used again|$reuse
base|kill the writer|$kill_writer
base|kill the writer, records with bodies|$kill_writer SZ=2
base|kill the writer, drop-oldest|$kill_writer DROP
base|kill a reader|$kill_reader
base|more to come|$more
base|more to come, by bell|BELL $more
base|more to come, room|$more_room
base|more to come, kill the writer|MORE $kill_writer
full|wake and room, two readers|R=2 N=3 M=3
full|kill one of two readers|KILLR KILLS=1 R=2 N=3 M=2
full|join, stale cursor as the start|JOIN STALE=0 N=3 M=4
full|join, narrow ring|JOIN STALE=3 N=2 M=4
full|join, longer|JOIN STALE=3 N=3 M=5
full|join, start at the oldest, longer|JOIN OLDEST STALE=4 N=3 M=5
full|drop-oldest lap, longer|DROP SZ=2 N=5 M=6
full|drop-oldest lap, two readers|DROP R=2 N=3 M=3
full|slot and cell used again, longer|$reuse NUDGE
full|more to come, join|MORE $join
caught|NO_BARRIER_SLEEP|$wake
caught|NO_BARRIER_SLEEP|$bell
caught|NO_RELOOK|$bell
caught|SAME_ARMED|$wake
caught|RING_BEFORE_COMMIT|$wake
caught|RING_BEFORE_COMMIT|$bell
caught|RING_ANY_CURSOR|$wake
caught|ARMED_BEFORE_CURSOR|STEP=9 N=4 M=3
caught|COMMIT_BEFORE_STAMP|$room
caught|NO_STAMP|$room
caught|ROOM_NO_STAMP|$room
spare|NO_FENCE_ROOM|$room
caught|NO_FENCE_REPORT|$room
caught|NO_WANT|$room
caught|CURSOR_AFTER_WANT|$room
caught|NO_LAP|$lap
caught|ANY_STAMP_IS_EMPTY|$lap
caught|NO_TAIL_CHECK|$lap_body
caught|TAIL_AFTER|$lap_body
caught|BODY_LIKE_STAMP|$lap_body
caught|MAIL_BEFORE_COMMIT|$join
caught|READER_FIRST|$join
caught|RING_AT_TAKE_IN|$join
caught|START_NOT_REREAD|$join
caught|WAIT_CURSOR_UNOWNED|$join_narrow
caught|NO_RING_AT_ATTACH|$join_narrow
caught|CURSOR_BEFORE_OWNER|$join
caught|OWNER_BEFORE_CURSOR|$join
caught|SAFE_WITHOUT_TAIL|$oldest
caught|SEEN_LATE|$join NUDGE
spare|REUSE_EARLY|JOIN REUSE N=2 M=3
caught|CORE_FORGETS|$kill_writer
caught|CORE_FORGETS|$kill_reader
caught|CORE_NO_WAKE|$kill_writer
caught|CORE_NO_WAKE|$kill_reader
caught|CORE_EARLY|$kill_writer
caught|NO_FINAL_DRAIN|$kill_writer
caught|MAIL_NOT_COMPARED|$kill_writer
caught|MAIL_NOT_COMPARED|$kill_reader
caught|NO_RING_HELD|$more
caught|NO_RING_HELD|BELL $more
caught|NO_RING_ROOM|$more_room
caught|RING_LAST|$more
spare|NO_RELOOK|$wake
spare|NO_REREAD_ROOM|$room
spare|WANT_KEPT|$room
"

seconds() { # START END, microsecond stamps with a dot or a comma
    local a=${1/[.,]/} b=${2/[.,]/} us
    us=$((b - a))
    printf '%d.%d' $((us / 1000000)) $((us % 1000000 / 100000))
}

# check INDEX VERDICT NAME CONFIGURATION: one line in INDEX.out; INDEX.bad exists if it is not as it should be.
check() {
    local dir=$work/$1 verdict=$2 name=$3 flags=() word level=-O0 start out status=ok states errors
    mkdir "$dir"
    cd "$dir"
    for word in $4; do flags+=("-D$word"); done
    [[ $4 != *JOIN* && $4 != *R=2* ]] || level=-O1 # small ones compile longer than they run
    [[ $verdict != caught && $verdict != spare ]] || flags+=("-DM_$name")
    start=$EPOCHREALTIME
    # -DCOLLAPSE compresses states without loss; memory in MiB; -m: an error if a path is cut off.
    if ! spin "${flags[@]}" -a "$here/lane.pml" >spin.out 2>&1 ||
        ! "$cc" "$level" -w -DSAFETY -DCOLLAPSE -DMEMLIM=2048 -o pan pan.c >cc.out 2>&1; then
        cat spin.out cc.out 2>/dev/null || true
        status="BROKEN: the model does not compile"
    else
        ./pan -b -m20000 -w22 >pan.out 2>&1 || true
        out=$(<pan.out)
        states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.out)
        errors=$(sed -n 's/.*errors: \([0-9]*\)$/\1/p' pan.out)
        if [[ -z $errors || $out == *"Search not completed"* && $errors == 0 || $out == *"out of memory"* ||
            $out == *"search depth exceeded"* || $out == *"depth reached limit"* ]]; then
            status="BROKEN: the search did not finish"
        elif [[ $verdict == caught ]]; then
            ((errors > 0)) || status="SURVIVES: the model does not show that this step is needed"
        elif ((errors > 0)); then
            status=FAILED
        fi
    fi
    {
        printf '%-6s %-38s %10s states %2s errors %6.1f s  %s\n' "$verdict" "$name" "${states:--}" \
            "${errors:--}" "$(seconds "$start" "$EPOCHREALTIME")" "$status  [$4]"
        if [[ $status != ok ]]; then
            if [[ -e pan.out ]]; then grep -E '^pan' pan.out || true; fi
            if [[ $status == FAILED ]]; then
                echo "the last steps of the trail:"
                spin "${flags[@]}" -t -p -k lane.pml.trail "$here/lane.pml" 2>&1 | tail -n 120 || true
            fi
        fi
    } >"$work/$1.out"
    [[ $status == ok ]] || : >"$work/$1.bad"
    cat "$work/$1.out"
    rm -rf "$dir"
}

export LC_ALL=C
jobs=${JOBS:-$(nproc)}
count=0
running=0
while IFS='|' read -r verdict name configuration; do
    [[ -n $verdict ]] || continue
    [[ $verdict != full || $mode == full ]] || continue
    if ((running >= jobs)); then
        wait -n || true
        running=$((running - 1))
    fi
    (check "$count" "$verdict" "$name" "$configuration") &
    running=$((running + 1))
    count=$((count + 1))
done <<<"$runs"
wait

done_count=$(find "$work" -name '*.out' | wc -l)
bad_count=$(find "$work" -name '*.bad' | wc -l)
if ((done_count != count || bad_count > 0)); then
    echo "model: $bad_count of $count runs are not as they should be, $((count - done_count)) did not finish"
    exit 1
fi
echo "model: all $count runs are as they should be ($mode)"
