#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ipcctl send and recv against a broker of their own: what goes in comes out, and what goes wrong is said.
set -uo pipefail

build_dir=${2:-${IPC_BUILD_DIR:?}}
run=${IPCD_RUN_BIN:-$build_dir/broker/ipcd-run}
ctl=${IPCCTL_BIN:-$build_dir/tools/ipcctl}

if [[ -z ${QUEUE_TOOLS_INSIDE:-} ]]; then
    QUEUE_TOOLS_INSIDE=1 exec timeout --kill-after=5 90 "$run" --private -- "$0" "$@"
fi

failed=0 number=0
work=$(mktemp -d "${TMPDIR:-/tmp}/ipc-queue-tools.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

# expect NAME STATUS STDOUT [TEXT ON STDERR...] -- ARGUMENTS OF IPCCTL; stdin is handed on
expect() {
    local name=$1 wanted=$2 out=$3 right=0 status text texts=()
    shift 3
    while [[ $1 != -- ]]; do
        texts+=("$1")
        shift
    done
    shift
    "$ctl" "$@" >"$work/out" 2>"$work/err"
    status=$?
    ((status == wanted)) || { printf '# status %d, not %d\n' "$status" "$wanted" && right=1; }
    # shellcheck disable=SC2053 # a pattern
    [[ $(<"$work/out") == $out ]] || right=1
    [[ ${#texts[@]} -gt 0 || ! -s $work/err ]] || right=1
    for text in "${texts[@]}"; do
        grep -qF -- "$text" "$work/err" || { printf '# missing: %s\n' "$text" && right=1; }
    done
    ((number += 1))
    if ((right == 0)); then
        printf 'ok %d - %s\n' "$number" "$name"
    else
        printf 'not ok %d - %s\n' "$number" "$name"
        sed 's/^/# /' "$work/out" "$work/err"
        failed=1
    fi
}

expect "a queue for dead letters" 0 '' -- queue create dead
expect "a queue" 0 '' -- queue create box messages-max=4 full=reject dedup-window=10 dead-letter=dead

expect "arguments" 0 '' -- send box one two
printf 'three\nfour' | expect "lines" 0 $'{*"sent": 2,*"refused": 0,*"duplicates": 0*}' -- send box --json
expect "refused when full" 1 '' 'queue box is full: 4 messages' "uid $(id -u)" 'messages-max 4' -- send box five six
expect "given back" 0 $'one\ntwo' -- recv box --no-ack -n 2
expect "delivered again" 0 '\[#1 attempt=2 redelivered=closed *\] one' -- recv box -n 1 -H
expect "the others, as they are" 0 $'two\nthree\nfour' -- recv box -n 3 --raw
expect "none is left" 4 '' '0 of 1 messages came in time' -- recv box -n 1 --timeout 0.1
expect "nothing to wait for" 0 '' -- recv box --timeout 0.1

expect "everything that can be said" 0 '' -- send box -p 7 --ttl 100 --key k --id i --reply-to dead \
    -H unit=celsius --type text/plain 21.5
expect "and is shown" 0 '{"queue":"box",*"attempt":1,"priority":7,*"content_type":"text/plain","reply_to":"dead","id":{*"value":"i"},"key":{*"value":"k"},"headers":\[{"name":"unit",*"value":"celsius"}\],"size":4,*"data":"21.5"}' \
    -- recv box -n 1 --json
expect "a duplicate is as good" 0 '*"duplicates": 1*' -- send box --id i --json again
printf 'line\0\1' >"$work/file"
expect "a file" 0 '' -- send box --file "$work/file"
expect "control bytes are escaped" 0 'line\\x00\\x01' -- recv box -n 1
expect "priorities" 0 '' -- send box low
expect "priorities" 0 '' -- send box -p 9 high
expect "the higher one first" 0 $'high\nlow' -- recv box -n 2
expect "delayed" 0 '' -- send box --delay 2 late
expect "at once" 0 '' -- send box now
expect "one after the other" 0 $'now\nlate' -- recv box -n 2
expect "not confirmed" 0 '' -- send box --no-confirm quick
expect "and yet there" 0 'quick' -- recv box -n 1

expect "no such queue, send" 1 '' 'nowhere: there is no queue nowhere' -- send nowhere x
expect "no such queue, recv" 1 '' 'nowhere: there is no queue nowhere' -- recv nowhere
expect "no such file" 1 '' 'No such file' -- send box -f "$work/nothing"
expect "which queue, send" 2 '' 'to which QUEUE?' -- send
expect "which queue, recv" 2 '' 'from which QUEUE?' -- recv
expect "no priority" 2 '' '--priority' -- send box -p 10 x
expect "one id, two messages" 2 '' '--id' -- send box --id x a b
expect "too large" 1 '' 'too large: the queue takes 65536 bytes' -- send box --whole < <(head -c 65537 /dev/zero)

printf '1..%d\n' "$number"
exit "$failed"
