#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The filter of system calls of a unit, as a program for the kernel, which filtered.c sets.

usage: filtered.py UNIT_FILE... >FILTER    what one of the units allows, by its SystemCallFilter= lines; all else kills (SIGSYS)
"""
import subprocess, sys

import seccomp


def allowed(unit):
    groups, current = {}, None
    for line in subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], check=True, text=True,
                               stdout=subprocess.PIPE).stdout.splitlines():
        word = line.strip()
        if line.startswith("@"):
            current = groups.setdefault(word, [])
        elif word and not word.startswith("#") and current is not None:
            current.append(word)

    def calls(name):
        return set().union(*(calls(member) for member in groups[name])) if name.startswith("@") else {name}

    names = set()
    for line in open(unit):
        if line.startswith("SystemCallFilter="):
            words = line.strip().split("=", 1)[1]
            for word in words.lstrip("~").split():
                names = names - calls(word) if words.startswith("~") else names | calls(word)
    return names | calls("@default")


rules = seccomp.SyscallFilter(seccomp.KILL_PROCESS)
for name in sorted(set().union(*map(allowed, sys.argv[1:]))):
    try:
        rules.add_rule(seccomp.ALLOW, name)
    except RuntimeError:
        pass  # of a later kernel than libseccomp
rules.export_bpf(sys.stdout)
