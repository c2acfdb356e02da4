#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# libipc has the binary interface of the last release (abi.sh), and that check sees a breach: a struct of libipc.abi whose
# field moves, and a function that is gone.
#
# usage: test_abi.sh SOURCE_DIR BUILD_DIR
set -euo pipefail

source=${1:?usage: test_abi.sh SOURCE_DIR BUILD_DIR} build=${2:?}
skip() { echo "skipped: $*"; exit 77; }
command -v abidiff >/dev/null || skip "there is no abidiff (package abigail-tools)"
[[ $(uname -m) == x86_64 && $(basename "${IPC_CC:-gcc}") == gcc && -z ${IPC_SANITIZE:-} ]] ||
    skip "libipc.abi is of plain builds by gcc on x86-64"
[[ -e $build/libipc/libipc.so.0 ]] || skip "libipc is not built here"

"$source/tests/abi/abi.sh" "$source" "$build"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tests/abi" "$work/debian"
cp "$source/debian/libipc0.symbols" "$source/debian/changelog" "$work/debian/"
cp "$source/tests/abi/private.suppr" "$work/tests/abi/"
breach() { # WHAT SED_SCRIPT
    sed "$2" "$source/tests/abi/libipc.abi" >"$work/tests/abi/libipc.abi"
    if cmp -s "$source/tests/abi/libipc.abi" "$work/tests/abi/libipc.abi"; then echo "nothing was changed: $1" >&2; exit 1; fi
    if "$source/tests/abi/abi.sh" "$work" "$build" >"$work/log" 2>&1 || ! grep -q 'interface changed' "$work/log"; then
        cat "$work/log"
        echo "not seen: $1" >&2
        exit 1
    fi
    echo "seen: $1"
}
breach "a field that moved" "/class-decl name='ipc_peer'/,/class-decl/ s/layout-offset-in-bits='64'/layout-offset-in-bits='128'/"
breach "a function that is gone" "s/ipc_version/ipc_release/g"
