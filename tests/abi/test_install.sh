#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs into a folder of its own, then uses the installed files the way a stranger would: a C11 and a C++17
# program that include every public header next to <sys/ipc.h>, <sys/shm.h> and <sys/msg.h>, by pkg-config and
# by CMake, against libipc.so and libipc.a. And: both libraries export ipc_* alone, the headers declare nothing
# that the shared library lacks, and the shared library exports nothing that no header declares.
#
# usage: test_install.sh SOURCE_DIR BUILD_DIR
set -euo pipefail

build=${2:?usage: test_install.sh SOURCE_DIR BUILD_DIR}
if [[ ! -e $build/libipc/libipc.so.0 ]]; then
    echo "skipped: libipc is not built here"
    exit 77
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${IPC_CC:-cc}
case $(basename "$cc") in
    *clang*) cxx=clang++ ;;
    *) cxx=g++ ;;
esac
say() { echo "test_install: $*"; }
die() {
    say "$*" >&2
    exit 1
}

# A stage below DESTDIR, and one by prefix: what is installed must work from where it lies.
say "installing"
DESTDIR=$work/stage cmake --install "$build" --prefix /usr >"$work/install.log" || { cat "$work/install.log" >&2; die "install failed"; }
prefix=$work/stage/usr
so=$(find "$prefix" -name 'libipc.so.0' | head -n 1)
[[ -n $so ]] || die "no libipc.so.0 was installed"
lib=$(dirname "$so")
for file in "$lib/libipc.so" "$lib/libipc.a" "$lib/pkgconfig/libipc.pc" "$lib/cmake/ipc/ipcConfig.cmake" \
    "$prefix/include/ipc/ipc.h"; do
    [[ -e $file ]] || die "not installed: $file"
done
if grep -rIlF "$build" "$prefix/include" "$lib/cmake" "$lib/pkgconfig"; then
    die "these installed files name the build folder"
fi

# ---- what is exported ----------------------------------------------------------------------------------------

say "checking exports"
nm -D --defined-only "$lib/libipc.so.0" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort -u >"$work/exported"
[[ -s $work/exported ]] || die "libipc.so exports nothing: are the functions marked with default visibility?"
bad=$(grep -v '^ipc_[a-z0-9]' "$work/exported" || true)
[[ -z $bad ]] || die "libipc.so exports other names than ipc_*:"$'\n'"$bad"
bad=$(nm -D --with-symbol-versions --defined-only "$lib/libipc.so.0" | awk '$2 != "A" && $3 !~ /@@IPC_[0-9]+$/ { print $3 }')
[[ -z $bad ]] || die "symbols without a version of ours:"$'\n'"$bad"
if [[ -z $(find "$build/libipc" -maxdepth 2 -path '*/pack/libipc.a') ]]; then
    say "libipc.a is not packed in this build (LTO): its names are not checked"
else
    bad=$(nm -g --defined-only "$lib/libipc.a" 2>/dev/null | awk 'NF == 3 && $3 !~ /^ipc_[a-z0-9]/ { print $3 }')
    [[ -z $bad ]] || die "libipc.a defines other global names than ipc_*:"$'\n'"$bad"
fi
soname=$(objdump -p "$lib/libipc.so.0" | awk '$1 == "SONAME" { print $2 }')
[[ $soname == libipc.so.0 ]] || die "SONAME is '$soname', not libipc.so.0"
bad=$(objdump -p "$lib/libipc.so.0" | awk '$1 == "RPATH" || $1 == "RUNPATH" { print $2 }')
[[ -z $bad ]] || die "libipc.so.0 has a run path: $bad"

# Declared in a header <-> exported. A declaration, once preprocessed, is `ipc_name (` at depth 0 in our headers.
say "checking declarations against exports"
mapfile -t headers < <(cd "$prefix/include" && find ipc -name '*.h' | LC_ALL=C sort)
for header in "${headers[@]}"; do echo "#include <$header>"; done >"$work/all.h"
# In the output of -E, lines `# N "file"` say where a line is from; keep ours, blank out bodies and arguments.
"$cc" -std=c11 -I"$prefix/include" -E -x c "$work/all.h" |
    awk -v ours="$prefix/include/ipc/" '/^# [0-9]+ "/ { keep = index($0, "\"" ours) > 0; next } keep' |
    tr '\n' ' ' |
    awk '{
        text = $0; depth = 0; out = ""
        for (i = 1; i <= length(text); i++) {
            c = substr(text, i, 1)
            if (c == "{" || c == "(") { if (depth == 0 && c == "(") out = out "("; depth++ }
            else if (c == "}" || c == ")") depth--
            else if (depth == 0) out = out c
        }
        print out
    }' | tr ';' '\n' | grep -vE '\b(typedef|static|inline|__inline|__inline__)\b' |
    grep -oE '\bipc_[a-z0-9_]+ *\(' | tr -d ' (' | sort -u >"$work/declared" || true
[[ -s $work/declared ]] || die "the public headers declare no function"
bad=$(comm -23 "$work/declared" "$work/exported")
if [[ -n $bad ]]; then
    die "declared in a public header, but not exported by libipc.so:"$'\n'"$bad"
fi
bad=$(comm -13 "$work/declared" "$work/exported")
[[ -z $bad ]] || die "exported by libipc.so, but declared in no public header:"$'\n'"$bad"
say "$(wc -l <"$work/exported") functions are declared and exported"

# ---- programs ------------------------------------------------------------------------------------------------

# Ours first, and last: neither order may clash with the System V headers, and each stands on its own.
system='#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/msg.h>'
references=$(sed 's/.*/    (void (*)(void))&,/' "$work/declared")
write_program() { # FILE FIRST SECOND
    cat >"$1" <<SOURCE
$2
$3
#ifndef IPC_CREAT
#error "a public header took IPC_CREAT away"
#endif
#ifndef IPC_NOWAIT
#error "a public header took IPC_NOWAIT away"
#endif
static void (*volatile all[])(void) = {
$references
};
int main(void)
{
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (!all[i])
            return 1;
    return 0;
}
SOURCE
}
ours=$(cat "$work/all.h")
write_program "$work/first.c" "$ours" "$system"
write_program "$work/last.c" "$system" "$ours"
cp "$work/first.c" "$work/first.cc"
cp "$work/last.c" "$work/last.cc"
strict=(-Wall -Wextra -Wpedantic -Werror)
export PKG_CONFIG_PATH=$lib/pkgconfig

for header in "${headers[@]}"; do
    echo "#include <$header>" >"$work/one.c"
    cp "$work/one.c" "$work/one.cc"
    "$cc" -std=c11 "${strict[@]}" -I"$prefix/include" -fsyntax-only "$work/one.c" || die "<$header> alone is not C11"
    "$cxx" -std=c++17 "${strict[@]}" -I"$prefix/include" -fsyntax-only "$work/one.cc" || die "<$header> alone is not C++17"
done

read -ra pc_cflags <<<"$(pkg-config --cflags libipc)"
read -ra pc_shared <<<"$(pkg-config --libs libipc)"
read -ra pc_static <<<"$(pkg-config --libs --static libipc)"
try() { # NAME KIND COMMAND...: builds $work/prog with COMMAND, checks how it is linked, runs it
    local name=$1 kind=$2 linked
    shift 2
    "$@" || die "$name: does not build"
    linked=$(objdump -p "$work/prog" | awk '$1 == "NEEDED" { print $2 }')
    if [[ $kind == shared ]]; then
        grep -qx 'libipc.so.0' <<<"$linked" || die "$name: not linked with libipc.so.0"
        if grep -q 'protobuf' <<<"$linked"; then die "$name: protobuf-c shows through libipc.so"; fi
    elif grep -q 'libipc' <<<"$linked"; then
        die "$name: linked with libipc.so"
    fi
    LD_LIBRARY_PATH=$lib "$work/prog" || die "$name: does not run"
    say "$name: builds and runs"
}
for order in first last; do
    try "C11, pkg-config, shared, ours $order" shared \
        "$cc" -std=c11 "${strict[@]}" "${pc_cflags[@]}" "$work/$order.c" "${pc_shared[@]}" -o "$work/prog"
    try "C11, pkg-config, static, ours $order" static \
        "$cc" -std=c11 "${strict[@]}" "${pc_cflags[@]}" "$work/$order.c" -Wl,-Bstatic -L"$lib" -lipc \
        -Wl,-Bdynamic "${pc_static[@]}" -o "$work/prog"
    try "C++17, pkg-config, shared, ours $order" shared \
        "$cxx" -std=c++17 "${strict[@]}" "${pc_cflags[@]}" "$work/$order.cc" "${pc_shared[@]}" -o "$work/prog"
    try "C++17, pkg-config, static, ours $order" static \
        "$cxx" -std=c++17 "${strict[@]}" "${pc_cflags[@]}" "$work/$order.cc" -Wl,-Bstatic -L"$lib" -lipc \
        -Wl,-Bdynamic "${pc_static[@]}" -o "$work/prog"
done

mkdir "$work/user"
cat >"$work/user/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(user C CXX)
find_package(ipc 0.1 REQUIRED)
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_EXTENSIONS OFF)
add_compile_options(-Wall -Wextra -Wpedantic -Werror)
foreach(lang c cc)
    add_executable(${lang}_shared ${WORK}/first.${lang})
    target_link_libraries(${lang}_shared ipc::ipc)
    add_executable(${lang}_static ${WORK}/last.${lang})
    target_link_libraries(${lang}_static ipc::ipc_static)
endforeach()
CMAKE
CC=$cc CXX=$cxx cmake -G Ninja -S "$work/user" -B "$work/user/build" -DWORK="$work" \
    -DCMAKE_PREFIX_PATH="$prefix" >"$work/user.log" 2>&1 ||
    { cat "$work/user.log" >&2; die "find_package(ipc) failed"; }
cmake --build "$work/user/build" >"$work/user.log" 2>&1 || { cat "$work/user.log" >&2; die "find_package: does not build"; }
for lang in c cc; do
    for kind in shared static; do
        try "find_package, $lang, $kind" "$kind" cp "$work/user/build/${lang}_$kind" "$work/prog"
    done
done

# ---- what the packages hold ----------------------------------------------------------------------------------

# As dh_missing would say when they are built, which takes minutes: each file is in one package, each line names a file.
if [[ -e $build/broker/ipcd-zmq && -e $build/broker/ipcd-mq && -e $build/tools/ipcctl ]]; then
    say "checking debian/*.install"
    mapfile -t files < <(cd "$work/stage" && find . ! -type d | sed -E -e 's,^\./,,' \
        -e 's,^usr/lib/([^/]*-linux-gnu[^/]*/)?(libipc|cmake/|pkgconfig/),usr/lib/DEB_HOST/\2,' \
        -e 's,^usr/lib/systemd/system/,lib/systemd/system/,' -e 's,^.*etc/ipcd/,etc/ipcd/,')
    mapfile -t patterns < <(grep -hv '^#' "$1"/debian/*.install)
    declare -A used=()
    for file in "${files[@]}"; do
        n=0
        for pattern in "${patterns[@]}"; do
            # shellcheck disable=SC2053 # a pattern it is
            if [[ $file == $pattern || $file == $pattern/* ]]; then
                used[$pattern]=1
                ((n += 1))
            fi
        done
        ((n == 1)) || die "debian/*.install: $file is in $n packages"
    done
    for pattern in "${patterns[@]}"; do [[ -n ${used[$pattern]:-} ]] || die "debian/*.install: nothing is installed as $pattern"; done
fi

# ---- the rest of what is installed ---------------------------------------------------------------------------

for program in sbin/ipcd sbin/ipcd-run sbin/ipcd-mq sbin/ipcd-zmq bin/ipcctl; do
    if [[ -e $build/${program/sbin/broker} || -e $build/${program/bin/tools} ]]; then
        [[ -x $prefix/$program ]] || die "not installed: $program"
        bad=$(objdump -p "$prefix/$program" | awk '$1 == "RPATH" || $1 == "RUNPATH" { print $2 }')
        [[ -z $bad ]] || die "$program has a run path: $bad"
    fi
done
say "passed"
