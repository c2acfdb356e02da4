#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots a systemd of its own over the file system of this machine, in a container with an overlay that is thrown away, and
# runs inside.sh in it with what was built installed.
#
# usage: test_service.sh SOURCE_DIR BUILD_DIR [SCRIPT]
# environment: IPC_SYSTEMD_FILES, a folder that SCRIPT finds as /out/files; IPC_SYSTEMD_SECONDS, how long it may take (240)
set -euo pipefail

source=${1:?usage: test_service.sh SOURCE_DIR BUILD_DIR [SCRIPT]} build=${2:?}
script=${3:-$source/tests/systemd/inside.sh}
skip() {
    echo "skipped: $*"
    exit 77
}
((EUID == 0)) || skip "only root can boot a container"
command -v systemd-nspawn >/dev/null || skip "there is no systemd-nspawn (package systemd-container)"
if [[ -n ${IPC_SANITIZE:-} ]]; then skip "the sandbox of the unit leaves a sanitizer no room"; fi

id=ipcd-test-$$ groups=()
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [[ -e $hierarchy/cgroup.procs ]]; then groups+=("$hierarchy/$id"); fi
done
mkdir "${groups[@]}" 2>/dev/null || skip "no control groups of its own can be made in /sys/fs/cgroup"
out=$(mktemp -d) root=$(mktemp -d)
# shellcheck disable=SC2317 # the trap calls it
cleanup() {
    find "${groups[@]}" -depth -type d -exec rmdir {} \; 2>/dev/null
    rmdir "$root"
    rm -rf "$out"
}
trap cleanup EXIT

DESTDIR=$out/stage cmake --install "$build" >"$out/install.log" 2>&1 || { cat "$out/install.log" >&2; exit 1; }
cp "$script" "$out/inside.sh"
cp "$build/tests/systemd/traffic_helper" "$out/traffic" 2>/dev/null || [[ -n ${3:-} ]]
cp "$source/examples/python/ipcd_zmq.py" "$out/"
if [[ -n ${IPC_SYSTEMD_FILES:-} ]]; then cp -r "$IPC_SYSTEMD_FILES" "$out/files"; fi
cat >"$out/test.service" <<'UNIT'
[Unit]
Requires=basic.target
After=basic.target
[Service]
Type=exec
ExecStart=/out/inside.sh
StandardOutput=append:/out/result
StandardError=inherit
ExecStopPost=/bin/sh -c 'systemctl exit $$EXIT_STATUS'
UNIT

status=0
(
    for group in "${groups[@]}"; do echo $BASHPID >"$group/cgroup.procs"; done
    export root out id
    # shellcheck disable=SC2016
    exec unshare --mount --propagation private bash -c 'mount --bind / "$root"
        SYSTEMD_SECCOMP=0 exec timeout "${IPC_SYSTEMD_SECONDS:-240}" systemd-nspawn -D "$root" --volatile=overlay --boot --register=no --keep-unit \
            --machine="$id" --quiet --console=pipe --private-network --bind="$out:/out" \
            --bind-ro="$out/test.service:/etc/systemd/system/test.service" systemd.unit=test.service'
) </dev/null >"$out/console" 2>&1 || status=$?
if [[ ! -e $out/result ]]; then
    tail -n 30 "$out/console"
    skip "no systemd could be booted here; what it said is above"
fi
cat "$out/result"
exit "$status"
