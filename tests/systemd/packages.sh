#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Run by test_service.sh as a service of the systemd that it boots, with the packages in /out/files: they are installed, used,
# upgraded under traffic, removed, installed again and purged; and nothing is left.
set -eEuo pipefail

step() { echo "packages: $*"; }
die() {
    echo "packages: FAILED: $*"
    systemctl --no-pager -n 0 status 'ipcd*' || true
    journalctl --no-pager -n 60 -u 'ipcd*' -o short-precise || true
    exit 1
}
trap 'die "line $LINENO: $BASH_COMMAND"' ERR
# Polls; a condition that never comes true ends by the timeout of the container.
wait_for() { until "$@"; do sleep 0.02; done; }
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive IPC_ADDRESS=/run/ipcd/socket

# Left out: what dpkg itself keeps, accounts (those of the package stay, so that nobody else gets their numbers), caches.
state() {
    find / -xdev \( -path /out -o -path /work -o -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache -o \
        -path /var/lib/dpkg -o -path /var/lib/systemd/catalog -o -path /root \) -prune -o -print | LC_ALL=C sort
    find /etc -type f -not -name 'ld.so.cache' -not -name 'passwd*' -not -name 'group*' -not -name '*shadow*' \
        -exec sha256sum {} + | LC_ALL=C sort -k 2
}
rm -f /usr/sbin/policy-rc.d # images of containers have one that forbids to start anything
packages=(ipcd ipcd-mq ipcd-tools ipcd-zmq libipc-dev libipc0)
files() { for package in "${packages[@]}"; do echo "$1/${package}"_*.deb; done; }
run() { "$@" >/tmp/dpkg.log 2>&1 || die "$*: $(cat /tmp/dpkg.log)"; }
install_from() { # FOLDER
    local debs
    mapfile -t debs < <(files "$1")
    run dpkg --force-unsafe-io -i "${debs[@]}"
}
main() { systemctl show --value -p MainPID "${1:-ipcd}.service"; }
ipcd() { pgrep -x ipcd; } # exactly one, or the comparisons below fail
answers() { ipcctl status >/dev/null 2>&1; }
is_other() { # OLD COMMAND: it prints one number that is not OLD
    local now
    now=$($2) && [[ $now =~ ^[1-9][0-9]*$ && $now != "$1" ]]
}

step "the next version"
mkdir /tmp/next
files /out/files | while read -r file; do
    dpkg-deb -R "$file" /tmp/one
    sed -i -e 's/^Version: \(.*\)/Version: \1+next/' -e 's/(= \([^)]*\))/(= \1+next)/' /tmp/one/DEBIAN/control
    dpkg-deb -b /tmp/one "/tmp/next/$(basename "$file")" >/dev/null
    rm -r /tmp/one
done
state >/tmp/before

step "install"
install_from /out/files
for unit in ipcd.socket ipcd.service ipcd-mq.service ipcd-zmq.service; do
    [[ $(systemctl is-enabled $unit) == enabled && $(systemctl is-active $unit) == active ]] || die "$unit is not there"
done
answers
[[ $(ps -o user= -p "$(ipcd)") == ipcd ]]
dpkg -V "${packages[@]}"
[[ -z $(systemctl list-units --failed --no-legend 'ipcd*') ]]

step "a program is built with libipc-dev"
read -ra flags < <(pkg-config --cflags --libs libipc)
for name in publish subscribe; do
    cc "/usr/share/doc/libipc-dev/examples/hello_$name.c" -o /tmp/$name "${flags[@]}"
done
/tmp/subscribe >/tmp/heard &
/tmp/publish
wait $!
grep -q hello /tmp/heard

step "upgrade, and back"
/out/traffic first >/tmp/traffic.log 2>&1 &
traffic=$!
wait_for grep -q . /tmp/traffic.log
grep -q '^ready' /tmp/traffic.log
echo '# mine' >>/etc/ipcd/ipcd.conf
for from in /tmp/next /out/files; do
    old=$(ipcd) run=$(main) mq=$(main ipcd-mq) socket=$(stat -c %i /run/ipcd/socket)
    install_from $from
    wait_for is_other "$old" ipcd
    is_other "$run" main
    is_other "$mq" "main ipcd-mq"
    wait_for answers
    [[ $(stat -c %i /run/ipcd/socket) == "$socket" ]] || die "the socket is another one"
    kill -0 $traffic || die "after an upgrade: $(cat /tmp/traffic.log)"
done
kill $traffic
wait $traffic || die "traffic: $(cat /tmp/traffic.log)"
step "no session was lost: $(tail -n 1 /tmp/traffic.log)"
grep -qx '# mine' /etc/ipcd/ipcd.conf || die "a changed configuration was lost"

step "remove"
run dpkg -r "${packages[@]}"
if pgrep '^ipcd'; then die "it still runs"; fi
[[ ! -e /run/ipcd/socket ]]
[[ -e /etc/ipcd/ipcd.conf ]]

step "install again, and purge"
install_from /out/files
answers
grep -qx '# mine' /etc/ipcd/ipcd.conf || die "a changed configuration was lost"
run dpkg -P "${packages[@]}"
if grep -i warning /tmp/dpkg.log; then die "dpkg -P warns"; fi
if pgrep '^ipcd'; then die "it still runs"; fi
[[ ! -e /run/ipcd ]] || die "left behind: $(find /run/ipcd)"
state >/tmp/after
diff /tmp/before /tmp/after || die "files were left behind (>) or are gone (<)"
[[ -z $(systemctl list-units --all --no-legend 'ipcd*') ]] || die "left behind: $(systemctl list-units --all 'ipcd*')"
step "passed"
