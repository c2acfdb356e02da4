#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The units of a user, below a service manager of that user: see user.sh.
#
# usage: test_user.sh SOURCE_DIR BUILD_DIR
set -euo pipefail
exec "${1:?usage: test_user.sh SOURCE_DIR BUILD_DIR}/tests/systemd/test_service.sh" "$1" "${2:?}" "$1/tests/systemd/user.sh"
