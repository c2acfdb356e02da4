#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The binary interface of libipc against that of the last release: libipc.abi, and the symbols that Debian's package names.
# A breach (a function gone, a struct or a parameter changed) is one for good. What was only added fails as well, until
# --update has written it down.
#
# usage: abi.sh [--update] SOURCE_DIR BUILD_DIR
set -euo pipefail

update=
if [[ ${1:-} == --update ]]; then
    update=1
    shift
fi
source=${1:?usage: abi.sh [--update] SOURCE_DIR BUILD_DIR} build=${2:?}
library=$build/libipc/libipc.so.0
known=$source/tests/abi/libipc.abi symbols=$source/debian/libipc0.symbols
say() { echo "abi: $*"; }
die() { say "$*" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
abidw --suppressions "$source/tests/abi/private.suppr" --no-show-locs --no-corpus-path --no-comp-dir-path --no-elf-needed \
    --type-id-style hash --out-file "$work/abi" "$library"

version=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$source/debian/changelog")
exported() { nm -D --with-symbol-versions --defined-only "$library" | sed -n 's/^[0-9a-f]* T \(ipc_[^@]*\)@@*/\1@/p' | LC_ALL=C sort; }
exported >"$work/exported"
[[ -s $work/exported ]] || die "$library exports nothing"
sed -n 's/^ \(ipc_[^ ]*\) .*/\1/p' "$symbols" | LC_ALL=C sort >"$work/listed"

if [[ -e $known ]]; then
    status=0
    abidiff --no-added-syms "$known" "$work/abi" >"$work/breach" || status=$?
    if ((status)); then
        cat "$work/breach"
        [[ -z $update ]] || say "this breaks programs that are linked already. If it is meant (nothing of it was released):" \
            "rm $known, and once more"
        die "the binary interface changed"
    fi
fi
if [[ -n $update ]]; then
    cp "$work/abi" "$known"
    LC_ALL=C comm -13 "$work/listed" "$work/exported" | sed "s/.*/ & $version/" >"$work/new"
    sed '/^ ipc_/d' "$symbols" >"$work/symbols"
    { grep '^ ipc_' "$symbols" | grep -F -w -f <(sed 's/@.*//' "$work/exported") || true; cat "$work/new"; } |
        LC_ALL=C sort >>"$work/symbols"
    cp "$work/symbols" "$symbols"
    say "written: tests/abi/libipc.abi, debian/libipc0.symbols; new functions: $(wc -l <"$work/new")"
    exit 0
fi
diff "$work/listed" "$work/exported" || die "what debian/libipc0.symbols lists (<) is not what is exported (>): ./dev abi --update"
abidiff "$known" "$work/abi" || die "something was added: ./dev abi --update"
say "$(wc -l <"$work/exported") functions are as they were"
