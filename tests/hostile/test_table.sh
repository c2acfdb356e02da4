#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Every attack of docs/threat-model.md names the tests that try it, `file:function`, `file.py:Class.test` or a file: they exist, and each is run.
# And each test of a hostile client is named there.
#
# test_table.sh [SOURCE]
set -euo pipefail

cd "${1:-$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)}"
table=docs/threat-model.md
bad=0
complain() {
    printf '%s\n' "$*"
    bad=1
}

rows=$(awk '/^\| attack \|/ {on = 1; next} /^$/ {on = 0} on && !/^\| ---/' "$table")
[[ $(wc -l <<<"$rows") -ge 20 ]] || complain "$table: where is the table of attacks?"
named=""
while IFS='|' read -r _ attack result tests _; do
    [[ -n ${result// /} ]] || complain "no expected result: $attack"
    # shellcheck disable=SC2016 # Markdown's backquotes
    refs=$(grep -o '`tests/[^`]*`' <<<"$tests" | tr -d '`' || true)
    [[ -n $refs ]] || complain "no test: $attack"
    for ref in $refs; do
        file=${ref%%:*} function=
        [[ $ref != *:* ]] || function=${ref#*:}
        named+="$ref "
        [[ -f $file ]] || complain "$file does not exist: $attack"
        [[ -z $function ]] && continue
        if [[ $file == *.py ]]; then # a class, or one of its cases; unittest finds both by their names
            class=${function%%.*}
            part=$(sed -n "/^class $class(/,/^class /p" "$file")
            [[ -n $part ]] || complain "$file has no class $class: $attack"
            [[ $function != *.* ]] || grep -q "^    def ${function#*.}(" <<<"$part" ||
                complain "$file has no $function: $attack"
            grep -q 'unittest\.main(' "$file" || complain "$file runs nothing: $attack"
            continue
        fi
        # Defined, and in the list of what is run.
        grep -q "^static void $function(" "$file" || complain "$file has no $function: $attack"
        grep -Eq "(\(|, )${function}[,)]" <(grep -v '^static' "$file") || complain "$file does not run $function: $attack"
    done
done <<<"$rows"

for file in tests/hostile/test_*.c; do
    while read -r function; do
        [[ " $named" == *" $file:$function "* ]] || complain "$table does not name $file:$function"
    done < <(sed -n 's/^static void \(test_[a-z_0-9]*\)(.*/\1/p' "$file")
done
((bad == 0)) && printf '%d attacks, each with its tests\n' "$(wc -l <<<"$rows")"
exit "$bad"
