# SPDX-License-Identifier: Apache-2.0
"""ipcd-zmq with real clients of pyzmq, each case with a broker and a gateway of its own. Run by test_gateway_zmq.sh."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

import zmq

sys.path.insert(0, os.path.join(os.environ["IPC_SOURCE_DIR"], "examples/python"))
from ipcd_zmq import Client, Failure, Plain, pack  # noqa: E402

BUILD = os.environ["IPC_BUILD_DIR"]
PATIENCE = 60


def program(variable, path):
    return os.environ.get(variable) or os.path.join(BUILD, path)


IPCCTL = program("IPCCTL_BIN", "tools/ipcctl")


def free_addresses(count):
    """All held until all are chosen: the kernel may give a port again that was let go."""
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        return [f"tcp://127.0.0.1:{each.getsockname()[1]}" for each in free]


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="ipc-zmq-")
        os.environ["IPC_ADDRESS"] = self.address = os.path.join(self.folder, "socket")
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(os.path.join(self.folder, "notify"))
        notify.settimeout(PATIENCE)
        self.broker = subprocess.Popen(
            [program("IPCD_BIN", "broker/ipcd"), "--address", self.address, "--config", "/dev/null", "--log-level", "error"],
            env={**os.environ, "NOTIFY_SOCKET": os.path.join(self.folder, "notify")})
        while b"READY=1" not in notify.recv(4096):
            pass
        notify.close()
        self.open = []
        self.children = []
        self.gateway = None
        self.start()
        self.addCleanup(self.end)

    def start(self, *arguments):
        if getattr(self, "log", None):
            self.log.close()
        self.log = open(os.path.join(self.folder, "log"), "a+")
        self.gateway = subprocess.Popen([program("IPCD_ZMQ_BIN", "broker/ipcd-zmq"), "--log-level=info", *arguments],
                                        stderr=self.log)

    def stop(self, by=signal.SIGTERM):
        self.gateway.send_signal(by)
        status = self.gateway.wait(PATIENCE)
        self.log.close()
        self.gateway = None
        return status

    def restart(self, *arguments):
        Client(timeout=PATIENCE).close()  # by then it knows what to do about a signal
        self.assertEqual(self.stop(), 0)
        self.start(*arguments)

    def logged(self):
        with open(os.path.join(self.folder, "log")) as file:
            return file.read()

    def end(self):
        for thing in self.open:
            thing.close()
        for child in self.children:
            child.kill()
            child.wait()
        status = self.stop() if self.gateway else 0
        self.broker.terminate()
        self.assertEqual(self.broker.wait(PATIENCE), 0)
        log = self.logged()
        left = sorted(os.listdir(self.folder))
        shutil.rmtree(self.folder)
        self.assertEqual(status, 0, log)
        self.assertNotIn("Sanitizer", log)
        self.assertEqual(left, ["log", "notify"], log)

    def client(self, **options):
        try:
            client = Client(timeout=PATIENCE, **options)
        except TimeoutError as error:
            raise AssertionError(self.logged()) from error
        self.open.append(client)
        return client

    def plain(self, name, address=None, keys=None):
        plain = Plain(name, address, keys)
        plain.socket.rcvtimeo = PATIENCE * 1000
        self.open.append(plain)
        return plain

    def dealer(self, address=None, **options):
        dealer = zmq.Context.instance().socket(zmq.DEALER)
        dealer.linger = 0
        dealer.rcvtimeo = PATIENCE * 1000
        for name, value in options.items():
            setattr(dealer, name, value)
        dealer.connect(address or f"ipc://{self.folder}/zmq-router")
        self.open.append(dealer)
        return dealer

    def say(self, dealer, *frames):
        dealer.send_multipart([f if isinstance(f, bytes) else f.encode() for f in frames])

    def hear(self, dealer):
        _, command, id, name, properties, body = (dealer.recv_multipart() + [b""] * 4)[:6]
        return command.decode(), id, name.decode(), json.loads(properties or b"{}"), body

    def refuses(self, dealer, errno, *frames):
        self.say(dealer, *frames)
        command, _, _, properties, _ = self.hear(dealer)
        self.assertEqual((command, properties["errno"]), ("ERROR", errno))
        self.assertTrue(properties["text"])

    def queue(self, name, *options):
        subprocess.run([IPCCTL, "queue", "create", name, *options], check=True, timeout=PATIENCE)

    def child(self, code, *arguments):
        child = subprocess.Popen([sys.executable, "-c", "import sys\nfrom ipcd_zmq import *\n" + code, *arguments],
                                 stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "PYTHONPATH": sys.path[0]})
        self.children.append(child)
        self.open.append(child.stdout)
        return child

    def thread(self, work):
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


class Commands(Case):
    def test_topics(self):
        client = self.client(name="topics")
        self.assertEqual(client.welcome["version"], 1)
        self.assertEqual(client.welcome["identity"], f"uid:{os.getuid()}")
        events = client.subscribe("plant.*.temperature")
        for i in range(100):
            client.publish("plant.7.pressure", b"no")
            client.publish("plant.7.temperature", b"%d" % i, headers={"unit": "C", "raw": b"\0\xff"},
                           content_type="text/plain")
        for i in range(100):
            event = next(events)
            self.assertEqual((event.name, event.body), ("plant.7.temperature", b"%d" % i))
            self.assertEqual(event.properties["seq"], i)
            self.assertEqual(event.headers, {"unit": "C", "raw": b"\0\xff"})
            self.assertEqual(event.properties["content_type"], "text/plain")
        client.ask("UNSUB", id=event.id)
        client.publish("plant.7.temperature", b"after")
        client.ask("PING")
        self.assertEqual(client.stored, [])

    def test_queues(self):
        client = self.client()
        self.queue("letters")
        self.queue("tasks", "dead-letter=letters")
        for i in range(6):
            client.send("tasks", b"%d" % i, headers={"n": str(i)}, priority=i % 2, content_type="a/b", reply_to="letters",
                        message_id=f"id{i}", key="k")
        tasks = client.pull("tasks", credit=1)
        got = [next(tasks)]
        self.assertEqual(got[0].properties["priority"], 1)
        self.assertEqual({k: got[0].properties[k] for k in ("content_type", "reply_to", "message_id", "key", "attempt")},
                         {"content_type": "a/b", "reply_to": "letters", "message_id": "id1", "key": "k", "attempt": 1})
        self.assertEqual(got[0].headers, {"n": "1"})
        client.nack(got[0])
        again = next(tasks)
        self.assertEqual((again.body, again.properties["attempt"], again.properties["redelivered"]), (b"1", 2, "refused"))
        client.nack(again, dead=True, reason="bad task")
        bodies = []
        while len(bodies) < 5:
            message = next(tasks)
            client.ack(message)
            bodies.append(message.body)
        self.assertEqual(bodies, [b"3", b"5", b"0", b"2", b"4"])
        letter = next(client.pull("letters"))
        self.assertEqual(letter.body, b"1")
        client.ack(letter)
        client.ask("STOP", "tasks")
        with self.assertRaisesRegex(Failure, "ENOENT"):
            client.send("nothing", b"")
        with self.assertRaisesRegex(Failure, "ENOENT"):
            next(client.pull("nothing"))

    def test_services(self):
        def answer(request):
            if request.body == b"stream":
                return (b"%d" % i for i in range(500))
            if request.body == b"fail":
                raise Failure("", 7, "it cannot be done", b"why")
            return request.body[::-1] + request.headers.get("tail", "").encode()

        def serve():
            with Client(name="server", timeout=PATIENCE) as server:
                server.serve("words.turn", answer, count=6)

        server = self.thread(serve)
        client = self.client()
        with self.assertRaisesRegex(Failure, "ENOENT"):
            client.call("words.none", b"")
        self.assertEqual(client.call("words.turn", b"abc", wait=True, timeout_ms=PATIENCE * 1000).body, b"cba")
        self.assertEqual(client.call("words.turn", b"abc", headers={"tail": "!"}).body, b"cba!")
        parts = [part.body for part in client.call_stream("words.turn", b"stream")]
        self.assertEqual(parts, [b"%d" % i for i in range(500)])
        with self.assertRaises(Failure) as caught:
            client.call("words.turn", b"fail")
        failure = caught.exception
        self.assertEqual((failure.name, failure.code, failure.body), ("EREMOTEIO", 7, b"why"))
        self.assertEqual(client.call("words.turn", b"").body, b"")
        # All parts at once, when the call does not ask for a stream.
        client.say("CALL", b"whole", "words.turn", body=b"stream")
        got = [client.hear(PATIENCE) for _ in range(501)]
        self.assertEqual([m.command for m in got], ["PART"] * 500 + ["END"])
        self.assertEqual([m.body for m in got[:500]], [b"%d" % i for i in range(500)])
        server.join(PATIENCE)
        self.assertFalse(server.is_alive())

    def test_cancel_and_server_that_leaves(self):
        server, client = self.client(), self.client()
        server.ask("SERVE", "slow", pack({"credit": 2}))
        client.say("CALL", b"1", "slow", body=b"a")
        request = server.next("REQUEST", PATIENCE)
        client.say("CANCEL", b"1")
        self.assertEqual(client.hear(PATIENCE).properties["errno"], "ECANCELED")
        client.say("CALL", b"2", "slow", body=b"b")
        self.assertEqual(server.next("REQUEST", PATIENCE).body, b"b")
        self.assertEqual(server.next("CANCEL", PATIENCE).id, request.id)
        server.close()
        self.assertEqual(client.hear(PATIENCE).properties["errno"], "EPIPE")
        client.say("CALL", b"3", "never", properties=pack({"wait": True, "timeout_ms": 50}))
        self.assertEqual(client.hear(PATIENCE).properties["errno"], "ETIMEDOUT")

    def test_credit(self):
        client = self.client()
        self.queue("q")
        for i in range(20):
            client.send("q", b"%d" % i)
        client.ask("PULL", "q", pack({"credit": 3, "window": 20}))
        client.ask("PULL", "q", pack({"credit": 2}))
        bodies = [client.next("MSG", PATIENCE).body for _ in range(5)]
        self.assertEqual(bodies, [b"%d" % i for i in range(5)])
        for _ in range(3):
            client.ask("PING")
        self.assertEqual(client.stored, [])
        # Another peer gets what is beyond the window, and nothing else.
        client.ask("STOP", "q")
        other = self.client()
        got = other.pull("q", credit=30)
        self.assertEqual([next(got).body for _ in range(20)], [b"%d" % i for i in range(20)])
        other.say("ACK", b"1-20", "q")
        other.ask("PING")


    def test_who_wants_no_more_keeps_nothing(self):
        """What waits in the gateway for a peer that has acknowledged everything goes to others, until it pulls again."""
        idle, other = self.client(), self.client()
        self.queue("q")
        for i in range(10):
            idle.send("q", b"%d" % i)
        idle.ask("PULL", "q", pack({"credit": 2, "window": 8}))
        for _ in range(2):
            idle.ack(idle.next("MSG", PATIENCE))
        pulled = other.pull("q", credit=8, timeout=PATIENCE)
        got = [next(pulled) for _ in range(8)]
        self.assertEqual(sorted(message.body for message in got), [b"%d" % i for i in range(2, 10)])
        for message in got:
            other.ack(message)
        other.ask("STOP", "q")
        idle.ask("PULL", "q")
        other.send("q", b"again")
        self.assertEqual(idle.next("MSG", PATIENCE).body, b"again")


class Plainly(Case):
    def test_prefixes_and_patterns(self):
        client = self.client()
        everything, prefix, pattern, pub = self.plain("sub"), self.plain("sub"), self.plain("match"), self.plain("pub")
        prefix.subscribe(client, "plant.7", "plant.70.x")
        everything.subscribe(client, "")
        pattern.subscribe(client, "plant.*")
        for topic in ("plant.7", "plant.8", "plant.7.a", "plant.70.x"):
            client.publish(topic, topic.encode(), headers={"a": "b"})
        for plain, topics in ((prefix, ("plant.7", "plant.7.a", "plant.70.x")), (pattern, ("plant.7", "plant.8")),
                              (everything, ("plant.7", "plant.8", "plant.7.a", "plant.70.x"))):
            for number, topic in enumerate(topics):
                got, properties, body = plain.receive()
                self.assertEqual((got, body, properties["headers"]), (topic, topic.encode(), {"a": "b"}))
                self.assertEqual(properties["seq"], number if plain is pattern else 0)
        # A PUB of ZeroMQ may be slow to join: it says it until it was heard.
        client.subscribe("from.outside")
        while (event := client.next("EVENT", 0.05)) is None:
            pub.send("from.outside", b"hello", headers={"x": "y"})
        self.assertEqual((event.body, event.headers), (b"hello", {"x": "y"}))

    def test_broader_takes_over(self):
        """A subscriber of a narrow prefix misses nothing, and gets nothing twice, when a broader one comes and goes."""
        client, narrow = self.client(), self.plain("sub")
        narrow.subscribe(client, "a.b.c")
        count = 3000

        def publish():
            with Client(name="publisher", timeout=PATIENCE) as publisher:
                for i in range(count):
                    publisher.publish("a.b.c", b"%d" % i)

        publisher = self.thread(publish)
        for i in range(count):
            _, properties, body = narrow.receive()
            self.assertEqual((body, properties["seq"]), (b"%d" % i, i))
            if i % 500 == 100:
                broad = self.plain("sub")
                broad.subscribe(client, "a." if i % 1000 == 100 else "")
            if i % 500 == 400:
                broad.close()
        publisher.join(PATIENCE)

    def test_broader_takes_over_from_a_stream(self):
        """Whatever a process is about to publish when that happens: what is missed shows in the numbers."""
        client = self.client()
        for i in range(20):
            topic = f"r{i}.x"
            narrow = self.plain("sub")
            narrow.subscribe(client, topic)
            numbers = subprocess.Popen(["seq", "1000000000"], stdout=subprocess.PIPE)
            stream = subprocess.Popen([IPCCTL, "pub", "--wait", topic], stdin=numbers.stdout)
            first, broad = None, None
            for n in range(3000):
                _, properties, body = narrow.receive()
                number = int(body), properties["seq"]
                first = first or number
                self.assertEqual(number[0] - first[0], number[1] - first[1])
                if n in (500, 700):
                    broad = self.plain("sub")
                    broad.subscribe(client, f"r{i}." if n == 500 else f"r{i}")
            for child in (stream, numbers):
                child.kill()
                child.wait()
            numbers.stdout.close()

    def test_gap_is_shown(self):
        self.restart("--high-water=10")
        client, slow, quick = self.client(), self.plain("sub"), self.plain("sub")
        slow.socket.rcvhwm = 10
        slow.subscribe(client, "t")
        quick.subscribe(client, "t")
        body, missing, seen, count = b"x" * 50000, 0, -1, 500
        for i in range(count):
            client.publish("t", body)
            self.assertEqual(quick.receive()[1]["seq"], i)
        client.publish("t", b"last")
        while True:
            if not slow.socket.poll(100):  # what is last may be among what it missed
                client.publish("t", b"last")
                count += 1
                quick.receive()
                continue
            _, properties, body = slow.receive()
            missing += properties["seq"] - seen - 1
            seen = properties["seq"]
            if body == b"last":
                break
        self.assertGreater(missing, 0)
        self.assertIn("a subscriber does not read", self.logged())

    def test_push(self):
        client, push = self.client(), self.plain("push")
        self.queue("q", "bytes-max=1M", "message-size-max=64K")
        push.send("nowhere", b"lost")
        count, body = 400, b"x" * 30000

        def send():
            for i in range(count):
                push.send("q", b"%d" % i + body, headers={"n": str(i)}, priority=0)

        pusher = self.thread(send)
        pulled = client.pull("q", credit=4)
        for i in range(count):
            message = next(pulled)
            self.assertEqual((message.body, message.headers), (b"%d" % i + body, {"n": str(i)}))
            client.ack(message)
        pusher.join(PATIENCE)
        self.assertIn("a message was dropped: there is no queue nowhere", self.logged())

    def test_full_queue_holds_up_no_other(self):
        client, push = self.client(), self.plain("push")
        self.restart("--backlog-max=200000")
        self.queue("full", "bytes-max=1M")
        self.queue("other")
        self.thread(lambda: [push.send("full", b"x" * 30000) for _ in range(200)] and push.send("other", b"through"))
        self.assertEqual(next(client.pull("other")).body, b"through")
        self.assertIn("has no room", self.logged())
        with self.assertRaisesRegex(Failure, "EAGAIN"):
            client.send("full", b"x" * 30000)


class Deaths(Case):
    PULLER = """
client = Client()
pulled = client.pull("q", credit=5)
for _ in range(5): print(next(pulled).body.decode(), flush=True)
sys.stdin.read()
client.next("NEVER", None)
"""

    def taken_by_others(self, why):
        client = self.client(name="other")
        pulled = client.pull("q", credit=10, timeout=PATIENCE)
        marks = {}
        for _ in range(10):
            message = next(pulled, None)
            self.assertIsNotNone(message, self.logged())
            marks[message.body] = message.properties.get("redelivered")
            client.ack(message)
        self.assertEqual(marks, {b"%d" % i: why if i < 5 else None for i in range(10)})

    def fill(self):
        self.queue("q")
        client = self.client()
        for i in range(10):
            client.send("q", b"%d" % i)

    def test_peer_killed(self):
        self.fill()
        child = self.child(self.PULLER)
        self.assertEqual([child.stdout.readline() for _ in range(5)], [f"{i}\n" for i in range(5)])
        child.kill()
        self.taken_by_others("closed")

    def test_last_words(self):
        """What a peer said is read when its end is noticed already, and is no sign of life."""
        self.queue("q")
        self.client().send("q", b"again")
        for attempt in range(1, 21):
            context = zmq.Context()
            dealer = context.socket(zmq.DEALER)
            dealer.rcvtimeo = PATIENCE * 1000
            dealer.connect(f"ipc://{self.folder}/zmq-router")
            self.say(dealer, "IPC1", "HELLO")
            self.say(dealer, "IPC1", "PULL", "", "q", '{"credit":1}')
            self.assertEqual([self.hear(dealer)[0] for _ in range(2)], ["WELCOME", "OK"])
            try:
                self.assertEqual(self.hear(dealer)[3].get("attempt"), attempt)
            except zmq.Again:
                self.fail(self.logged())
            self.gateway.send_signal(signal.SIGSTOP)
            self.say(dealer, "IPC1", "PING")
            dealer.close(linger=PATIENCE * 1000)
            context.term()
            self.gateway.send_signal(signal.SIGCONT)

    def test_peer_disconnects(self):
        self.fill()
        dealer = self.dealer()
        self.say(dealer, "IPC1", "HELLO")
        self.say(dealer, "IPC1", "PULL", "", "q", '{"credit":5}')
        self.assertEqual(self.hear(dealer)[0], "WELCOME")
        self.assertEqual(self.hear(dealer)[0], "OK")
        for i in range(5):
            self.assertEqual(self.hear(dealer)[4], b"%d" % i)
        dealer.close()
        self.taken_by_others("closed")

    def test_heartbeat(self):
        self.fill()
        dealer = self.dealer()
        self.say(dealer, "IPC1", "HELLO", "", "", '{"heartbeat_ms":100}')
        self.say(dealer, "IPC1", "PULL", "", "q", '{"credit":5}')
        self.assertEqual([self.hear(dealer)[0] for _ in range(7)], ["WELCOME", "OK"] + ["MSG"] * 5)
        self.taken_by_others("closed")
        self.refuses(dealer, "ENOTCONN", "IPC1", "ACK", "1", "q")

    def test_gateway_killed(self):
        """Ten times. What was confirmed arrives; what was not is sent again, and with ids comes once."""
        self.queue("q", "dedup-window=10000")
        count, done = 1000, []

        def send():
            with Client(name="sender", timeout=PATIENCE) as client:
                for i in range(count):
                    client.send("q", b"%d" % i, message_id=str(i))
                    done.append(i)

        client = self.client(name="worker")
        sender = self.thread(send)
        pulled, seen, kills = client.pull("q", credit=5), set(), 0
        while len(seen) < count:
            message = next(pulled)
            if int(message.body) in seen:
                self.assertGreater(message.properties["attempt"], 1)
            seen.add(int(message.body))
            client.ack(message)
            if len(seen) >= 100 * (kills + 1) and kills < 9:
                kills += 1
                self.assertEqual(self.stop(signal.SIGKILL), -signal.SIGKILL)
                self.start()
        sender.join(PATIENCE)
        self.assertEqual(len(done), count)
        self.assertEqual(kills, 9)

    def test_gateway_killed_under_subscribers_and_servers(self):
        client = self.client()
        events = client.subscribe("t.>")
        self.child("with Client() as client: client.serve('echo', lambda request: request.body)")
        self.assertEqual(client.call("echo", b"1", wait=True, retry=True).body, b"1")
        for _ in range(3):
            self.stop(signal.SIGKILL)
            self.start()
            self.assertEqual(client.call("echo", b"2", wait=True, retry=True, timeout_ms=PATIENCE * 1000).body, b"2")
            client.publish("t.x", b"hello")
            self.assertEqual(next(events).body, b"hello")


class Strangers(Case):
    def test_malformed(self):
        dealer, witness = self.dealer(), self.client()
        self.refuses(dealer, "ENOTCONN", "IPC1", "PING")
        self.refuses(dealer, "ENOTCONN", "IPC1", "SEND", "1", "q", "", "x")
        self.refuses(dealer, "EPROTONOSUPPORT", "IPC2", "HELLO", "1")
        self.refuses(dealer, "EPROTONOSUPPORT", "", "")
        self.refuses(dealer, "EPROTO", "IPC1")
        self.refuses(dealer, "EPROTO", *["IPC1"] + ["x"] * 20)
        self.refuses(dealer, "EOPNOTSUPP", "IPC1", "WELCOME")
        self.refuses(dealer, "EINVAL", "IPC1", "HELLO", "1", "", "{")
        self.refuses(dealer, "EINVAL", "IPC1", "HELLO", "1", "", '{"nome":"x"}')
        self.say(dealer, "IPC1", "HELLO", "1", "", '{"name":"stranger\\u001b[2J"}')
        self.assertEqual(self.hear(dealer)[0], "WELCOME")
        self.refuses(dealer, "EINVAL", "IPC1", "PUB", "1", "a..b", "", "x")
        self.refuses(dealer, "EINVAL", "IPC1", "PUB", "1", "a", "[]", "x")
        self.refuses(dealer, "E2BIG", "IPC1", "PUB", "1", "a", '{"headers":[[[[[]]]]]}', "x")
        self.refuses(dealer, "EINVAL", "IPC1", "SUB", "1", "a.>.b")
        self.refuses(dealer, "EINVAL", "IPC1", "SUB", "1", "a", '{"start":"middle"}')
        self.refuses(dealer, "EINVAL", "IPC1", "SYNC", "1")
        # In the wrong order.
        self.refuses(dealer, "ENOENT", "IPC1", "ACK", "1", "q")
        self.refuses(dealer, "EINVAL", "IPC1", "ACK", "x", "q")
        self.refuses(dealer, "ENOENT", "IPC1", "NACK", "1-5", "q")
        self.refuses(dealer, "ENOENT", "IPC1", "READY", "1", "service")
        self.refuses(dealer, "ENOENT", "IPC1", "RESPONSE", "1", "", "", "x")
        self.refuses(dealer, "ENOENT", "IPC1", "END", "999999")
        self.say(dealer, "IPC1", "SUB", "1", "a")
        self.assertEqual(self.hear(dealer)[0], "OK")
        self.refuses(dealer, "EEXIST", "IPC1", "SUB", "1", "a")
        for name in ("pub", "push"):
            plain = self.plain(name)
            plain.socket.send_multipart([b"one frame"])
            plain.socket.send_multipart([b"a", b"{", b"x"])
            plain.socket.send_multipart([b"a", b"", b"", b""])
        for text in (b"", b"\x01", b"\x07what", b"\x01a..b"):
            xsub = zmq.Context.instance().socket(zmq.XSUB)
            xsub.linger = 0
            xsub.connect(f"ipc://{self.folder}/zmq-match")
            xsub.send(text)
            self.open.append(xsub)
        self.queue("q")
        witness.send("q", b"fine")
        self.assertEqual(next(witness.pull("q")).body, b"fine")

    def test_request_of_another(self):
        server, thief, client = self.client(), self.client(), self.client()
        server.ask("SERVE", "s")
        client.say("CALL", b"1", "s")
        request = server.next("REQUEST", PATIENCE)
        with self.assertRaisesRegex(Failure, "ENOENT"):
            thief.ask("RESPONSE", id=request.id, body=b"forged")
        server.say("RESPONSE", request.id, body=b"true")
        self.assertEqual(client.hear(PATIENCE).body, b"true")

    def test_oversize(self):
        client = self.client()
        self.assertEqual(client.welcome["message_size_max"], 65536)
        client.publish("t", b"x" * 65536)
        dealer = self.dealer()
        self.say(dealer, "IPC1", "HELLO")
        self.assertEqual(self.hear(dealer)[0], "WELCOME")
        self.say(dealer, "IPC1", "PUB", "1", "t", "", b"x" * 65537)  # the connection ends, and a new one begins
        while True:
            self.say(dealer, "IPC1", "PING", "2")
            if dealer.poll(100) and self.hear(dealer)[3].get("errno") == "ENOTCONN":
                break
        self.queue("small", "message-size-max=1K")
        with self.assertRaisesRegex(Failure, "EMSGSIZE"):
            client.send("small", b"x" * 2000)

    def test_not_beyond_loopback_before_keys(self):
        """Keys that hold from the next start protect no address before that."""
        config, keys = os.path.join(self.folder, "config"), os.path.join(self.folder, "keys")
        port = int(free_addresses(1)[0].rsplit(":", 1)[1])
        subprocess.run([program("IPCD_ZMQ_BIN", "broker/ipcd-zmq"), "--make-keys=" + keys], check=True, stdout=subprocess.DEVNULL,
                       timeout=PATIENCE)
        self.addCleanup(lambda: [os.unlink(path) for path in (config, keys)])
        with open(config, "w") as file:
            file.write("[gateway]\n")
        self.restart("--config=" + config)
        Client(timeout=PATIENCE).close()
        with open(config, "w") as file:
            file.write(f"[gateway]\nkeys = {keys}\n[bind far]\nendpoint = router\naddress = tcp://0.0.0.0:{port}\n")
        self.gateway.send_signal(signal.SIGHUP)
        while "hold from the next start only: keys" not in self.logged():
            self.client().close()
        self.assertIn("it holds from the next start only: tcp://0.0.0.0:", self.logged())
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()

    def test_not_beyond_loopback_without_keys(self):
        Client(timeout=PATIENCE).close()
        self.assertEqual(self.stop(), 0)
        for address in ("tcp://0.0.0.0:*", "tcp://*:*"):
            self.start(f"--router={address}")
            self.assertEqual(self.gateway.wait(PATIENCE), 1)
            self.log.close()
            self.gateway = None
        self.assertIn("can be reached from other machines, and without keys", self.logged())

    def test_curve(self):
        keys = os.path.join(self.folder, "keys")
        Client(timeout=PATIENCE).close()
        public = subprocess.run([program("IPCD_ZMQ_BIN", "broker/ipcd-zmq"), "--make-keys=" + keys], check=True,
                                stdout=subprocess.PIPE, timeout=PATIENCE).stdout.strip()
        self.assertEqual(os.stat(keys).st_mode & 0o777, 0o600)
        mine, secret = zmq.curve_keypair()
        with open(keys, "a") as file:
            file.write(f"client alice {mine.decode()}\n")
        address, = free_addresses(1)
        os.chmod(keys, 0o644)
        self.assertEqual(self.stop(), 0)
        self.start(f"--router={address}", f"--keys={keys}")
        self.assertEqual(self.gateway.wait(PATIENCE), 1)
        self.assertIn("mode 0600", self.logged())
        os.chmod(keys, 0o600)
        self.start(f"--router={address}", f"--keys={keys}")
        client = self.client(address=address, keys=(public, mine, secret))
        self.assertEqual(client.welcome["identity"], "key:alice")
        other, other_secret = zmq.curve_keypair()
        for options in ({}, {"curve_serverkey": public, "curve_publickey": other, "curve_secretkey": other_secret}):
            dealer = self.dealer(address, **options)
            monitor = dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL |
                                                zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED)
            self.say(dealer, "IPC1", "HELLO")
            self.assertTrue(monitor.poll(PATIENCE * 1000))
            self.assertFalse(dealer.poll(0))
            dealer.disable_monitor()
            monitor.close()
        self.assertIn("its key is not in the key file", self.logged())
        client.publish("still", b"here")
        os.unlink(keys)

    def test_slow_peer_slows_no_other(self):
        self.restart("--high-water=10", "--backlog-max=300000")
        self.queue("q", "bytes-max=64M")
        slow, quick = self.dealer(rcvhwm=10), self.client()
        self.say(slow, "IPC1", "HELLO", "", "", '{"name":"slow"}')
        self.say(slow, "IPC1", "SUB", "s", "t")
        self.say(slow, "IPC1", "PULL", "p", "q", '{"credit":200}')
        self.assertEqual([self.hear(slow)[0] for _ in range(3)], ["WELCOME", "OK", "OK"])
        for i in range(400):
            quick.send("q", b"x" * 50000)
            quick.publish("t", b"x" * 50000)
        pulled = quick.pull("q", credit=10)
        for _ in range(200):
            quick.ack(next(pulled))
        # It asks, and does not read: its answers are kept, up to a limit, then it is let go, and its messages with it.
        while "does not read what it is answered" not in self.logged():
            for _ in range(1000):
                try:
                    slow.send_multipart([b"IPC1", b"PING", b"x" * 255], zmq.DONTWAIT)
                except zmq.Again:
                    pass
            quick.ask("PING")
        for _ in range(200):
            quick.ack(next(pulled))

    def test_storm(self):
        self.restart("--connections-max=100")
        path = os.path.join(self.folder, "zmq-router")
        self.client().close()
        for _ in range(3):
            sockets = []
            for i in range(150):
                stranger = socket.socket(socket.AF_UNIX)
                stranger.settimeout(PATIENCE)
                try:
                    stranger.connect(path)
                    if i % 3:
                        stranger.send(b"GET / HTTP/1.1\r\n\r\n" if i % 2 else b"\xff" + b"\0" * 8 + b"\x7f\3")
                except OSError:
                    pass
                sockets.append(stranger)
            for stranger in sockets:
                stranger.close()
        self.client().publish("t", b"after the storm")
        # As many as are allowed, and one more, which waits its turn.
        clients = [self.client() for _ in range(99)]
        late = self.dealer()
        self.say(late, "IPC1", "HELLO")
        while "as many" not in self.logged():
            clients[0].ask("PING")
        for client in clients[50:]:
            client.close()
        self.client().publish("t", b"there is a place again")


class Rules(Case):
    """Alice and bob by keys over TCP; and others by ipc://."""
    RULES = """
[rule alice]
who = key:alice
allow = publish subscribe send receive call serve
names = alice.> shared

[rule bob hears of it]
who = key:bob
deny = subscribe
names = alice.secret

[rule bob]
who = key:bob
allow = subscribe
names = alice.>
"""

    def rules(self, text=RULES, *arguments):
        keys, config = os.path.join(self.folder, "keys"), os.path.join(self.folder, "config")
        Client(timeout=PATIENCE).close()
        self.public = subprocess.run([program("IPCD_ZMQ_BIN", "broker/ipcd-zmq"), "--make-keys=" + keys], check=True,
                                     stdout=subprocess.PIPE, timeout=PATIENCE).stdout.strip()
        self.pairs = {name: zmq.curve_keypair() for name in ("alice", "bob", "eve")}
        with open(keys, "a") as file:
            file.writelines(f"client {name} {pair[0].decode()}\n" for name, pair in self.pairs.items())
        with open(config, "w") as file:
            file.write(text)
        self.addCleanup(lambda: [os.unlink(path) for path in (keys, config) if os.path.exists(path)])
        self.addresses = dict(zip(("router", "pub", "push", "sub", "match"), free_addresses(5)))
        self.assertEqual(self.stop(), 0)
        self.start(f"--keys={keys}", f"--config={config}", *(f"--{n}={a}" for n, a in self.addresses.items()), *arguments)

    def end(self):
        for name in ("keys", "config"):
            if os.path.exists(os.path.join(self.folder, name)):
                os.unlink(os.path.join(self.folder, name))
        super().end()

    def keys(self, name):
        return (self.public, *self.pairs[name])

    def who(self, name):
        return self.client(name=name, address=self.addresses["router"], keys=self.keys(name))

    def outlet(self, name, who):
        return self.plain(name, self.addresses[name], self.keys(who))

    def counts(self, binding):
        told = json.loads(subprocess.run([IPCCTL, "gateways", "zmq", "--json"], check=True, timeout=PATIENCE,
                                         stdout=subprocess.PIPE).stdout)
        return next(b for b in told["gateways"][0]["bindings"] if b["binding"] == binding)

    def denied(self, work, *parts):
        with self.assertRaises(Failure) as caught:
            work()
        self.assertEqual(caught.exception.name, "EACCES")
        for part in parts:
            self.assertIn(part, str(caught.exception))

    def test_router(self):
        self.rules()
        root, alice, bob, eve = self.client(), self.who("alice"), self.who("bob"), self.who("eve")
        self.assertEqual(bob.welcome["identity"], "key:bob")
        for queue in ("alice.q", "q"):
            self.queue(queue)
        # Who is the gateway's user may do everything, alice what her rule says, bob only hear.
        for client, name in ((root, "q"), (alice, "alice.q")):
            client.send(name, b"x")
            message = next(client.pull(name))
            client.ack(message)
            client.publish(name, b"x")
            serving = self.client() if client is root else self.who("alice")
            serving.ask("SERVE", name)
            client.say("CALL", b"c", name)
            request = serving.next("REQUEST", PATIENCE)
            serving.say("RESPONSE", request.id, body=b"answer")
            while (answer := client.hear(PATIENCE)).command != "REPLY":
                pass
            self.assertEqual(answer.body, b"answer")
        none = "no rule of the policy allows it ([rule NAME] in ipcd-zmq(8))"
        phrases = {"PUB": "publish to topic", "SEND": "send to queue", "PULL": "receive from queue", "SUB": "subscribe to topic",
                   "CALL": "call service", "SERVE": "serve service"}
        for command, phrase in phrases.items():
            self.denied(lambda: alice.ask(command, "q"), f"key:alice may not {phrase} q", none)
            self.denied(lambda: eve.ask(command, "alice.q"), f"key:eve may not {phrase} alice.q", none)
            if command != "SUB":
                self.denied(lambda: bob.ask(command, "alice.q"), f"key:bob may not {phrase} alice.q", none)
        self.denied(lambda: bob.ask("SUB", "alice.secret"), "rule 'bob hears of it'", "config:7) denies it")
        self.denied(lambda: bob.ask("SUB", "others.*"), "to any topic that others.* stands for")
        # Of a pattern he gets what he may see, and no gap where he may not.
        heard = bob.subscribe("alice.*")
        wide = bob.subscribe(">")
        for topic in ("alice.secret", "alice.a", "alice.b"):
            alice.publish(topic, topic.encode())
        root.publish("other", b"other")
        alice.publish("alice.c", b"alice.c")
        for events in (heard, wide):
            self.assertEqual([(event.body, event.properties["seq"]) for event in (next(events) for _ in range(3))],
                             [(b"alice.a", 0), (b"alice.b", 1), (b"alice.c", 2)])
        told = self.counts("zmq-router")
        self.assertEqual(told["denied"], 19)
        self.assertEqual({p["peer"]: p["denied"] for p in told["peers"] if p["denied"]}, {"alice": 6, "bob": 7, "eve": 6})
        self.assertIn("key:alice may not publish to topic q", self.logged())
        # And ipcctl explains it, for who may ask.
        for who, name, status, text in (("key:bob", "alice.a", 0, "rule 'bob' ("), ("key:bob", "alice.secret", 1, "denies it"),
                                        ("key:nobody", "alice.a", 1, "no rule")):
            done = subprocess.run([IPCCTL, "policy", "test", who, "subscribe", name], stdout=subprocess.PIPE, text=True,
                                  timeout=PATIENCE)
            self.assertEqual(done.returncode, status, done.stdout)
            self.assertIn(text, done.stdout)

    def test_outlets(self):
        self.rules()
        root = self.client()
        for queue in ("alice.q", "q"):
            self.queue(queue)
        for who, name in (("alice", "q"), ("bob", "alice.q"), ("eve", "q"), ("alice", "alice.q")):
            self.outlet("push", who).send(name, who.encode())
        self.assertEqual(next(root.pull("alice.q")).body, b"alice")
        heard = root.subscribe(">")
        pub = {who: self.outlet("pub", who) for who in ("alice", "bob")}
        while (event := root.next("EVENT", 0.05)) is None:  # until both of them are connected, and were heard
            pub["bob"].send("alice.t", b"bob")
            if self.counts("zmq-pub")["denied"] > 0:
                pub["alice"].send("alice.t", b"alice")
        self.assertEqual((event.name, event.body), ("alice.t", b"alice"))
        while self.counts("zmq-push")["denied"] < 3:
            root.ask("PING")
        told = self.counts("zmq-push")
        self.assertEqual((told["denied"], told["dropped"]), (3, 3))
        self.assertIsNone(root.next("MSG", 0))
        self.assertIn("key:bob may not publish to topic alice.t", self.logged())

    def test_plain_subscribers(self):
        self.rules()
        root, alice, bob = self.client(), self.who("alice"), self.who("bob")
        subs = {}
        for name, who, texts in (("sub", "alice", ("alice.s", "alice.", "")), ("sub", "bob", ("alice.s",)), ("sub", "eve", ("",)),
                                 ("match", "alice", ("alice.*", "other.*")), ("match", "bob", ("alice.*",)),
                                 ("match", "eve", ("alice.*",))):
            subs[name, who] = self.outlet(name, who)
            for text in texts:
                subs[name, who].socket.subscribe(text.encode() + (b"\n" if name == "match" else b""))
            if (name, who) == ("match", "eve"):  # all patterns that begin like that
                subs[name, who].socket.subscribe(b"")
            subs[name, who].subscribe(root)
        # A prefix is allowed if everything below its whole levels is: for alice, "alice." but neither "alice.s" nor "".
        for topic in ("alice.secret", "alice.a", "other.a"):
            root.publish(topic, topic.encode())
        root.publish("end", b"")
        for who, topics in (("alice", ["alice.secret", "alice.a"]), ("bob", []), ("eve", [])):
            for name in ("sub", "match"):
                got = []
                while subs[name, who].socket.poll(PATIENCE * 1000 if len(got) < len(topics) else 0):
                    got.append(subs[name, who].receive()[0])
                self.assertEqual(got, topics, (name, who))
        self.assertEqual(self.counts("zmq-sub")["denied"], 3)
        self.assertEqual(self.counts("zmq-match")["denied"], 3)
        self.assertIn("key:bob may not subscribe to every topic that alice.* stands for", self.logged())

    def test_plain_subscribers_come_and_go(self):
        """At any moment, and with what no SUB sends: nothing is had that is denied, and those that stay miss nothing."""
        self.rules()
        root, stays = self.client(), self.outlet("sub", "alice")
        stays.subscribe(root, "alice.")
        count, over = 0, threading.Event()

        def come_and_go():
            context, number = zmq.Context(), 0
            while not over.is_set():
                number += 1
                kind = context.socket(zmq.XSUB)
                kind.linger = 0 if number % 3 else 100
                kind.curve_serverkey, kind.curve_publickey, kind.curve_secretkey = self.keys("eve" if number % 4 == 1 else "alice")
                kind.connect(self.addresses["sub"])
                for text in (b"\x01alice.", b"\x01alice.", b"\x01alice.x.%d" % number, b"\x01", b"\x07what", b"\x01alice.a."):
                    kind.send(text)
                if number % 2:
                    kind.poll(20)
                kind.close()
            context.destroy(0)

        threads = [self.thread(come_and_go) for _ in range(2)]
        eve = self.outlet("sub", "eve")
        eve.socket.subscribe(b"alice.")
        for count in range(1000):
            root.publish("alice.a.b", b"%d" % count)
            _, properties, body = stays.receive()
            self.assertEqual((body, properties["seq"]), (b"%d" % count, count))
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
        self.assertFalse(eve.socket.poll(0))
        eve.subscribe(root)
        self.assertFalse(eve.socket.poll(0))

    def test_beside_what_no_sub_sends(self):
        """Who subscribes meanwhile has to connect again, and then has what it wanted, without asking for it."""
        self.rules()
        root, over = self.client(), threading.Event()

        def disturb():
            context = zmq.Context()
            xsub = context.socket(zmq.XSUB)
            xsub.linger, xsub.reconnect_ivl = 0, 1
            xsub.curve_serverkey, xsub.curve_publickey, xsub.curve_secretkey = self.keys("eve")
            xsub.connect(self.addresses["sub"])
            while not over.wait(0.0002):
                xsub.send(b"\x07what")
            context.destroy(0)

        disturbers, again, number = [self.thread(disturb) for _ in range(2)], 0, 0
        while again < 3:
            number += 1
            sub, word = self.outlet("sub", "alice"), b"\n%d" % number
            for text in (b"alice.x.", b"alice.y.", word):
                sub.socket.subscribe(text)
            try:
                root.ask("SYNC", id=word, timeout=0.1)
            except Failure as failure:
                self.assertEqual(failure.name, "EAGAIN")
                again += 1
                sub.subscribe(root)
            except TimeoutError:
                sub.subscribe(root)
            root.publish("alice.y.z", word)
            self.assertEqual(sub.receive()[2], word)
            sub.close()
        over.set()
        for disturber in disturbers:
            disturber.join(PATIENCE)

    def test_forged(self):
        """Who says of itself who it is is not believed; nor may anybody choose a routing id."""
        self.rules()
        dealer = self.dealer(self.addresses["router"], routing_id=b"mine!", curve_serverkey=self.public,
                             curve_publickey=self.pairs["alice"][0], curve_secretkey=self.pairs["alice"][1])
        self.refuses(dealer, "EINVAL", "IPC1", "HELLO", "1")
        if os.getuid() != 0:
            self.skipTest("only root can be somebody else")
        os.chmod(self.folder, 0o755)
        self.bind("open", "endpoint=router", f"address=ipc://{self.folder}/open", "mode=666")
        answer = subprocess.run(
            [sys.executable, "-c", FORGER, self.folder + "/open"], stdout=subprocess.PIPE, timeout=PATIENCE, check=True,
            user=12345, group=12345, extra_groups=[]).stdout
        self.assertIn(b"WELCOME", answer)
        self.assertIn(b'"identity":"uid:12345"', answer)
        self.assertIn(b"uid:12345 may not publish to topic alice.a", answer)

    def test_users_and_groups(self):
        if os.getuid() != 0:
            self.skipTest("only root can be somebody else")
        self.rules("[rule a]\nwho = user:12345\nallow = publish\nnames = user\n[rule b]\nwho = group:23456\nallow = publish\n")
        os.chmod(self.folder, 0o755)
        self.bind("open", "endpoint=router", f"address=ipc://{self.folder}/open", "mode=666")
        for user, group, groups, topics in ((12345, 1, [], "user"), (12346, 1, [], ""), (12346, 23456, [], "user other"),
                                            (12346, 1, [7, 23456], "user other")):
            code = ("import sys; from ipcd_zmq import *\nclient = Client(sys.argv[1])\nfor topic in ('user', 'other'):\n"
                    "  try: client.publish(topic, b''); print(topic)\n  except Failure as e: assert e.name == 'EACCES'\n")
            done = subprocess.run([sys.executable, "-B", "-c", code, f"ipc://{self.folder}/open"], stdout=subprocess.PIPE, text=True,
                                  timeout=PATIENCE, check=True, user=user, group=group, extra_groups=groups,
                                  env={**os.environ, "PYTHONPATH": sys.path[0]})
            self.assertEqual(done.stdout.split(), topics.split())

    def bind(self, id, *settings):
        root = self.client()
        subprocess.run([IPCCTL, "bind", "zmq", id, *settings], check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
        root.close()

    def reload(self, text, said):
        """Hand the gateway that configuration, and wait until it has said that of it."""
        with open(os.path.join(self.folder, "config"), "w") as file:
            file.write(text)
        before = self.logged().count(said)
        self.gateway.send_signal(signal.SIGHUP)
        while self.logged().count(said) == before:
            self.client().close()

    def test_other_rules(self):
        """What is taken away ends at once, what is given is had, and everything else goes on."""
        self.rules()
        root, alice = self.client(), self.who("alice")
        for queue in ("alice.q", "shared"):
            self.queue(queue)
            root.send(queue, queue.encode())
        for topic in ("alice.a", "alice.>", "shared"):
            alice.ask("SUB", topic, id=topic.encode())
        for name in ("alice.q", "shared"):
            alice.ask("PULL", name, pack({"credit": 2}))
            self.assertEqual(alice.next("MSG", PATIENCE, name=name).body, name.encode())  # which is not acknowledged
            alice.ask("SERVE", name, pack({"credit": 9}))
        plain = {}
        for who, pattern in (("alice", "alice.*"), ("alice", "shared"), ("bob", "alice.b"), ("eve", "shared")):
            plain[who, pattern] = self.outlet("match", who)
            plain[who, pattern].socket.subscribe(pattern.encode() + b"\n")
            plain[who, pattern].subscribe(root)
        there = [p["peer"] for p in self.counts("zmq-router")["peers"]]

        self.reload(self.RULES + "[rule x]\nallow = nothing\n", "what held holds")
        self.assertIn("config:", self.logged())
        root.publish("alice.a", b"1")
        self.assertEqual({alice.next("EVENT", PATIENCE).id for _ in range(2)}, {b"alice.a", b"alice.>"})
        self.assertEqual(plain["alice", "alice.*"].receive()[0], "alice.a")

        self.reload(self.RULES.replace("alice.> shared", "shared") + "[rule eve]\nwho = key:eve\nallow = subscribe\nnames = shared\n",
                    "rules hold now")
        ended = []
        while len(ended) < 4:
            message = alice.hear(PATIENCE)
            self.assertEqual((message.command, message.properties["errno"]), ("ERROR", "EACCES"))
            ended.append(message.id)
        self.assertEqual(sorted(ended), [b"alice.>", b"alice.a", b"alice.q", b"alice.q"])
        self.denied(lambda: alice.publish("alice.a", b""))
        self.assertEqual(next(root.pull("alice.q")).body, b"alice.q")  # what she had came back
        with self.assertRaises(Failure) as caught:
            root.call("alice.q", b"")
        self.assertEqual(caught.exception.name, "ENOENT")
        while not plain["eve", "shared"].socket.poll(50):  # who was denied that before connected again, and asked
            root.publish("shared", b"shared")
        for topic in ("alice.a", "alice.b"):
            root.publish(topic, topic.encode())
        self.assertEqual(alice.next("EVENT", PATIENCE).name, "shared")
        for key, topic in ((("alice", "shared"), "shared"), (("bob", "alice.b"), "alice.b"), (("eve", "shared"), "shared")):
            self.assertEqual(plain[key].receive()[0], topic)
        self.assertFalse(plain["alice", "alice.*"].socket.poll(0))
        root.send("shared", b"more")
        self.assertEqual(alice.next("MSG", PATIENCE, name="shared").body, b"more")
        self.assertEqual([p["peer"] for p in self.counts("zmq-router")["peers"]], there)

        # Without any rules everything begins anew, as with another gateway.
        self.reload("", "rules hold now")
        alice.publish("alice.a", b"")

    def test_other_bindings(self):
        """Addresses come and go, and nobody else notices; other settings wait for the next start."""
        self.rules()
        root, stays, extra = self.client(), self.outlet("sub", "alice"), os.path.join(self.folder, "extra")
        stays.subscribe(root, "alice.")
        self.bind("bound", "endpoint=router", f"address=ipc://{self.folder}/bound")
        count = 0
        for there in (True, False, True, False):
            self.reload(self.RULES + (f"[bind extra]\nendpoint = router\naddress = ipc://{extra}\n" if there else ""),
                        "bindings: %d new, 0 changed, %d gone" % (there, not there))
            self.assertEqual(os.path.exists(extra), there)
            for address in ["bound"] + ["extra"] * there:
                with Client(address=f"ipc://{self.folder}/{address}", timeout=PATIENCE) as client:
                    client.publish("alice.a", address.encode())
                _, properties, body = stays.receive()
                self.assertEqual((properties["seq"], body), (count, address.encode()))
                count += 1
        self.reload("[gateway]\nhigh-water = 5\nkeys = /elsewhere\n" + self.RULES, "hold from the next start only: high-water")

    def test_other_keys(self):
        """Whose key is new may come, whose is gone goes; with mistakes everything stays."""
        self.rules()
        keys, (public, secret) = os.path.join(self.folder, "keys"), zmq.curve_keypair()
        with open(keys) as file:
            text = file.read()
        alice = self.who("alice")
        before = [p["peer"] for p in self.counts("zmq-router")["peers"]]

        def reread(text):
            with open(keys, "w") as file:
                file.write(text)
            self.reload(self.RULES, "rules hold now")

        reread(text + "client\n")
        self.assertIn("the keys that held hold", self.logged())
        reread(text + f"client dora {public.decode()}\n")
        alice.publish("alice.a", b"")
        self.assertEqual([p["peer"] for p in self.counts("zmq-router")["peers"]][:len(before)], before)
        dora = self.client(address=self.addresses["router"], keys=(self.public, public, secret))
        dora.ask("PING")
        reread("".join(line for line in text.splitlines(True) if " alice " not in line))
        alice.timeout = 1
        with self.assertRaises(TimeoutError):
            alice.publish("alice.a", b"")
        self.who("bob").ask("PING")

    def test_mistakes(self):
        config = os.path.join(self.folder, "config")
        for text, said in (("[rule a]\nwho = key:\n", "who: key:"), ("[rule a]\nallow = send\n", "it does not say who"),
                           ("[rule a]\nwhom = b\n", "unknown setting 'whom' in [rule NAME]"), ("[rules]\n", "[rule NAME]")):
            with open(config, "w") as file:
                file.write(text)
            done = subprocess.run([program("IPCD_ZMQ_BIN", "broker/ipcd-zmq"), "--check", "--config", config], text=True,
                                  stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, timeout=PATIENCE)
            self.assertEqual(done.returncode, 1)
            self.assertIn(said, done.stderr)
        with open(config, "w") as file:
            file.write(self.RULES)
        done = subprocess.run([program("IPCD_ZMQ_BIN", "broker/ipcd-zmq"), "--check", "--config", config], text=True, check=True,
                              stdout=subprocess.PIPE, timeout=PATIENCE)
        self.assertIn("[rule bob hears of it]\nwho = key:bob\ndeny = subscribe\nnames = alice.secret\n", done.stdout)


# Speaks ZMTP by itself: its READY claims a user and a connection.
FORGER = r"""
import socket, sys
def text(b): return bytes([len(b)]) + b
def pair(name, value): return text(name) + len(value).to_bytes(4, "big") + value
s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1])
def read(size):
    b = b""
    while len(b) < size:
        more = s.recv(size - len(b))
        if not more: sys.exit("closed")
        b += more
    return b
def frame():
    flags = read(1)[0]
    return flags, read(int.from_bytes(read(8), "big") if flags & 2 else read(1)[0])
s.sendall(b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32)
read(64)
ready = b"\x05READY" + pair(b"Socket-Type", b"DEALER") + pair(b"Identity", b"") + pair(b"User-Id", b"key:alice") + pair(b"Ipcd", b"1")
s.sendall(b"\x04" + bytes([len(ready)]) + ready)
frame()
def say(*frames):
    for i, f in enumerate(frames): s.sendall(bytes([i + 1 < len(frames), len(f)]) + f)
def hear():
    while True:
        flags, body = frame()
        sys.stdout.buffer.write(body + b"\n")
        if not flags & 1: return
say(b"IPC1", b"HELLO"); hear()
say(b"IPC1", b"PUB", b"1", b"alice.a", b"", b"x"); hear()
"""


if __name__ == "__main__":
    unittest.main(verbosity=2)
