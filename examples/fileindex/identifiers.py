#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A worker of the file index with nothing but a ZeroMQ socket: the identifiers of each file, [A-Za-z_][A-Za-z0-9_]*, and
how often each occurs.

It takes work and acknowledges it as the workers in C do (worker.c): all parts of a file together, when the queue has
confirmed the result. Whoever takes over from one that was killed gets the file from its beginning.
"""
import collections
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "python"))

from ipcd_zmq import Client, Message  # noqa: E402

NAME = "identifiers"
TYPE_PART, TYPE_RESULT = "application/octet-stream", "text/plain"
TYPE_END = "application/vnd.fileindex.end"
CREDIT = 256  # more than a file has parts

IDENTIFIER = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")


def send_result(client: Client, parts: "list[Message]") -> None:
    content = b"".join(part.body for part in parts)
    headers = parts[0].headers
    if len(content) != int(headers["size"]):
        sys.exit(f"{NAME}: {headers['path']!r}: {headers['size']} bytes announced, {len(content)} received")
    counts = collections.Counter(IDENTIFIER.findall(content))
    result = b"".join(b"%d %b\n" % (count, name) for name, count in counts.items())
    size = client.welcome["message_size_max"]
    for part, at in enumerate(range(0, max(len(result), 1), size)):
        client.send("results", result[at:at + size], content_type=TYPE_RESULT,
                    message_id=f"{NAME} {headers['file']} {part}",
                    headers={"from": NAME, "file": headers["file"], "path": headers["path"], "part": str(part),
                             "last": str(int(at + size >= len(result))), "work": str(len(parts))})


def work(client: Client, replaced: str) -> None:
    parts: "list[Message]" = []  # of the file in progress
    messages = size = redelivered = 0

    for message in client.pull(f"work.{NAME}", credit=CREDIT):
        messages, size = messages + 1, size + len(message.body)
        if message.properties.get("redelivered"):
            if redelivered == 0:
                client.publish(f"news.{NAME}", b"%s (%d) takes over work of one that died: attempt %d"
                               % (NAME.encode(), os.getpid(), message.properties["attempt"]))
            redelivered += 1
        if message.properties.get("content_type") == TYPE_END and not parts:
            client.send("results", b"", content_type=TYPE_END, message_id=f"{NAME} end",
                        headers={"from": NAME, "messages": str(messages), "bytes": str(size),
                                 "redelivered": str(redelivered), "replaced": replaced})
            client.ack(message)
            return
        if message.properties.get("content_type") != TYPE_PART or int(message.headers["part"]) != len(parts):
            sys.exit(f"{NAME}: an unexpected message: {message.properties}, {len(parts)} parts are there")
        parts.append(message)
        if len(parts) < int(message.headers["parts"]):
            continue
        send_result(client, parts)
        for part in parts:
            client.ack(part)
        parts.clear()


if __name__ == "__main__":
    with Client(name=NAME) as one:
        work(one, sys.argv[2] if sys.argv[1:2] == ["--replaces"] else "0")
