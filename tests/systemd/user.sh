#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Run by test_service.sh as a service of the systemd that it boots: two users with a service manager and a broker each.
set -eEuo pipefail

step() { echo "user: $*"; }
die() {
    echo "user: FAILED: $*"
    for name in anna berta; do as $name systemctl --user --no-pager -n 0 status 'ipcd*' || true; done
    journalctl --no-pager -n 80 -o short-precise || true
    exit 1
}
trap 'die "line $LINENO: $BASH_COMMAND"' ERR
# Polls; a condition that never comes true ends by the timeout of the container.
wait_for() { until "$@"; do sleep 0.02; done; }

cp -a /out/stage/. /
install -m 755 /out/traffic /usr/local/bin/ipc-traffic
PATH=/usr/local/sbin:/usr/local/bin:$PATH
unset IPC_ADDRESS

declare -A uids=([anna]=61101 [berta]=61102)
as() { # NAME COMMAND...
    local name=$1 uid=${uids[$1]}
    shift
    setpriv --reuid="$uid" --regid="$uid" --clear-groups \
        env "HOME=/run/home/$name" "XDG_RUNTIME_DIR=/run/user/$uid" "USER=$name" "$@"
}
for name in anna berta; do
    uid=${uids[$name]}
    printf '%s:x:%d:\n' "$name" "$uid" >>/etc/group
    printf '%s:x:%d:%d::/run/home/%s:/bin/sh\n' "$name" "$uid" "$uid" "$name" >>/etc/passwd
    mkdir -p "/run/home/$name" "/run/user/$uid"
    chown "$uid:$uid" "/run/home/$name" "/run/user/$uid"
    chmod 700 "/run/home/$name" "/run/user/$uid"
    # What user@.service does, without a login.
    cat >"/run/systemd/system/manager-$name.service" <<UNIT
[Service]
Type=notify
User=$name
Environment=HOME=/run/home/$name XDG_RUNTIME_DIR=/run/user/$uid
ExecStart=/lib/systemd/systemd --user
Delegate=yes
KillMode=mixed
UNIT
done
systemctl daemon-reload
systemctl start manager-anna manager-berta

main() { as anna systemctl --user show --value -p MainPID ipcd.service; }
ipcd() { pgrep -x -u "${uids[anna]}" ipcd; } # exactly one, or the comparisons below fail
answers() { as anna ipcctl status >/dev/null 2>&1; }
is_other() { # OLD COMMAND: it prints one number that is not OLD
    local now
    now=$($2) && [[ $now =~ ^[1-9][0-9]*$ && $now != "$1" ]]
}
state() { as "$1" systemctl --user show --value -p ActiveState "$2"; }

step "socket activation, as systemctl --user enable --now has it"
for name in anna berta; do
    as $name systemctl --user --quiet enable --now ipcd.socket 2>/dev/null
    [[ $(state $name ipcd.service) == inactive ]]
    as $name ipcctl status >/dev/null
    [[ $(state $name ipcd.service) == active ]]
done
[[ $(as anna systemctl --user show --value -p StatusText ipcd.service) == Listening* ]]
[[ $(stat -c %a "/run/user/${uids[anna]}/ipcd/socket") == 600 ]]
for pid in $(main) $(ipcd); do
    grep -qE '^Seccomp:[[:space:]]+2' "/proc/$pid/status"
    grep -qE '^NoNewPrivs:[[:space:]]+1' "/proc/$pid/status"
done

step "a message from one process to another, and to no other user"
as anna ipcctl sub --count 1 plant.door >/run/heard &
heard=$!
as berta ipcctl sub plant.door >/run/overheard 2>/dev/null || true & # until it is killed
subscribed() { as "$1" ipcctl ls -s | grep plant.door >/dev/null; }
wait_for subscribed anna
wait_for subscribed berta
as anna ipcctl pub plant.door open
wait $heard
grep -q open /run/heard || die "heard: $(cat /run/heard)"
[[ ! -s /run/overheard ]] || die "another user's broker had it: $(cat /run/overheard)"
pkill -x -u "${uids[berta]}" ipcctl
if as berta env "IPC_ADDRESS=/run/user/${uids[anna]}/ipcd/socket" ipcctl status >/dev/null 2>&1; then die "another user may connect"; fi

as anna ipc-traffic first >/run/first.log 2>&1 &
traffic=$!
wait_for grep -q . /run/first.log
flows() { kill -0 $traffic 2>/dev/null || die "after $*: $(cat /run/first.log)"; }
grep -q '^ready' /run/first.log || die "traffic: $(cat /run/first.log)"

step "kill -9 of ipcd, and of ipcd-run"
old=$(ipcd) run=$(main)
kill -9 "$old"
wait_for is_other "$old" ipcd
wait_for answers
[[ $(main) == "$run" ]]
flows "kill -9 of ipcd"
old=$(ipcd)
kill -9 "$run"
wait_for is_other "$run" main
wait_for is_other "$old" ipcd
wait_for answers
flows "kill -9 of ipcd-run"

step "restart and reload"
for verb in restart reload; do
    old=$(ipcd)
    as anna systemctl --user $verb ipcd.service
    wait_for is_other "$old" ipcd
    wait_for answers
    flows $verb
done

step "the gateway to mqueues"
as anna mkdir -p /run/home/anna/.config/ipcd
printf '[bind orders]\ndirection = in\nmqueue = /anna.orders\nqueue = orders\n' |
    as anna tee /run/home/anna/.config/ipcd/ipcd-mq.conf >/dev/null
as anna ipcctl queue create orders
as anna systemctl --user start ipcd-mq.service
[[ $(state anna ipcd-mq.service) == active ]]
as anna /usr/bin/python3 - <<'PYTHON'
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
while (mqueue := libc.mq_open(b"/anna.orders", os.O_WRONLY)) < 0 and ctypes.get_errno() == errno.ENOENT:
    os.sched_yield()
if mqueue < 0 or libc.mq_send(mqueue, b"an order", 8, 0) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
PYTHON
[[ $(as anna ipcctl recv -r orders --count 1) == "an order" ]]

step "no session was lost"
pkill -TERM -x ipc-traffic
wait $traffic || die "traffic: $(cat /run/first.log)"
step "$(tail -n 1 /run/first.log)"

step "stop"
as anna systemctl --user stop ipcd.socket ipcd.service
if ipcd; then die "ipcd outlived the stop"; fi
[[ -z $(ls -A "/run/user/${uids[anna]}/ipcd") ]] || die "left behind: $(ls -A "/run/user/${uids[anna]}/ipcd")"
for unit in ipcd.socket ipcd.service ipcd-mq.service; do
    [[ $(state anna $unit) == inactive ]] || die "$unit was not stopped"
done
[[ $(state berta ipcd.service) == active ]]
systemctl stop manager-anna manager-berta
if pgrep -x ipcd; then die "a broker outlived the manager of its user"; fi
step "passed"
