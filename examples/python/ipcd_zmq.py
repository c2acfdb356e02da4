# SPDX-License-Identifier: Apache-2.0
"""ipcd for Python, by pyzmq and the gateway ipcd-zmq: proto/zmq.md.

    with Client() as client:
        client.publish("greetings.python", b"hello", headers={"unit": "C"})
        client.send("tasks", b"sweep")                  # returns when the queue has it
        for message in client.pull("tasks", credit=10):
            client.ack(message)

One thread at a time. What is not confirmed is sent again when the gateway comes back; what was pulled, subscribed and
served before begins anew, and messages that were not acknowledged come again, to somebody.
"""
from __future__ import annotations

import base64, itertools, json, os, time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import zmq

VERSION = b"IPC1"
Headers = Dict[str, Union[str, bytes]]


class Failure(Exception):
    """What the gateway or a server answered: the name of an errno, a number, a sentence, and perhaps bytes."""

    def __init__(self, name: str, code: int, text: str, body: bytes = b"") -> None:
        super().__init__(f"{name}: {text}")
        self.name, self.code, self.text, self.body = name, code, text, body


class Message(NamedTuple):
    command: str
    id: bytes
    name: str
    properties: Dict[str, Any]
    body: bytes

    @property
    def headers(self) -> Headers:
        return {name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
                for name, value in self.properties.get("headers", {}).items()}


def pack(properties: Dict[str, Any], headers: Optional[Headers] = None) -> bytes:
    if headers:
        properties["headers"] = {name: {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
                                 for name, value in headers.items()}
    properties = {name: value for name, value in properties.items() if value is not None}
    return json.dumps(properties).encode() if properties else b""


def folder() -> str:
    """Where the endpoints are: beside the broker's socket."""
    own = os.path.join(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"), "ipcd/socket")
    return os.path.dirname(os.environ.get("IPC_ADDRESS") or (own if os.path.exists(own) else "/run/ipcd/socket"))


def endpoint(name: str) -> str:
    return f"ipc://{folder()}/zmq-{name}"


def use(socket: zmq.Socket, keys: Optional[Tuple[bytes, bytes, bytes]]) -> None:
    if keys:
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = keys


class Client:
    """Everything, with confirms, by one DEALER."""

    def __init__(self, address: Optional[str] = None, name: str = "python", timeout: float = 30.0,
                 heartbeat: float = 0, keys: Optional[Tuple[bytes, bytes, bytes]] = None) -> None:
        """timeout: of a whole exchange. keys: (gateway's public, own public, own secret) for CURVE."""
        self.timeout, self.ids, self.stored = timeout, itertools.count(1), []  # type: ignore[var-annotated]
        self.hello = pack({"name": name, "heartbeat_ms": int(heartbeat * 1000) or None})
        self.again: Dict[bytes, List[bytes]] = {}  # what is said anew after a new connection
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger, self.socket.sndtimeo = 0, int(timeout * 1000)
        use(self.socket, keys)
        self.socket.connect(address or endpoint("router"))
        self.most = 0  # bytes of a body
        self.welcome = self.ask("HELLO", properties=self.hello).properties
        self.most = self.welcome["message_size_max"]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if not self.socket.closed:
            self.timeout = min(self.timeout, 1.0)
            self.socket.sndtimeo = int(self.timeout * 1000)
            try:
                self.ask("BYE", again=False)
            except (Failure, TimeoutError):
                pass
            self.socket.close()

    # ---- the protocol ------------------------------------------------------------------------------------------

    def say(self, command: str, id: bytes = b"", name: str = "", properties: bytes = b"", body: bytes = b"") -> None:
        try:
            self.socket.send_multipart([VERSION, command.encode(), id, name.encode(), properties, body])
        except zmq.Again as error:
            raise TimeoutError(f"there is no gateway to send {command} {name} to") from error

    def hear(self, timeout: Optional[float]) -> Optional[Message]:
        if not self.socket.poll(None if timeout is None else max(0, int(timeout * 1000))):
            return None
        _, command, id, name, properties, body = (self.socket.recv_multipart() + [b""] * 4)[:6]
        message = Message(command.decode(), id, name.decode(), json.loads(properties or b"{}"), body)
        if message.command == "ERROR" and message.properties["errno"] == "ENOTCONN":
            self.say("HELLO", properties=self.hello)  # a new gateway: begin anew
            for frames in self.again.values():
                self.socket.send_multipart(frames)
            return Message("AGAIN", id, "", {}, b"")
        return message

    def ask(self, command: str, name: str = "", properties: bytes = b"", body: bytes = b"", again: bool = True,
            keep: bool = False, id: Optional[bytes] = None, timeout: Optional[float] = None) -> Message:
        """Say it until it is answered; keep: and again whenever the gateway is a new one."""
        if len(body) > self.most:  # it would cost the connection
            raise Failure("EMSGSIZE", -90, f"{len(body)} bytes are more than the {self.most} that the gateway takes")
        id = id or b"%d" % next(self.ids)
        timeout = self.timeout if timeout is None else timeout
        end = time.monotonic() + timeout
        if keep:
            self.again[id] = [VERSION, command.encode(), id, name.encode(), properties, body]
        self.say(command, id, name, properties, body)
        while True:
            message = self.hear(min(1.0, end - time.monotonic()))
            if message is None:
                if time.monotonic() >= end:
                    raise TimeoutError(f"{command} {name} was not answered in {timeout} s")
                self.say("PING")  # a new gateway says that it does not know us
            elif message.command == "AGAIN":
                if again and not keep:
                    self.say(command, id, name, properties, body)
            elif message.id != id or message.command in ("MSG", "EVENT", "REQUEST"):
                if message.command in ("MSG", "EVENT", "REQUEST", "CANCEL"):
                    self.stored.append(message)
            elif message.command == "ERROR":
                self.again.pop(id, None)
                raise failure(message)
            else:
                return message

    def next(self, command: str, timeout: Optional[float], id: Optional[bytes] = None,
             name: Optional[str] = None) -> Optional[Message]:
        def right(message: Message) -> bool:
            return message.command == command and id in (None, message.id) and name in (None, message.name)

        for message in self.stored:
            if right(message):
                self.stored.remove(message)
                return message
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            rest = 1.0 if end is None else min(1.0, end - time.monotonic())
            message = self.hear(rest)
            if message is None:
                if end is not None and time.monotonic() >= end:
                    return None
                self.say("PING")
            elif right(message):
                return message
            elif message.command in ("MSG", "EVENT", "REQUEST", "CANCEL"):
                self.stored.append(message)
            elif message.command == "ERROR" and message.properties["errno"] != "ENOENT":
                raise failure(message)  # (acknowledging what an earlier gateway delivered is no error: it comes again)

    # ---- topics, queues, services ------------------------------------------------------------------------------

    def publish(self, topic: str, body: bytes, headers: Optional[Headers] = None, **properties: Any) -> None:
        self.ask("PUB", topic, pack(properties, headers), body)

    def subscribe(self, pattern: str, timeout: Optional[float] = None, start: str = "next") -> Iterator[Message]:
        """In force when this returns. The iterator ends when nothing comes within the timeout."""
        id = b"sub-%d" % next(self.ids)
        self.ask("SUB", pattern, pack({"start": start}), keep=True, id=id)
        return iter(lambda: self.next("EVENT", timeout, id=id), None)

    def send(self, queue: str, body: bytes, headers: Optional[Headers] = None, **properties: Any) -> None:
        self.ask("SEND", queue, pack(properties, headers), body)

    def pull(self, queue: str, credit: int = 1, timeout: Optional[float] = None) -> Iterator[Message]:
        """Messages, at most `credit` of them not acknowledged; ends when none comes within the timeout."""
        self.ask("PULL", queue, pack({"credit": credit}), keep=True)
        while (message := self.next("MSG", timeout, name=queue)) is not None:
            yield message
            self.say("PULL", name=queue, properties=pack({"credit": 1}))

    def ack(self, message: Message) -> None:
        self.say("ACK", message.id, message.name)

    def nack(self, message: Message, **properties: Any) -> None:
        self.say("NACK", message.id, message.name, pack(properties))

    def call(self, service: str, body: bytes, headers: Optional[Headers] = None, **properties: Any) -> Message:
        """One answer. A call that was under way when the gateway died is made again only with retry=True."""
        return self.ask("CALL", service, pack(properties, headers), body, again=properties.get("retry", False))

    def call_stream(self, service: str, body: bytes, **properties: Any) -> Iterator[Message]:
        id = b"call-%d" % next(self.ids)
        self.say("CALL", id, service, pack({**properties, "stream": True}), body)
        while (message := self.hear(self.timeout)) is not None and message.command != "AGAIN":
            if message.command == "ERROR" and message.id == id:
                raise failure(message)
            if message.id == id and message.command == "END":
                return
            if message.id == id:
                yield message
        raise TimeoutError(f"{service} did not answer to the end")

    def serve(self, service: str, answer: Callable[[Message], Any], count: Optional[int] = None) -> None:
        """answer() returns bytes, or yields parts, or raises Failure. count: so many requests, then return."""
        self.ask("SERVE", service, pack({"credit": 8}), keep=True)
        for _ in itertools.count() if count is None else range(count):
            request = self.next("REQUEST", None, name=service)
            assert request is not None
            try:
                result = answer(request)
                if isinstance(result, bytes):
                    self.say("RESPONSE", request.id, body=result)
                else:
                    for part in result:
                        self.say("PART", request.id, body=part)
                    self.say("END", request.id)
            except Failure as error:
                self.say("FAIL", request.id, properties=pack({"code": error.code, "text": error.text}), body=error.body)
            self.say("READY", name=service, properties=pack({"credit": 1}))
        self.ask("UNSERVE", service)


def failure(message: Message) -> Failure:
    return Failure(message.properties["errno"], message.properties["code"], message.properties["text"], message.body)


class Plain:
    """A socket of one of the plain endpoints: best effort, no confirms."""

    def __init__(self, name: str, address: Optional[str] = None,
                 keys: Optional[Tuple[bytes, bytes, bytes]] = None) -> None:
        kind = {"pub": zmq.PUB, "push": zmq.PUSH, "sub": zmq.SUB, "match": zmq.SUB}[name]
        self.socket = zmq.Context.instance().socket(kind)
        use(self.socket, keys)
        self.socket.connect(address or endpoint(name))

    def send(self, name: str, body: bytes, headers: Optional[Headers] = None, **properties: Any) -> None:
        self.socket.send_multipart([name.encode(), pack(properties, headers), body])

    def subscribe(self, client: Client, *texts: str) -> None:
        """Prefixes ("sub") or patterns ("match"); in force when this returns."""
        for text in texts:
            self.socket.subscribe(text.encode() + (b"\n" if any(c in text for c in "*>") else b""))
        end, word = time.monotonic() + client.timeout, b""
        while True:
            if not word:
                word = b"\n" + base64.b64encode(os.urandom(12))
                self.socket.subscribe(word)
            try:
                client.ask("SYNC", id=word, timeout=0.1)
                return
            except TimeoutError:
                if time.monotonic() >= end:
                    raise
            except Failure as failure:  # EAGAIN: it has to connect again
                if failure.name != "EAGAIN":
                    raise
                word = b""
            self.socket.poll(0)  # a socket that connects again says what it subscribed to only when it is used

    def receive(self) -> Tuple[str, Dict[str, Any], bytes]:
        topic, properties, body = self.socket.recv_multipart()[-3:]
        return topic.decode(), json.loads(properties), body

    def close(self) -> None:
        self.socket.close(linger=1000)
