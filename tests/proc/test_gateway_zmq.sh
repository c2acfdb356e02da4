#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The gateway to ZeroMQ, by clients of pyzmq.
set -uo pipefail

export IPC_SOURCE_DIR=${1:-${IPC_SOURCE_DIR:?}} IPC_BUILD_DIR=${2:-${IPC_BUILD_DIR:?}}
python=/usr/bin/python3 # Debian's, which has python3-zmq
[[ -x ${IPCD_ZMQ_BIN:-$IPC_BUILD_DIR/broker/ipcd-zmq} ]] || exit 77
"$python" -c 'import zmq' 2>/dev/null || { echo "python3-zmq is not installed: ./dev test installs it"; exit 77; }
exec timeout --kill-after=5 600 "$python" -B "$IPC_SOURCE_DIR/tests/proc/gateway_zmq.py" "${@:3}" </dev/null
