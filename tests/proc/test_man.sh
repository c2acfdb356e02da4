#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The manual pages tell of each option and each setting that the programs have, and of no option that they have not.
set -uo pipefail

source_dir=${1:-${IPC_SOURCE_DIR:?}} build_dir=${2:-${IPC_BUILD_DIR:?}}
man=$source_dir/docs/man failed=0 count=0

# complain TEXT...: on stdin a line for each thing that is wrong
complain() {
    local line
    while read -r line; do
        printf '# %s: %s\n' "$*" "$line"
        failed=1
    done
}

# options: of --help on stdin, without those that every program has
options() { grep -oE -- '--[a-z][a-z-]+' | grep -vxE -- '--(help|usage|version)' | sort -u; }

# described PAGE: options that have a paragraph there
described() { grep -E '^\*-' "$1" | options; }

for program in ipcd ipcd-run ipcd-mq ipcd-zmq; do
    [[ -x $build_dir/broker/$program ]] || continue
    help=$("$build_dir/broker/$program" --help | options)
    complain "$program(8) does not tell of" < <(comm -23 <(echo "$help") <(options <"$man/$program.8.scd"))
    complain "$program(8) tells of what there is not" < <(comm -13 <(echo "$help") <(described "$man/$program.8.scd"))
    count=$((count + $(wc -l <<<"$help")))
done

ctl=$build_dir/tools/ipcctl
commands=$("$ctl" --help | sed -n '/^Commands:/,$ s/^  \([a-z]*\)  .*/\1/p')
help=$(for command in '' $commands; do "$ctl" ${command:+"$command"} --help; done | options)
complain "ipcctl(1) does not tell of" < <(comm -23 <(echo "$help") <(options <"$man/ipcctl.1.scd"))
complain "ipcctl(1) tells of what there is not" < <(comm -13 <(echo "$help") <(described "$man/ipcctl.1.scd"))
complain "ipcctl(1) has no section for" < <(for command in ${commands^^}; do
    grep -qE "^# (.* )?$command( |,|$)" "$man/ipcctl.1.scd" || echo "$command"
done)
count=$((count + $(wc -l <<<"$help")))

# What --check prints is all that there is; total-KEY stands for each KEY.
for page in ipcd:ipcd.conf.5 ipcd-mq:ipcd-mq.8 ipcd-zmq:ipcd-zmq.8; do
    [[ -x $build_dir/broker/${page%%:*} ]] || continue
    settings=$("$build_dir/broker/${page%%:*}" --check --config /dev/null | sed -nE 's/^(total-)?([a-z][a-z-]*) = .*/\2/p' | sort -u)
    complain "${page#*:} does not tell of" < <(for setting in $settings; do
        grep -qE "(^|[^a-z-]|--)$setting([^a-z-]|$)" "$man/${page#*:}.scd" || echo "$setting"
    done)
    count=$((count + $(wc -l <<<"$settings")))
done

((count > 100)) || complain "not enough was found" <<<"$count options and settings"
((failed)) || printf 'ok: %d options and settings\n' "$count"
exit "$failed"
