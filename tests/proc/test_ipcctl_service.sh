#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ipcctl call and serve, over a broker of their own.
set -uo pipefail

build_dir=${2:-${IPC_BUILD_DIR:?}}
run=${IPCD_RUN_BIN:-$build_dir/broker/ipcd-run}
export IPCCTL=${IPCCTL_BIN:-$build_dir/tools/ipcctl}
work=$(mktemp -d "${TMPDIR:-/tmp}/ipc-ipcctl.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
export HOME=$work XDG_CONFIG_HOME=$work XDG_RUNTIME_DIR=$work TMPDIR=$work work

# shellcheck disable=SC2016
timeout --kill-after=5 100 "$run" --private -- bash -uo pipefail -c '
failed=0
is() { # NAME, STATUS WANTED, GOT, TEXT WANTED, GOT
    if [[ $2 == "$3" && $5 == $4 ]]; then echo "ok - $1"; else
        printf "not ok - %s: status %s, output: %s\n" "$1" "$3" "$5"
        failed=1
    fi
}
out=$("$IPCCTL" call text.upper x 2>&1); is "no server" 1 $? "*the service has no server*" "$out"

"$IPCCTL" serve text.upper -- tr a-z A-Z & upper=$!
out=$("$IPCCTL" call --wait text.upper hello); is "a command answers" 0 $? HELLO "$out"
out=$(printf "one two" | "$IPCCTL" call text.upper); is "payload from stdin" 0 $? "ONE TWO" "$out"
out=$("$IPCCTL" call --json text.upper hello); is "json" 0 $? "*\"data\":\"HELLO\"*" "$out"
out=$("$IPCCTL" ls --json text.upper | tr -d " \n"); is "ls shows it" 0 $? "*\"service\":\"text.upper\",\"servers\":1*" "$out"
head -c 100000 /dev/zero | tr "\0" x >"$work/large"
"$IPCCTL" call --raw text.upper <"$work/large" >"$work/answer"; status=$?
tr x X <"$work/large" | cmp -s - "$work/answer"; is "100 kB" "0 0" "$status $?" "" ""
kill -INT $upper; wait $upper; is "interrupted" 130 $? "" ""

"$IPCCTL" serve --count=1 text.fail -- sh -c "echo half; exit 7" & fail=$!
out=$("$IPCCTL" call --wait text.fail 2>&1 </dev/null); is "a command fails" 1 $? "*error 7: the command ended with status 7" "$out"
wait $fail; is "--count" 0 $? "" ""

"$IPCCTL" serve --count=1 text.slow -- sh -c "exec sleep 100" & slow=$!
out=$("$IPCCTL" call --wait --timeout=2 text.slow 2>&1 </dev/null); is "deadline" 4 $? "*did not answer in time" "$out"
wait $slow; is "and the command is ended" 0 $? "" ""

"$IPCCTL" serve --echo text.echo & echo_=$!
out=$("$IPCCTL" call --wait text.echo same); is "--echo" 0 $? same "$out"
kill -TERM $echo_; wait $echo_
exit $failed'
