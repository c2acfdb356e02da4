#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The file index: six programs and a private broker index a folder, and check every result. In the middle one of the
# workers is killed, and another one takes its place.
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

# Inside the private broker: start the programs, replace workers that are killed, wait for all.
job() {
    local bin=$1/examples/fileindex here folder=$2 what name value failed='' middle replaced=0
    local mqueue=/fileindex-$$ # of this run alone; ipcd-mq makes and removes them
    local count=("$bin/count" "$mqueue-work" "$mqueue-results") bind=("$1/tools/ipcctl" bind mq form=enveloped)
    local -A before=() # workers of a kind that were ended
    declare -gA pids=() # global: the trap sees it

    here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

    # From coreutils 9.5 on, wc counts words of unprintable bytes, too.
    [[ $(printf '\1' | LC_ALL=C wc -w) -eq 0 ]] || count+=(--any-byte)
    middle=$(find "$folder/" -type f -printf . 2>/dev/null | wc -c)

    exec {ends}<> <(:) # a pipe, both ends of it
    trap end_all EXIT  # leave nobody behind, whichever way this ends
    trap 'trap "" INT TERM HUP; say interrupted; exit 130' INT TERM HUP

    "${bind[@]}" direction=out queue=work.count "mqueue=$mqueue-work" oversize=split >/dev/null ||
        fail "there is no mqueue for the work of count"
    "${bind[@]}" direction=in "mqueue=$mqueue-results" queue=results >/dev/null ||
        fail "there is no mqueue for the results of count"

    # They find each other by name: any order will do. collect gets a process group, for the tools that it runs.
    keep collect setsid "$bin/collect" &
    keep digest "$bin/digest" --die-after $((middle / 2 + 1)) &
    keep count "${count[@]}" &
    keep identifiers "$here/identifiers.py" &
    keep walk "$bin/walk" "$folder" &
    while ((${#pids[@]} < 5)) && read -r what name value <&"$ends"; do
        if [[ $what == began ]]; then
            pids[$name]=$value
        else # already: keep it for later
            printf '%s %s %s\n' "$what" "$name" "$value" >&"$ends"
        fi
    done
    printf 'Indexing %s with six programs and a private broker:\n\n' "${folder@Q}"
    printf '  walk (%d)  -> queues work.*  ->  digest (%d), count (%d), identifiers (%d)\n' \
        "${pids[walk]}" "${pids[digest]}" "${pids[count]}" "${pids[identifiers]}"
    printf '                                       by shared memory, mqueues %s-* (ipcd-mq), and ZeroMQ (ipcd-zmq)\n' "$mqueue"
    printf '  all of them      -> queue results  ->  collect (%d)  <-> service fileindex  <-> show\n\n' "${pids[collect]}"
    keep show "$bin/show" &

    # Whoever fails ends the job, except for a worker that is killed: its work waits for the next one. Not so that of count:
    # the file it is at has left the queue when the mqueue has it. If it is show, that may be because of collect, which is
    # told then.
    while [[ -z $failed || $name == show ]] && read -r ${failed:+-t 10} what name value <&"$ends"; do
        case $what,$name,$value in
            began,*) pids[$name]=$value ;;
            ended,digest,1[3-9]? | ended,identifiers,1[3-9]?)
                ((++replaced <= 5)) || failed="workers were killed $replaced times"
                [[ ! -t 1 ]] || printf '\r\033[K'
                printf '  %s (%d) was ended by SIG%s: another one takes its place\n' \
                    "$name" "${pids[$name]}" "$(kill -l $((value - 128)))"
                ((before[$name] = ${before[$name]:-0} + 1))
                case $name in
                    identifiers) keep identifiers "$here/identifiers.py" --replaces "${before[$name]}" & ;;
                    *) keep "$name" "$bin/$name" --replaces "${before[$name]}" & ;;
                esac
                ;;
            ended,*,0)
                unset "pids[$name]"
                ((${#pids[@]})) || break
                ;;
            *)
                failed="$name ended with status $value"
                ((value <= 128)) || failed="$name was ended by SIG$(kill -l $((value - 128)))"
                ;;
        esac
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
for program in walk digest count collect show; do
    [[ -x $build/examples/fileindex/$program ]] ||
        fail "$program was not built: it needs libcrypto (on Debian: apt-get install libssl-dev)"
done
[[ -x $build/broker/ipcd-mq && -x $build/tools/ipcctl ]] || fail "ipcd-mq or ipcctl was not built"
[[ -x $build/broker/ipcd-zmq ]] || fail "ipcd-zmq was not built: it needs libzmq (on Debian: apt-get install libzmq3-dev)"
/usr/bin/python3 -c 'import zmq' 2>/dev/null ||
    fail "a worker in Python needs pyzmq (on Debian: apt-get install python3-zmq)"
folder=${2:-/usr/include}
[[ -e $folder ]] || fail "there is no folder ${folder@Q}"
[[ -d $folder ]] || fail "${folder@Q} is not a folder"
here=$PWD script=$(readlink -f -- "${BASH_SOURCE[0]}")
cd -P -- "$folder" 2>/dev/null || fail "${folder@Q} may not be entered by $(id -un)"
folder=$PWD # not $(pwd): a name may end with a line feed
cd -- "$here" || exit 2
exec "$build/broker/ipcd-run" --private --config "${script%/*}/ipcd.conf" --gateway=mq --gateway=zmq -- \
    "$script" --job "$build" "$folder"
