#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What can be said of the units without starting them: systemd takes every line, their exposure, their limits, the journal's
# catalog.
#
# usage: test_units.sh SOURCE_DIR BUILD_DIR
set -euo pipefail

source=${1:?usage: test_units.sh SOURCE_DIR BUILD_DIR} build=${2:?}
declare -A exposure_max=([ipcd]=6 [ipcd-mq]=6 [ipcd-zmq]=13) # tenths
for program in systemd-analyze journalctl; do
    command -v $program >/dev/null || { echo "skipped: there is no $program"; exit 77; }
done
[[ -e $build/CMakeCache.txt ]] || { echo "skipped: nothing is built in $build"; exit 77; }

work=$(mktemp -d)
export XDG_RUNTIME_DIR=$work
trap 'rm -rf "$work"' EXIT
die() { echo "test_units: $*" >&2; exit 1; }

DESTDIR=$work/stage cmake --install "$build" >"$work/log" 2>&1 || { cat "$work/log" >&2; die "install failed"; }
unit=$(find "$work/stage" -path '*/system/ipcd.service')
units=${unit%/system/*}

for what in "--system $units/system" "--user $units/user"; do
    read -r mode folder <<<"$what"
    # The programs of this machine are not the installed ones.
    mkdir "$work/$mode"
    cp "$folder"/* "$work/$mode/"
    sed -i -E 's#^(Exec[A-Za-z]*=)[^ ]*/ipcd[-a-z]*( |$)#\1/bin/true\2#' "$work/$mode"/*.service
    said=$(systemd-analyze "$mode" verify --man=no "$work/$mode"/* 2>&1) || true
    [[ -z $said ]] || die "systemd-analyze $mode verify says:"$'\n'"$said"
done

for service in "$units"/system/*.service; do
    most=${exposure_max[$(basename "$service" .service)]}
    systemd-analyze security --offline=true --threshold="$most" --no-pager "$service" >"$work/security" 2>&1 ||
        { cat "$work/security" >&2; die "$(basename "$service") is more exposed than $most tenths"; }
    grep '^→' "$work/security"
    for line in RemoveIPC=yes PrivateUsers=yes PrivateIPC=yes DynamicUser=yes; do
        if grep -qx $line "$service"; then die "$(basename "$service") has $line, which breaks what it serves"; fi
    done
    # Each line of the sandbox has its reason.
    sed -n '/^\[Service\]/,/^\[Install\]/ s/^\([A-Za-z]*\)=.*/\1/p' "$service" | sort -u | while read -r key; do
        grep -q "\`$key=" "$source/systemd/README.md" || die "systemd/README.md says nothing of $key="
    done
done

limit=$(sed -n 's/^#define IPC_CORE_NOFILE *\([0-9]*\)u.*/\1/p' "$source/proto/limits.h")
grep -qx "LimitNOFILE=$limit" "$units/system/ipcd.service" || die "LimitNOFILE= is not IPC_CORE_NOFILE ($limit)"

# Each id of a message is in the catalog, once, and no other.
sed -n 's/^ X([A-Z_]*, LOG_[A-Z]*, "\([0-9a-f]*\)".*/\1/p' "$source/broker/core/util/log.h" | sort >"$work/ids"
sed -n 's/^-- \([0-9a-f]*\)$/\1/p' "$source/systemd/ipcd.catalog" | sort >"$work/catalog"
[[ $(wc -l <"$work/ids") -ge 16 ]] || die "the ids of log.h were not found"
diff "$work/ids" "$work/catalog" || die "the ids of log.h (<) and of the catalog (>) differ"
sed -n 's/^ X(\([A-Z_]*\), LOG_.*/\1/p' "$source/broker/core/util/log.h" | while read -r kind; do
    grep -rqw --include='*.c' "LOG_$kind" "$source/broker" || die "nothing is ever logged as LOG_$kind"
done
mkdir -p "$work/root/usr/lib/systemd/catalog" "$work/root/var/lib/systemd/catalog"
cp "$source/systemd/ipcd.catalog" "$work/root/usr/lib/systemd/catalog/"
said=$(journalctl --root="$work/root" --update-catalog 2>&1) || die "journalctl does not take the catalog: $said"
[[ -z $said ]] || die "journalctl says of the catalog: $said"
echo "test_units: passed"
