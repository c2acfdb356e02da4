#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The gateway to ZeroMQ, by a client of Node and the package zeromq.
set -uo pipefail

export IPC_SOURCE_DIR=${1:-${IPC_SOURCE_DIR:?}} IPC_BUILD_DIR=${2:-${IPC_BUILD_DIR:?}}
export IPCCTL_BIN=${IPCCTL_BIN:-$IPC_BUILD_DIR/tools/ipcctl} NODE_PATH=$IPC_SOURCE_DIR/build/node/node_modules
export IPCD_ZMQ_BIN=${IPCD_ZMQ_BIN:-$IPC_BUILD_DIR/broker/ipcd-zmq}
if [[ ! -x $IPCD_ZMQ_BIN ]] || ! node -e 'require("zeromq")' 2>/dev/null; then
    echo "node or its package zeromq is not installed: ./dev test installs it"
    exit 77
fi
# shellcheck disable=SC2016
exec timeout --kill-after=5 100 "${IPCD_RUN_BIN:-$IPC_BUILD_DIR/broker/ipcd-run}" --private -- bash -c '
    "$IPCD_ZMQ_BIN" & gateway=$!
    node "$IPC_SOURCE_DIR/tests/proc/gateway_zmq.js"; status=$?
    kill "$gateway"; wait "$gateway" || status=$?
    exit "$status"' </dev/null
