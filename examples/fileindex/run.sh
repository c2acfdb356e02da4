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

# Inside the private broker: start the programs, wait for them, judge.
job() {
    local bin=$1/examples/fileindex folder=$2 name pid status failed='' count_arguments=()
    local -A names=() pids=()

    # From coreutils 9.5 on, wc counts words of unprintable bytes, too.
    [[ $(printf '\1' | LC_ALL=C wc -w) -eq 0 ]] || count_arguments=(--any-byte)

    # Leave nobody behind, whichever way this ends.
    trap '((${#names[@]} == 0)) || kill -KILL "${!names[@]}" "-${pids[collect]:-0}" 2>/dev/null
          wait 2>/dev/null' EXIT
    trap 'trap "" INT TERM HUP; say interrupted; exit 130' INT TERM HUP

    # They find each other by topic: any order will do.
    for name in collect digest count identifiers walk; do
        case $name in
            # A process group of its own, with the tools that it starts.
            collect) setsid "$bin/collect" & ;;
            count) "$bin/count" "${count_arguments[@]}" & ;;
            walk) "$bin/walk" "$folder" & ;;
            *) "$bin/$name" & ;;
        esac
        pids[$name]=$!
        names[$!]=$name
    done
    printf 'Indexing %s with five programs and a private broker:\n\n' "${folder@Q}"
    printf '  walk (%d)  -> files.>    ->  digest (%d), count (%d), identifiers (%d)\n' \
        "${pids[walk]}" "${pids[digest]}" "${pids[count]}" "${pids[identifiers]}"
    printf '  %s -> results.>  ->  collect (%d)\n\n' "all of them     " "${pids[collect]}"

    while ((${#names[@]})); do
        wait -n -p pid "${!names[@]}"
        status=$?
        [[ -n ${pid:-} ]] || break
        name=${names[$pid]}
        unset "names[$pid]"
        ((status)) || continue
        [[ -z $failed ]] || continue
        failed="$name ended with status $status"
        if ((status > 128)); then failed="$name was ended by SIG$(kill -l $((status - 128)))"; fi
        # The others notice by themselves. Should one not, it does not hold up the end.
        watch "${!names[@]}" &
        names[$!]=watch
    done
    trap - EXIT
    [[ -z $failed ]] || {
        say "failed: $failed"
        exit 1
    }
}

# End what still runs after a while; come back as soon as nothing does.
watch() {
    local pid tick

    for ((tick = 0; tick < 100; tick++)); do
        for pid; do
            kill -0 "$pid" 2>/dev/null && sleep 0.1 && continue 2
        done
        return 0
    done
    kill -KILL "$@" 2>/dev/null
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
