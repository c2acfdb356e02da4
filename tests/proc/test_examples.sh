#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The examples do what they say, each with a private broker of its own; and the file index over a small folder
# with odd names, where programs are killed, where it is interrupted, and where it cannot start.
set -uo pipefail

source_dir=${1:-${IPC_SOURCE_DIR:?}} build_dir=${2:-${IPC_BUILD_DIR:?}}
run=${IPCD_RUN_BIN:-$build_dir/broker/ipcd-run}
examples=${EXAMPLES_DIR:-$build_dir/examples}
index=$source_dir/examples/fileindex/run.sh
# A watchdog for what should end by itself; long, since sanitizers and a loaded machine are slow.
watchdog=(timeout --kill-after=5 60)
failed=0 number=0

work=$(mktemp -d "${TMPDIR:-/tmp}/ipc-examples.XXXXXX") || exit 1
trap 'chmod -R u+rwx "$work" 2>/dev/null; rm -rf "$work"' EXIT
export HOME=$work XDG_CONFIG_HOME=$work # no configuration of anybody

verdict() { # STATUS NAME
    ((number += 1))
    if (($1 == 0)); then
        printf 'ok %d - %s\n' "$number" "$2"
    else
        printf 'not ok %d - %s\n' "$number" "$2"
        sed 's/^/# /' "$work/output" 2>/dev/null
        failed=1
    fi
}

expect() { # NAME, STATUS, TEXT... : of the last command's `status`, and of $work/output
    local name=$1 wanted=$2 text right=0
    shift 2
    ((status == wanted)) || { printf '# status %d, not %d\n' "$status" "$wanted" && right=1; }
    for text; do
        grep -qaF -- "$text" "$work/output" || { printf '# missing: %s\n' "$text" && right=1; }
    done
    verdict "$right" "$name"
}

# Whatever mqueues the file index says it has: none is there when it has ended. The worker tells which one it cannot open; the
# second name is none.
mqueues_are_gone() {
    local prefix mqueue

    prefix=$(sed -n 's|.* mqueues \(/fileindex-[0-9]*\)-.*|\1|p' "$work/output")
    [[ -n $prefix ]] || return 0
    for mqueue in "$prefix-work" "$prefix-results"; do
        [[ $("${watchdog[@]}" "$examples/fileindex/count" "$mqueue" / 2>&1) == *"$mqueue: No such file"* ]] || {
            printf '# left behind: mqueue %s\n' "$mqueue"
            status=97
        }
    done
}

# private COMMAND...: under a broker of its own; leaves nothing in its own folder for temporary files, and no mqueue.
private() {
    mkdir "$work/tmp"
    TMPDIR=$work/tmp XDG_RUNTIME_DIR=$work/tmp "${watchdog[@]}" "$@" >"$work/output" 2>&1 </dev/null
    status=$?
    mqueues_are_gone
    rmdir "$work/tmp" 2>/dev/null || {
        printf '# left behind: %s\n' "$(find "$work/tmp" -mindepth 1)"
        rm -rf "$work/tmp"
        status=99
    }
}

# ---- the small ones --------------------------------------------------------------------------------------

# shellcheck disable=SC2016
private "$run" --private -- bash -c \
    '"$0/hello_subscribe" & "$0/hello_publish" && wait $!' "$examples"
expect "hello_publish and hello_subscribe" 0 "greetings: hello, from hello_publish"

# shellcheck disable=SC2016
private "$run" --private --gateway=mq -- bash -c '
    "$1" bind mq direction=serve form=enveloped "mqueue=$2" "reply=$2-done" service=upper &&
    "$1" bind mq direction=call form=enveloped "mqueue=$2-ask" "reply=$2-for-*" service=upper && "$0" "$2"' \
    "$examples/mqueue_service" "${IPCCTL_BIN:-$build_dir/tools/ipcctl}" "/ipct-$$-upper"
expect mqueue_service 0 "one -> ONE" "five -> FIVE"
private "$run" --private -- "$examples/last_value"
expect last_value 0 "the last temperature: 21.5"
private "$run" --private -- "$examples/wildcards"
expect wildcards 0 "plant.*.temperature" "    plant.2.pump.speed"
private "$run" --private -- "$examples/loan"
expect loan 0 "7 messages of 1 MiB, none of them copied"
private "$run" --private -- "$examples/headers"
expect headers 0 "content type: application/json" "header unit: 7 bytes" "by thermometer"
private "$run" --private -- "$examples/batch"
expect batch 0 "5000 messages in 50 calls"
private "$run" --private -- "$examples/threads"
expect threads 0 "80000 messages received"
private "$run" --private -- "$examples/events"
expect events 0 "it was closed by its owner" "its process ended without closing it"
private "$run" --private -- "$examples/epoll"
expect epoll 0 "100 messages through an epoll loop"
private "$run" --private -- "$examples/request_reply"
expect request_reply 0 "1000 / 8 = 125" "error 2 from request_reply: nothing can be divided by 0"
private "$run" --private -- "$examples/stream_reply"
expect stream_reply 0 "1009" "1031" "server: it wants no more"
private "$run" --private -- "$examples/scatter_gather"
expect scatter_gather 0 "50 pieces, sum 124999750000"
for loop in uv glib; do
    [[ -x $examples/loop_$loop ]] || continue # its library is not installed
    private "$run" --private -- "$examples/loop_$loop"
    expect "loop_$loop" 0 "messages through"
done

# shellcheck disable=SC2016
private "$run" --private -- bash -c '"$0/hello_send" && "$0/hello_work"' "$examples"
expect "hello_send and hello_work" 0 "attempt 1: sweep"
private "$run" --private -- "$examples/work_queue"
expect work_queue 0 "1000 tasks done by 3 workers, 1 of which died; tasks were delivered again: yes"
private "$run" --private -- "$examples/fan_in"
expect fan_in 0 "40000 messages of 4 producers, in order, in fewer calls"
private "$run" --private -- "$examples/scatter_queues"
expect scatter_queues 0 "item 9: the best of 4 prices is "

private env IPC_ADDRESS="$work/nobody" "$examples/hello_publish"
expect "hello_publish without a broker" 1 "hello_publish: "

# ---- the file index --------------------------------------------------------------------------------------

if [[ ! -x $examples/fileindex/digest ]]; then
    printf '# fileindex: left out, libcrypto is missing\n'
    exit "$failed"
fi

tree=$work/tree
mkdir -p "$tree/sub folder" "$tree/"$'line\nfeed' "$tree/empty folder"
printf 'int main(void)\n{\n    return 0;\n}\n' >"$tree/main.c"
printf '#define ANSWER 42\n' >"$tree/sub folder/an answer.h"
printf 'no line feed at the end' >"$tree/sub folder/-n"
printf 'caf\xe9 \xff\xfe bytes \001 \002x' >"$tree/"$'latin\xe9.txt'
printf 'one two\n' >"$tree/"$'line\nfeed/two\nlines'
printf 'x = 0x1F; abc123_ 9lives\n' >"$tree/back\\slash \"quoted\" 'name'"
: >"$tree/nothing"
ln -s main.c "$tree/link.c"
ln -s . "$tree/loop"
mkfifo "$tree/fifo"
# Three MiB: parts; and an identifier and a word across each of their borders.
for ((i = 0; i < 3 * 1024 * 1024 / 32; i++)); do
    printf 'identifier_%09d and words\n' $((i % 7))
done | head -c $((3 * 1024 * 1024)) >"$tree/three.inc"
head -c 300000 /dev/zero | tr '\0' a >"$tree/long_word.txt" # one identifier, longer than a part

private "$index" "$build_dir" "$tree"
expect "fileindex, odd names" 0 "Every result is right." "9 files, " "3 links and special files" "  0 drops; 1 workers replaced" \
    "POSIX mqueue" "was ended by SIGKILL: another one takes its place" "takes over work of one that died"
! grep -qF " 0 messages redelivered" "$work/output"
verdict $? "fileindex, work of the killed worker comes again"

mkdir "$work/void"
private "$index" "$build_dir" "$work/void"
expect "fileindex, an empty folder" 0 "Every result is right." "0 files, "

private "$index" "$build_dir" "$work/no such folder"
expect "fileindex, no such folder" 2 "fileindex: there is no folder '$work/no such folder'"
[[ $(wc -l <"$work/output") == 1 ]]
verdict $? "in one line"
private "$index" "$build_dir" "$tree/main.c"
expect "fileindex, not a folder" 2 "is not a folder"
private "$index" "$work/void" "$tree"
expect "fileindex, not built" 2 "is not there: build the project first"

if ((EUID != 0)); then
    printf 'secret\n' >"$tree/secret"
    mkdir "$tree/closed"
    chmod 000 "$tree/secret" "$tree/closed"
    private "$index" "$build_dir" "$tree"
    expect "fileindex, unreadable files" 0 "Every result is right." "9 files, " "2 skipped" "Permission denied"
    chmod u+rwx "$tree/closed"
fi

# A job that goes on for long enough: 16 GiB, all of them holes; and files that are too large for the job.
mkdir "$work/long" "$work/large"
for i in {1..20}; do printf 'int first_%d;\n' "$i" >"$work/long/$i.c"; done
truncate -s 8M "$work/long/z-holes-"{0001..2000}
truncate -s $((32 * 1024 * 1024)) "$work/large/just right"
truncate -s $((32 * 1024 * 1024 + 1)) "$work/large/too large"

private "$index" "$build_dir" "$work/large"
expect "fileindex, large files" 0 "Every result is right." "1 files, " "1 skipped" "too large: larger than 32 MiB"

declare -A pids
# long_job: starts the job in a process group of its own, and waits for its first results. Sets job (the
# group), and pids of the programs that began first.
long_job() {
    local line name

    mkdir "$work/tmp"
    exec {out}< <(TMPDIR=$work/tmp XDG_RUNTIME_DIR=$work/tmp exec setsid env --default-signal=INT \
        timeout --foreground --kill-after=5 60 "$index" "$build_dir" "$work/long" 2>&1 </dev/null)
    job=$!
    pids=()
    : >"$work/output"
    while IFS= read -r line <&"$out"; do
        printf '%s\n' "$line" >>"$work/output"
        for name in walk digest count identifiers collect; do
            if [[ -z ${pids[$name]:-} && $line =~ $name\ \(([0-9]+)\) ]]; then pids[$name]=${BASH_REMATCH[1]}; fi
        done
        [[ $line != *" messages handled; results: "* || $line == *" 0 messages handled"* ]] || return 0
    done
    return 1
}

# Read the rest; then none of its processes may be there any more.
long_job_end() {
    local name

    cat <&"$out" >>"$work/output"
    exec {out}<&-
    wait "$job"
    status=$?
    for name in "${!pids[@]}"; do
        if kill -0 "${pids[$name]}" 2>/dev/null; then
            printf '# still there: %s\n' "$name"
            status=98
        fi
    done
    mqueues_are_gone
    rmdir "$work/tmp" 2>/dev/null || {
        printf '# left behind: %s\n' "$(find "$work/tmp" -mindepth 1)"
        rm -rf "$work/tmp"
        status=99
    }
}

for victim in walk count collect; do
    if long_job; then kill -KILL "${pids[$victim]}"; fi
    long_job_end
    expect "fileindex, $victim killed" 1 "$victim was ended by SIGKILL"
done

# Workers killed from outside, wherever they are, on the way through something shorter. digest may have killed itself before.
rm "$work/long/z-holes-"{0061..2000}
if long_job; then kill -KILL "${pids[digest]}" "${pids[identifiers]}" 2>/dev/null; fi
long_job_end
expect "fileindex, workers killed" 0 "digest (${pids[digest]}) was ended by SIGKILL: another one takes its place" \
    "identifiers (${pids[identifiers]}) was ended by SIGKILL: another one takes its place" "80 files, " \
    "  0 drops; 2 workers replaced" "Every result is right."

truncate -s 8M "$work/long/z-holes-"{0061..2000}
if long_job; then kill -INT -- "-$job"; fi
long_job_end
expect "fileindex, interrupted" 130 "fileindex: interrupted"

printf '1..%d\n' "$number"
exit "$failed"
