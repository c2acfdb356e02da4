#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Run by test_service.sh as a service of the systemd that it boots.
set -eEuo pipefail

step() { echo "service: $*"; }
die() {
    echo "service: FAILED: $*"
    systemctl --no-pager -n 0 status ipcd.service ipcd.socket ipcd-mq.service ipcd-zmq.service || true
    journalctl --no-pager -n 80 -u 'ipcd*' -o short-precise || true
    exit 1
}
trap 'die "line $LINENO: $BASH_COMMAND"' ERR
# Polls; a condition that never comes true ends by the timeout of the container.
wait_for() { until "$@"; do sleep 0.02; done; }

cp -a /out/stage/. /
PATH=/usr/local/sbin:/usr/local/bin:$PATH
mkdir -p /usr/lib/systemd/catalog
cp -n /usr/local/lib/systemd/catalog/ipcd.catalog /usr/lib/systemd/catalog/ 2>/dev/null || true
systemd-sysusers
systemd-tmpfiles --create ipcd.conf ipcd-zmq.conf
journalctl --update-catalog
systemctl daemon-reload

main() { systemctl show --value -p MainPID "${1:-ipcd}.service"; }
mq() { main ipcd-mq; }
zmq() { main ipcd-zmq; }
ipcd() { pgrep -x ipcd; } # exactly one, or the comparisons below fail
answers() { IPC_ADDRESS=/run/ipcd/socket ipcctl status >/dev/null 2>&1; }
export IPC_ADDRESS=/run/ipcd/socket
is_other() { # OLD COMMAND: it prints one number that is not OLD
    local now
    now=$($2) && [[ $now =~ ^[1-9][0-9]*$ && $now != "$1" ]]
}

step "socket activation"
systemctl start ipcd.socket
[[ $(systemctl show --value -p ActiveState ipcd.service) == inactive ]]
answers
[[ $(systemctl show --value -p ActiveState ipcd.service) == active ]]
[[ $(systemctl show --value -p StatusText ipcd.service) == Listening* ]]
[[ $(ps -o user= -p "$(ipcd)") == ipcd ]]

step "who may connect"
if setpriv --reuid=65534 --regid=65534 --clear-groups ipcctl status >/dev/null 2>&1; then die "anybody may connect"; fi
setpriv --reuid=65534 --regid=65534 --groups="$(getent group ipc | cut -d: -f3)" ipcctl status >/dev/null

step "the sandbox holds"
for pid in $(main) $(ipcd); do
    grep -qE '^Seccomp:[[:space:]]+2' "/proc/$pid/status"
    grep -qE '^CapBnd:[[:space:]]+0+$' "/proc/$pid/status"
    grep -qE '^NoNewPrivs:[[:space:]]+1' "/proc/$pid/status"
done

# No broker, and each start fails with that status: who connects is told at once, and no more than once a second it is tried.
fails_at_rest() { # STATUS WHAT_CLIENTS_ARE_TOLD
    for _ in 1 2 3; do
        if said=$(ipcctl status 2>&1); then die "a broker answers that cannot start"; fi
        grep -q "$2" <<<"$said" || die "a client is told: $said"
    done
    wait_for systemctl --quiet is-failed ipcd.service
    [[ $(systemctl show --value -p ExecMainStatus ipcd.service) == "$1" ]]
    invocation=$(systemctl show --value -p InvocationID ipcd.service)
    systemctl daemon-reload
    [[ $(systemctl show --value -p InvocationID ipcd.service) == "$invocation" ]] || die "it is started over and over"
}

step "a wrong configuration and no broker; it is mended by the next connect"
systemctl stop ipcd.service
conf=$(systemctl cat ipcd.service | sed -n 's/^ExecStart=.*--config //p')
mkdir -p "$conf.d"
printf '[limits]\nsessions = many\n' >"$conf.d/wrong.conf"
fails_at_rest 78 'configuration has mistakes'
rm "$conf.d/wrong.conf"
answers

step "wrong options, likewise"
systemctl stop ipcd.service
mkdir -p /run/systemd/system/ipcd.service.d
printf '[Service]\nExecStart=\nExecStart=%s --config %s --wachdog 5\n' "$(command -v ipcd-run)" "$conf" \
    >/run/systemd/system/ipcd.service.d/options.conf
systemctl daemon-reload
fails_at_rest 64 'wrong options'
journalctl -u ipcd.service | grep >/dev/null -e '--wachdog' || die "the journal does not say which"
rm -r /run/systemd/system/ipcd.service.d
systemctl daemon-reload
answers

# What goes in by an mqueue and by ZeroMQ comes out of a queue; by a member of group ipc, which the service leaves the mqueue to.
cat >/run/outside.py <<'PYTHON'
import ctypes, errno, os, sys
sys.path.insert(0, "/out")
way, what = sys.argv[1], sys.argv[2].encode()
if way == "zmq":
    import ipcd_zmq
os.setgroups([int(sys.argv[3])])
os.setregid(65534, 65534)
os.setreuid(65534, 65534)
if way == "zmq":
    with ipcd_zmq.Client() as client:
        client.send("orders", what)
else:
    libc = ctypes.CDLL(None, use_errno=True)
    while (mqueue := libc.mq_open(way.encode(), os.O_WRONLY)) < 0 and ctypes.get_errno() in (errno.ENOENT, errno.EACCES):
        os.sched_yield()  # its binding opens when the queue is there, and then hands it to the group
    if mqueue < 0 or libc.mq_send(mqueue, what, len(what), 0) < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
PYTHON
sent=0
from_outside() { # WAY
    sent=$((sent + 1))
    /usr/bin/python3 /run/outside.py "$1" "order $sent" "$(getent group ipc | cut -d: -f3)" || die "sending by $1"
}
comes_in() { [[ $(ipcctl recv -r orders --count 1) == "order $sent" ]] || die "not received: order $sent"; }
gateways=(ipcd-mq)
if command -v ipcd-zmq >/dev/null && /usr/bin/python3 -c 'import zmq' 2>/dev/null; then gateways+=(ipcd-zmq); fi
gateways_work() {
    from_outside /orders
    comes_in
    if [[ ${gateways[*]} == *zmq* ]]; then
        from_outside zmq
        comes_in
    fi
}

step "gateways, which start the broker"
systemctl stop ipcd.service
conf=$(systemctl cat ipcd-mq.service | sed -n 's/^ExecStart=.*--config \([^ ]*\).*/\1/p')
mkdir "$conf.d"
printf '[bind orders]\ndirection = in\nmqueue = /orders\nqueue = orders\nmode = 660\n' >"$conf.d/orders.conf"
systemctl start "${gateways[@]}"
step "${gateways[*]}"
[[ $(systemctl is-active ipcd.service) == active ]]
ipcctl queue create orders
gateways_work
gateway_pids=$(mq; zmq)
gateways_stay() { [[ $(mq; zmq) == "$gateway_pids" ]] || die "a gateway was restarted by $*"; }

traffic=()
start_traffic() { # NAME COMMAND...
    local name=$1
    shift
    "$@" /out/traffic "$name" >"/run/$name.log" 2>&1 &
    traffic+=("$name:$!")
    wait_for grep -q . "/run/$name.log"
    grep -q '^ready' "/run/$name.log" || die "traffic $name: $(cat "/run/$name.log")"
}
start_traffic first env
start_traffic second setpriv --reuid=65534 --regid=65534 --groups="$(getent group ipc | cut -d: -f3)"
flows() {
    for entry in "${traffic[@]}"; do
        if kill -0 "${entry#*:}" 2>/dev/null; then continue; fi
        status=0
        wait "${entry#*:}" || status=$?
        die "after $*: traffic ${entry%:*} ended with status $status: $(cat "/run/${entry%:*}.log")"
    done
}

step "kill -9 of ipcd"
for _ in 1 2 3; do
    old=$(ipcd) run=$(main)
    kill -9 "$old"
    wait_for is_other "$old" ipcd
    wait_for answers
    [[ $(main) == "$run" ]]
    flows "kill -9 of ipcd"
done

step "kill -9 of ipcd-run"
for _ in 1 2 3; do
    old=$(ipcd) run=$(main)
    kill -9 "$run"
    wait_for is_other "$run" main
    wait_for is_other "$old" ipcd # who adopts it replaces it
    wait_for answers
    flows "kill -9 of ipcd-run"
done

step "restart"
for _ in 1 2 3; do
    old=$(ipcd) run=$(main)
    systemctl restart ipcd.service
    is_other "$run" main
    wait_for is_other "$old" ipcd
    wait_for answers
    flows restart
done
gateways_stay "restarts of the broker"
gateways_work

step "restart of the socket"
old=$(ipcd) run=$(main) socket=$(stat -c %i /run/ipcd/socket)
systemctl restart ipcd.socket
wait_for is_other "$run" main
wait_for is_other "$old" ipcd
wait_for answers
[[ $(stat -c %i /run/ipcd/socket) != "$socket" ]] || die "the socket is the old one"
flows "restart of the socket"
gateways_work
gateway_pids=$(mq; zmq)

step "kill -9 of gateways, and what was made at run time over it and over a restart"
ipcctl bind mq more direction=in mqueue=/more queue=orders mode=660 >/dev/null
for gateway in "${gateways[@]}"; do
    old=$(main "$gateway")
    kill -9 "$old"
    wait_for is_other "$old" "main $gateway"
    wait_for systemctl --quiet is-active "$gateway"
done
gateways_work
from_outside /more
comes_in
systemctl restart "${gateways[@]}"
from_outside /more
comes_in
gateways_work
gateway_pids=$(mq; zmq)

step "reload"
old=$(ipcd) run=$(main)
systemctl reload ipcd.service
wait_for is_other "$old" ipcd
wait_for answers
[[ $(main) == "$run" ]]
flows reload

step "a wrong configuration is refused"
conf=$(systemctl cat ipcd.service | sed -n 's/^ExecStart=.*--config //p')
mkdir -p "$conf.d"
printf '[limits]\nsessions = many\n' >"$conf.d/wrong.conf"
old=$(ipcd)
if systemctl reload ipcd.service 2>/dev/null; then die "a wrong configuration was taken"; fi
[[ $(ipcd) == "$old" ]]
journalctl -u ipcd.service | grep >/dev/null 'wrong.conf:2' || die "the journal does not say what is wrong"
kill -9 "$old" # and it does not cost the sessions
wait_for is_other "$old" ipcd
wait_for answers
systemctl restart ipcd.service
wait_for answers
flows "a wrong configuration"
rm "$conf.d/wrong.conf"
systemctl reload ipcd.service

step "reload of the gateways: another mqueue, other rules, and a mistake"
mq_conf=$(systemctl cat ipcd-mq.service | sed -n 's/^ExecStart=.*--config \([^ ]*\).*/\1/p')
printf '[bind orders]\ndirection = sideways\n' >"$mq_conf.d/more.conf"
if systemctl reload ipcd-mq.service 2>/dev/null; then die "a wrong configuration was taken"; fi
journalctl -u ipcd-mq.service | grep >/dev/null 'more.conf:2' || die "the journal does not say what is wrong"
printf '[bind orders-2]\ndirection = in\nmqueue = /orders-2\nqueue = orders\nmode = 660\n' >"$mq_conf.d/more.conf"
systemctl reload ipcd-mq.service
from_outside /orders-2
comes_in
rm "$mq_conf.d/more.conf"
systemctl reload ipcd-mq.service
wait_for test ! -e /dev/mqueue/orders-2
if [[ ${gateways[*]} == *zmq* ]]; then
    zmq_conf=$(systemctl cat ipcd-zmq.service | sed -n 's/^ExecStart=.*--config \([^ ]*\).*/\1/p')
    mkdir -p "$zmq_conf.d"
    printf '[rule nobody]\nwho = user:65534\ndeny = send\nnames = orders\n' >"$zmq_conf.d/rules.conf"
    systemctl reload ipcd-zmq.service
    allowed() { ipcctl policy test --gateway zmq 65534 send orders >/dev/null; }
    denied() { ! allowed; }
    wait_for denied
    if /usr/bin/python3 /run/outside.py zmq denied "$(getent group ipc | cut -d: -f3)" 2>/run/denied; then die "a rule does not hold"; fi
    grep -q 'EACCES.*nobody' /run/denied || die "the peer was told: $(cat /run/denied)"
    rm "$zmq_conf.d/rules.conf"
    systemctl reload ipcd-zmq.service
    wait_for allowed
fi
gateways_work
gateways_stay "reloads"

step "watchdogs"
mkdir -p /run/systemd/system/ipcd.service.d
printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/ipcd.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart ipcd.service
wait_for answers
run=$(main) old=$(ipcd)
kill -STOP "$run"
wait_for is_other "$run" main
wait_for is_other "$old" ipcd
wait_for answers
journalctl -u ipcd.service | grep >/dev/null 'Watchdog timeout' || die "it was not systemd's watchdog"
flows "systemd's watchdog"
rm -r /run/systemd/system/ipcd.service.d
systemctl daemon-reload
systemctl restart ipcd.service
wait_for answers
run=$(main)
old=$(ipcd)
kill -STOP "$old"
wait_for is_other "$old" ipcd
wait_for answers
[[ $(main) == "$run" ]]
flows "the watchdog of ipcd-run"

step "the journal"
entry=$(journalctl -u ipcd.service IPCD_EVENT=session-begun IPCD_UID=65534 -n 1 -o json)
for field in MESSAGE_ID IPCD_SESSION IPCD_PID IPCD_UID IPCD_NAME IPCD_REASON; do
    grep -q "\"$field\":\"" <<<"$entry" || die "no field $field in $entry"
done
journalctl -x -u ipcd.service IPCD_EVENT=session-begun -n 1 | grep >/dev/null 'Subject: A client has come' || die "no catalog text"

step "no session was lost"
for entry in "${traffic[@]}"; do
    kill -TERM "${entry#*:}"
    wait "${entry#*:}" || die "traffic ${entry%:*}: $(cat "/run/${entry%:*}.log")"
    echo "service: ${entry%:*}: $(tail -n 1 "/run/${entry%:*}.log")"
done

gateways_stay "what became of the broker"

step "kill -9 of ipcd and ipcd-run at once ends the sessions, and no more"
traffic=()
start_traffic third env
pid=${traffic[0]#*:} old=$(ipcd) run=$(main)
systemctl kill --signal=KILL ipcd.service
if wait "$pid"; then die "a session outlived both"; fi
grep -q '^lost: ' /run/third.log || die "the client was not told: $(cat /run/third.log)"
wait_for is_other "$run" main
wait_for is_other "$old" ipcd
wait_for answers
ipcctl queue create orders
for gateway in "${gateways[@]}"; do wait_for systemctl --quiet is-active "$gateway"; done
gateways_work

step "stop, with a call that is answered a second after the stop has begun"
traffic=()
start_traffic fourth env
pid=${traffic[0]#*:}
stopping() { [[ $(systemctl show --value -p StatusText ipcd.service) == Draining*' 1 calls.' ]]; }
export -f stopping wait_for
ipcctl serve slow -- bash -c 'touch /run/begun; wait_for stopping; sleep 1; cat' &
served=$!
ipcctl call --wait slow "a question" >/run/answer &
called=$!
wait_for test -e /run/begun
systemctl stop ipcd.socket ipcd.service
wait "$called" || die "a call was not answered while ipcd drained: status $?"
[[ $(</run/answer) == "a question" ]] || die "answered: $(</run/answer)"
wait "$served" || true
if wait "$pid"; then die "a session outlived the stop"; fi
if ipcd; then die "ipcd outlived the stop"; fi
[[ -z $(find /run/ipcd -not -type l -not -type d) ]] || die "left behind: $(ls -A /run/ipcd)"
for unit in ipcd "${gateways[@]}"; do
    [[ $(systemctl show --value -p ActiveState "$unit.service") == inactive ]] || die "$unit was not stopped with the socket"
    [[ $(systemctl show --value -p Result "$unit.service") == success ]]
    [[ $unit == ipcd || ! -e /run/$unit ]] || die "left behind: /run/$unit"
done
step "passed"
