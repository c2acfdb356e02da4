#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Run a program below the filter of system calls of its unit: what is not allowed there kills it (SIGSYS).

usage: filtered.py --list UNIT_FILE >LIST      by name, what the SystemCallFilter= lines of the unit allow
       filtered.py LIST PROGRAM [ARGUMENT...]
"""
import os, subprocess, sys


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


if sys.argv[1] == "--list":
    print("\n".join(sorted(allowed(sys.argv[2]))))
else:
    import seccomp

    rules = seccomp.SyscallFilter(seccomp.KILL_PROCESS)
    for name in open(sys.argv[1]).read().split():
        try:
            rules.add_rule(seccomp.ALLOW, name)
        except RuntimeError:
            pass  # of a later kernel than libseccomp
    rules.load()
    os.execv(sys.argv[2], sys.argv[2:])
