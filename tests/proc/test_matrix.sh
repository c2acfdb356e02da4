#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: test_matrix.sh SOURCE BUILD: the table of all patterns between all pairs of transports.
set -uo pipefail

export IPC_SOURCE_DIR=${1:?} IPC_BUILD_DIR=${2:?}
if [[ ! -x $IPC_BUILD_DIR/broker/ipcd-zmq ]] || ! /usr/bin/python3 -c 'import zmq' 2>/dev/null; then
    echo "matrix: libzmq or python3-zmq is not installed"
    exit 77
fi
home=$(mktemp -d "${TMPDIR:-/tmp}/ipc-matrix.XXXXXX") || exit 1
trap 'rm -rf "$home"' EXIT
export HOME=$home XDG_CONFIG_HOME=$home # no configuration of anybody
timeout --kill-after=5 230 "${IPCD_RUN_BIN:-$IPC_BUILD_DIR/broker/ipcd-run}" --private --gateway=mq --gateway=zmq -- \
    /usr/bin/python3 -B "$IPC_SOURCE_DIR/tests/proc/matrix.py" </dev/null
