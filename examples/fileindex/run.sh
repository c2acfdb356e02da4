#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The file index: five programs and a private broker index a folder, and check every result.
#
#   run.sh BUILD_DIR [FOLDER]     FOLDER: /usr/include if not given
#
# Everything ends with this script: the broker, the programs, and what they kept. Exit status 0: every result is
# right; 1: not, or a program failed; 2: it could not start; 130: interrupted.
set -uo pipefail

say() { printf '%s\n' "fileindex: $*" >&2; }
fail() {
    say "$*"
    exit 2
}

# keep NAME PROGRAM...: run a program; tell of its beginning and its end.
keep() {
    local name=$1
    shift
    "$@" {ends}>&- &
    printf 'began %s %d\n' "$name" $! >&"$ends"
    trap '' INT TERM HUP # it ends with its program, which job() ends
    exec 2>/dev/null     # where bash would say what job() says
    wait $!
    printf 'ended %s %d\n' "$name" $? >&"$ends"
}

end_all() {
    ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" "-${pids[collect]:-${pids[*]: -1}}" 2>/dev/null
    wait 2>/dev/null
}

# Inside the private broker: start the programs, wait for them, judge.
job() {
    local bin=$1/examples/fileindex folder=$2 what name value failed='' count_arguments=()
    declare -gA pids=() # global: the trap sees it

    # From coreutils 9.5 on, wc counts words of unprintable bytes, too.
    [[ $(printf '\1' | LC_ALL=C wc -w) -eq 0 ]] || count_arguments=(--any-byte)

    exec {ends}<> <(:) # a pipe, both ends of it
    trap end_all EXIT  # leave nobody behind, whichever way this ends
    trap 'trap "" INT TERM HUP; say interrupted; exit 130' INT TERM HUP

    # They find each other by topic: any order will do. collect gets a process group, for the tools that it runs.
    keep collect setsid "$bin/collect" &
    keep digest "$bin/digest" &
    keep count "$bin/count" "${count_arguments[@]}" &
    keep identifiers "$bin/identifiers" &
    keep walk "$bin/walk" "$folder" &
    while ((${#pids[@]} < 5)) && read -r what name value <&"$ends"; do
        if [[ $what == began ]]; then
            pids[$name]=$value
        else # already: keep it for later
            printf '%s %s %s\n' "$what" "$name" "$value" >&"$ends"
        fi
    done
    printf 'Indexing %s with five programs and a private broker:\n\n' "${folder@Q}"
    printf '  walk (%d)  -> files.>    ->  digest (%d), count (%d), identifiers (%d)\n' \
        "${pids[walk]}" "${pids[digest]}" "${pids[count]}" "${pids[identifiers]}"
    printf '  all of them      -> results.>  ->  collect (%d)\n\n' "${pids[collect]}"

    # Should one fail, the others notice by themselves, and are given 10 s for it.
    while ((${#pids[@]})); do
        if ! read -r ${failed:+-t 10} what name value <&"$ends"; then
            say "still running, and ended: ${!pids[*]}"
            break
        fi
        unset "pids[$name]"
        if ((value > 128)); then
            failed="$name was ended by SIG$(kill -l $((value - 128)))" # told rather than who gave up for it
        elif ((value)); then
            failed=${failed:-$name ended with status $value}
        fi
    done
    [[ -z $failed ]] || {
        say "failed: $failed"
        exit 1
    }
}

if [[ ${1:-} == --job ]]; then
    job "$2" "$3"
    exit
fi

(($# == 1 || $# == 2)) || fail "usage: run.sh BUILD_DIR [FOLDER]"
[[ -x $1/broker/ipcd-run ]] || fail "$1/broker/ipcd-run is not there: build the project first (./dev build release)"
build=$(cd -- "$1" && pwd -P) || exit 2
for program in walk digest count identifiers collect; do
    [[ -x $build/examples/fileindex/$program ]] ||
        fail "$program was not built: it needs libcrypto (on Debian: apt-get install libssl-dev)"
done
folder=${2:-/usr/include}
[[ -e $folder ]] || fail "there is no folder ${folder@Q}"
[[ -d $folder ]] || fail "${folder@Q} is not a folder"
here=$PWD script=$(readlink -f -- "${BASH_SOURCE[0]}")
cd -P -- "$folder" 2>/dev/null || fail "${folder@Q} may not be entered by $(id -un)"
folder=$PWD # not $(pwd): a name may end with a line feed
cd -- "$here" || exit 2
exec "$build/broker/ipcd-run" --private -- "$script" --job "$build" "$folder"
