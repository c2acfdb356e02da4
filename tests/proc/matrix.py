# SPDX-License-Identifier: Apache-2.0
"""Every pattern between every pair of transports, by separate programs: content, order and headers checked, nothing lost.

usage: matrix.py; below ipcd-run with both gateways. Prints the table. Status 0 only if every cell holds.
"""
import json
import os
import subprocess
import sys
import traceback

SOURCE, BUILD = os.environ["IPC_SOURCE_DIR"], os.environ["IPC_BUILD_DIR"]
IPCCTL = os.environ.get("IPCCTL_BIN") or f"{BUILD}/tools/ipcctl"
HELPER = f"{BUILD}/tests/proc/mqueue_helper"
TRANSPORTS, PATTERNS = ("shm", "mq", "zmq"), ("topic", "queue", "service")
COUNT, CALLS, SIZE, PATIENCE = 300, 8, 32, 120
ZMQ = {
    ("topic", "write"): "for i in range(n): c.publish(name, body(i), headers={'h': 'v'})",
    ("topic", "read"): "s = c.subscribe(name, timeout=120)\nprint('ready', flush=True)\nshow(s)",
    ("queue", "write"): "for i in range(n): c.send(name, body(i), headers={'h': 'v'})",
    ("queue", "read"): "show(c.pull(name, credit=16), c.ack)",
    ("service", "write"): "for i in range(n): print(json.dumps([c.call(name, body(i), wait=True).body.decode(), None]))",
    ("service", "read"): "c.serve(name, lambda request: b're:' + request.body, count=n)",
}
ZMQ_HEAD = f"""import json, sys
from ipcd_zmq import Client
body = lambda i: (b'%d ' % i).ljust({SIZE}, b'x')
c, name, n = Client(timeout={PATIENCE}), sys.argv[1], int(sys.argv[2])
def show(messages, done=lambda message: None):
    for _ in range(n):
        message = next(messages)
        print(json.dumps([message.body.decode(), message.headers.get('h')]), flush=True)
        done(message)
"""


def body(i):
    """As tests/proc/mqueue_helper.c has it."""
    return f"{i} ".ljust(SIZE, "x")


def ipcctl(*arguments, **options):
    return subprocess.run([IPCCTL, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE, **options).stdout


class Cell:
    """One pattern, from one transport to another."""

    def __init__(self, pattern, writer, reader):
        self.pattern, self.writer, self.reader = pattern, writer, reader
        self.name = f"matrix.{pattern}.{writer}-{reader}"
        self.count = CALLS if pattern == "service" else COUNT
        self.children, self.bindings = [], []

    def start(self, *command, **options):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        self.children.append(child)
        return child

    def wait(self, child):
        out, _ = child.communicate(timeout=PATIENCE)
        if child.returncode:
            raise RuntimeError(f"{os.path.basename(child.args[0])} ended with {child.returncode}")
        return out

    def mq(self, direction, mode):
        """A program at an mqueue that the gateway makes, with envelopes."""
        queue = f"/{self.name}-{mode}-{os.getpid()}"
        service = self.pattern == "service"
        self.bindings.append(f"{self.name}.{mode}")
        ipcctl("bind", "mq", self.bindings[-1], f"direction={direction}", f"mqueue={queue}", f"{self.pattern}={self.name}",
               "form=enveloped", "messages=8", "message-size=512", *([f"reply={queue}-reply", "timeout=1m"] if service else []))
        if mode == "eserve":
            return self.start(HELPER, mode, queue, f"{queue}-reply", str(CALLS), "1")
        if mode == "ecall":
            return self.start(HELPER, mode, queue, f"{queue}-reply", "0", str(CALLS), "4")
        return self.start(HELPER, mode, queue, "0", str(COUNT), str(SIZE))

    def zmq(self, role):
        return self.start(sys.executable, "-B", "-c", f"{ZMQ_HEAD}{ZMQ[self.pattern, role]}\nc.close()", self.name, str(self.count),
                          env={**os.environ, "PYTHONPATH": f"{SOURCE}/examples/python"})

    def read(self):
        """Start who receives or serves. Nothing is sent before a subscriber is there."""
        if self.reader == "mq":
            return self.mq(*{"service": ("serve", "eserve")}.get(self.pattern, ("out", "ereceive")))
        if self.reader == "zmq":
            child = self.zmq("read")
            if self.pattern == "topic" and child.stdout.readline() != "ready\n":
                raise RuntimeError("the subscriber has ended")
            return child
        if self.pattern == "service":
            return self.start(IPCCTL, "serve", "-n", str(CALLS), self.name, "--", "sh", "-c", "printf re:; cat")
        verb = ("recv",) if self.pattern == "queue" else ("sub", "--no-tap", "--slow=block")
        child = self.start(IPCCTL, *verb, "--timeout=0", "--json", "-n", str(COUNT), self.name)
        while self.pattern == "topic" and child.poll() is None and self.name not in ipcctl("ls", "--json", "--subscriptions"):
            pass
        return child

    def write(self):
        """Send or call. Returns what was answered, one item of JSON a line."""
        if self.writer == "mq":
            return self.wait(self.mq(*{"service": ("call", "ecall")}.get(self.pattern, ("in", "esend"))))
        if self.writer == "zmq":
            return self.wait(self.zmq("write"))
        if self.pattern == "service":
            return "".join(json.dumps([ipcctl("call", "--wait", f"--timeout={PATIENCE}", "--raw", self.name, body(i)), None]) + "\n"
                           for i in range(CALLS))
        verb = ("pub", "--wait") if self.pattern == "topic" else ("send",)
        return ipcctl(*verb, f"--timeout={PATIENCE}", "-H", "h=v", self.name, input="".join(f"{body(i)}\n" for i in range(COUNT)))

    def check(self):
        if self.pattern == "queue":
            ipcctl("queue", "create", self.name)
        reader = self.read()
        answered = self.write()
        received = self.wait(reader)
        # The program at the mqueues checks what it gets by itself.
        if (self.writer if self.pattern == "service" else self.reader) == "mq":
            return
        items = [json.loads(line) for line in (answered if self.pattern == "service" else received).splitlines()]
        items = [item if isinstance(item, list) else [item["data"], item["headers"][0]["value"] if item.get("headers") else None]
                 for item in items]
        if self.pattern == "service":
            wanted = [[f"re:{body(i)}", None] for i in range(CALLS)]
        else:
            wanted = [[body(i), "v"] for i in range(COUNT)]
        if items != wanted:
            differs = next((pair for pair in zip(items, wanted) if pair[0] != pair[1]), None)
            raise RuntimeError(f"{len(items)} of {len(wanted)} came; the first that differs, and what was sent: {differs}")

    def end(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.communicate()
        for binding in self.bindings:
            subprocess.run([IPCCTL, "unbind", binding], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=PATIENCE)


def main():
    failed = 0
    print("%-9s%s" % ("", "".join(f"{f'{writer} -> {reader}':<12}" for writer in TRANSPORTS for reader in TRANSPORTS)))
    for pattern in PATTERNS:
        row = []
        for writer, reader in ((writer, reader) for writer in TRANSPORTS for reader in TRANSPORTS):
            cell = Cell(pattern, writer, reader)
            try:
                cell.check()
                row.append("ok")
            except Exception:  # whatever it is, the other cells are tried as well
                print(f"{pattern}, {writer} -> {reader}:\n{traceback.format_exc()}", file=sys.stderr)
                row.append("FAILED")
                failed += 1
            finally:
                cell.end()
        print("%-9s%s" % (pattern, "".join(f"{word:<12}" for word in row)), flush=True)
    return 1 if failed else 0


sys.exit(main())
