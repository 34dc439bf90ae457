"""A cloud that lies: it plays a recorded conversation back, and at one place it does what no cloud should.

Recorder  a proxy that keeps in which order the messages of a good conversation came: a list of ("up", name) and ("down", name, head, bulk)
Liar      a server that plays such a list, with a lie; what a device makes of it is the tests'
lies()    the catalogue: name and lie, for a recorded list; mutation() makes more from a seed
"""
import base64
import contextlib
import hashlib
import random
import socket
import struct
import threading

import capture
import wire

WAIT_S = 0.4      # for a message of the device's that the record has next; then the play goes on without
HOLD_S = 12       # for how long a stall lasts: the device has to give up before
NAN, INF, HUGE = (struct.pack("<f", x) for x in (float("nan"), float("inf"), 3e38))


class Recorder(capture.Proxy):
    def __init__(self, port):
        super().__init__(port)
        self.pieces, self.order = [], threading.Lock()

    def pump(self, source, sink, kept):
        up = any(kept is one for one in self.up)
        connection = next(i for i, one in enumerate(self.up if up else self.down) if one is kept)
        try:
            while data := source.recv(1 << 16):
                with self.order:
                    self.pieces.append((connection, up, data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def scripts(self):
        """Of each connection the messages, in the order in which they were complete."""
        return [self.of_connection(connection) for connection in sorted({piece[0] for piece in self.pieces})]

    def of_connection(self, connection):
        streams, said, found = {True: bytearray(), False: bytearray()}, {True: 0, False: 0}, []
        for _, up, data in (piece for piece in self.pieces if piece[0] == connection):
            streams[up] += data
            if b"\r\n\r\n" not in streams[up]:
                continue
            payload = b"".join(p for first, _, p in capture.frames(bytes(streams[up])) if first & 15 == 2)
            messages, _ = wire.split(payload)
            for message in messages[said[up]:]:
                found.append(("up", message[0]) if up else ("down", *message))
            said[up] = len(messages)
        return found


# ---- lies ----
#
# A lie is a function (index, name, head, bulk) -> what is sent in place of the index-th message of the cloud: a list of bytes (whole
# frames) and of the words below; None: the message as it was.

STALL, FIN, RST = "stall", "fin", "rst"


def sent(name, head, bulk):
    return wire.frame(wire.pack(name, head, bulk))


def at(index, *instead):
    """The index-th message is replaced."""
    return lambda i, name, head, bulk: list(instead) if i == index else None


def before(index, *more):
    return lambda i, name, head, bulk: [*more, sent(name, head, bulk)] if i == index else None


def twice(index):
    return lambda i, name, head, bulk: [sent(name, head, bulk)] * 2 if i == index else None


def first(script, name):
    """Index among the cloud's messages of the first of this name, and it; or None."""
    down = [step for step in script if step[0] == "down"]
    return next(((i, step) for i, step in enumerate(down) if step[1] == name), None)


BIG = (0, 1, 2, 99, 65535, 65537, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
FLOATS = {"nan": float("nan"), "inf": float("inf"), "-1": -1.0, "0": 0.0, "1e38": 1e38}
MANY = {"WELCOME": BIG, "TAPS": BIG, "TOKENS": BIG[:4] + BIG[-1:], "DONE": (0, 2, 99, (1 << 32) - 1), "FEATURES": BIG, "FITTED": (0, 1, 1 << 31, 1 << 62), "BLOB": (0, 1, 1 << 31, 1 << 62),
        "LOSSES": (0, 99), "LOGPROBS": (0, 1, 99), "ERROR": (0, 1, 99)}


def field_lies(script):
    """Every field of every kind of message, at its bounds and beyond."""
    for name, values in MANY.items():
        found = first(script, name)
        if not found:
            continue
        i, (_, _, head, bulk) = found
        for field, (_, kind, many) in wire.FIELDS[name].items():
            if kind == "float":
                wrong = FLOATS.items()
            elif kind == "bytes":
                wrong = {"empty": b"", "short": b"x" * 5, "other": b"\x5a" * 32, "long": b"x" * 300}.items()
            elif kind == "string":
                wrong = {"no UTF-8": b"\xff\xfe\x80", "controls": b"\x1b[31m\x00\r\n", "long": b"x" * 3000}.items()
            elif many:
                wrong = {"one more": [*head.get(field, []), 1], "none": [], "beyond": [(1 << 31) - 1], "negative": [(1 << 64) - 1], "many": [1] * 40}.items()
            else:
                wrong = ((value, value) for value in values)
            for word, value in wrong:
                yield f"{name} {field} {word}", at(i, sent(name, head | {field: value}, bulk))


def vocabulary_lie(i, name, head, bulk):
    """Another model than the one of the connection before, with tokens that only this one has."""
    if name == "WELCOME":
        return [sent(name, head | {"n_vocab": (1 << 31) - 1}, bulk)]
    if name == "FEATURES" and head.get("n_loss"):
        n = head["n_loss"]
        return [sent(name, head, bulk[:4 * n] + struct.pack("<i", 1 << 30) * n + bulk[8 * n:])]
    if name == "TOKENS" and head.get("ids"):
        return [sent(name, head | {"ids": [1 << 30] * len(head["ids"])}, bulk)]
    return None


def bulk_lies(script):
    """What stands behind the heads."""
    for name in MANY:
        found = first(script, name)
        if not found:
            continue
        i, (_, _, head, bulk) = found
        other = [("no bulk", b""), ("a byte more", bulk + b"\0"), ("a byte less", bulk[:-1]), ("doubled", bulk * 2), ("no UTF-8", b"\xff\xc0\x80" * (len(bulk) // 3 + 1)),
                 ("all ones", b"\xff" * len(bulk))]
        for word, number in (("NaN", NAN), ("infinite", INF), ("huge", HUGE)):
            other.append((word, number * (len(bulk) // 4) + bulk[len(bulk) // 4 * 4:]))
        other.append(("NaN in F16", b"\0\x7e" * (len(bulk) // 2) + bulk[len(bulk) // 2 * 2:]))
        for word, value in other:
            yield f"{name} bulk: {word}", at(i, sent(name, head, value))


def order_lies(script):
    down = [step for step in script if step[0] == "down"]
    for i, (_, name, _head, _bulk) in enumerate(down):
        if i in (0, 1, 2, 3, len(down) // 2, len(down) - 1):
            yield f"{name} {i} twice", twice(i)
            yield f"{name} {i} left out", at(i)
            yield f"last before {name} {i}", before(i, sent(*down[-1][1:]))
            yield f"WELCOME before {name} {i}", before(i, sent(*down[0][1:]))
    for name, head in (("HELLO", {"version": 1}), ("GENERATE", {"request": 1}), ("STATE", {"request": 1, "n": 1}), ("LEARN", {"row": 1}), ("BLOB", {"total": 1, "hash": bytes(32)}),
                       ("FITTED", {"hash": bytes(32), "total": 4}), ("FEATURES", {"row": 1}), ("LOSSES", {"id": 1}), ("LOGPROBS", {"request": 1, "n": 1})):
        for i in (0, 1):
            yield f"{name} from a cloud, {i}", before(i, wire.frame(wire.pack(name, head)))
    for code in (*range(16), 99, (1 << 32) - 1):
        for request in (0, 1, 7):
            yield f"ERROR {code} of {request}", before(min(2, len(down) - 1), wire.frame(wire.pack("ERROR", {"request": request, "code": code}, b"So says the liar.")))
    for word, text in (("no UTF-8", b"\xff\xfe\xfd and so it goes on"), ("controls", b"\x1b]0;x\x07 and so it goes on\r\n\0"), ("long", b"So it goes on. " * 4000), ("empty", b"")):
        yield f"ERROR whose sentence is {word}", before(1, wire.frame(wire.pack("ERROR", {"code": 10}, text)))
        yield f"ERROR of the request whose sentence is {word}", before(min(1, len(down) - 1), wire.frame(wire.pack("ERROR", {"request": 1, "code": 10}, text)))


def state_lies(script):
    """Silence and breaks behind every one of the first messages."""
    n = sum(step[0] == "down" for step in script)
    for i in sorted({0, 1, 2, 3, n // 2, n - 1} & set(range(n))):
        for word in (STALL, FIN, RST):
            yield f"{word} before message {i}", at(i, word)
        yield f"half of message {i}, then {FIN}", lambda k, name, head, bulk, i=i: [sent(name, head, bulk)[:7], FIN] if k == i else None
        yield f"half of message {i}, then {STALL}", lambda k, name, head, bulk, i=i: [sent(name, head, bulk)[:-1], STALL] if k == i else None


def frame_lies(_script):
    """Bytes that are no message, frames that are no frames."""
    prefix = struct.pack("<BBHI", 9, 0, 4, 0xFFFFFFFF)
    for i in (0, 1):
        for word, data in {
                "type 0": wire.frame(bytes(8)), "type 255": wire.frame(b"\xff" + bytes(7)), "reserved byte": wire.frame(b"\x09\x01" + bytes(6)),
                "head longer than allowed": wire.frame(struct.pack("<BBHI", 9, 0, 65535, 0) + bytes(100)), "4 GiB announced": wire.frame(prefix + bytes(1000)),
                "head of garbage": wire.frame(struct.pack("<BBHI", 9, 0, 30, 0) + bytes(range(200, 230))), "noise": wire.frame(random.Random(7).randbytes(3000)),
                "an empty frame": wire.frame(b""), "text frame": wire.frame(b"hello", opcode=1), "text frame, no UTF-8": wire.frame(b"\xff\xfe", opcode=1),
                "reserved opcode": wire.frame(b"x", opcode=3), "reserved bits": b"\xf2\x01x", "masked frame": b"\x82\x81\0\0\0\0x",
                "a frame of 2^63 bytes": wire.frame(b"x" * 100, length=(1 << 63) - 1), "a negative length": wire.frame(b"x" * 100, length=(1 << 64) - 1),
                "a frame that never ends": wire.frame(b"x" * 1000, length=1 << 30), "a continuation of nothing": wire.frame(b"x", opcode=0),
                "fragments without end": b"".join(wire.frame(b"", opcode=2 * (k == 0), fin=False) for k in range(500)), "a long ping": wire.frame(b"p" * 126, opcode=9),
                "pings": wire.frame(b"ping", opcode=9) * 2000, "pongs": wire.frame(b"", opcode=10) * 2000, "a close of one byte": wire.frame(b"x", opcode=8),
                "a close of 65535": wire.frame(b"\xff\xff", opcode=8), "a close that goes on": wire.frame(b"\x03\xe9" + b"y" * 120, opcode=8),
                "HTTP": b"HTTP/1.1 200 OK\r\n\r\n", "zeros": bytes(5000)}.items():
            yield f"{word}, {i}", at(i, data)


HANDSHAKES = {
    "nothing, then FIN": [FIN], "nothing, then RST": [RST], "silence": [STALL], "garbage": [b"\0\xff" * 500, FIN], "half a head": [b"HTTP/1.1 101 Swit", STALL],
    "an endless head": [b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: " + b"y" * 100000, STALL], "many headers": [b"HTTP/1.1 101 S\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n", FIN],
    "200": [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", FIN], "404": [b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", FIN],
    "503": [b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", FIN], "a redirect": [b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", FIN],
    "a wrong accept": [b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: spa\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n", STALL],
    "no accept": [b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: spa\r\n\r\n", STALL],
    "status 999": [b"HTTP/1.1 999 X\r\n\r\n", FIN], "an old HTTP": [b"HTTP/0.9 101\r\n\r\n", FIN], "TLS": [b"\x16\x03\x03\x00\x7a\x02" + bytes(122), FIN],
    "no protocol": ["accept without protocol", STALL], "another protocol": ["accept chat", STALL], "h2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", FIN],
}


def lies(script):
    """(name, lie), all of the catalogue but handshakes."""
    yield "a larger vocabulary, and tokens of it", vocabulary_lie
    for kind in (field_lies, bulk_lies, order_lies, state_lies, frame_lies):
        yield from kind(script)


def mutation(script, seed):
    """A lie that a seed makes: some of the cloud's messages with some of their bytes changed, cut, repeated, swapped or grown. For one conversation."""
    dice = random.Random(seed)
    n = sum(step[0] == "down" for step in script)
    chosen = {min(int(dice.expovariate(0.35)), n - 1) for _ in range(dice.choice((1, 1, 2, 4)))}

    def lie(i, name, head, bulk):
        if i not in chosen:
            return None
        data = bytearray(wire.pack(name, head, bulk))
        for _ in range(dice.choice((1, 1, 2, 5))):
            if not data:
                break
            where = dice.randrange(min(len(data), 8 + 60) if dice.random() < 0.7 else len(data))
            what = dice.random()
            if what < 0.4:
                data[where] ^= 1 << dice.randrange(8)
            elif what < 0.7:
                data[where] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))
            elif what < 0.8:
                del data[where:where + dice.randrange(1, 9)]
            elif what < 0.9:
                data[where:where] = dice.randbytes(dice.randrange(1, 9))
            else:
                data[where:where + 4] = dice.choice((0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)).to_bytes(4, "little")
        return [wire.frame(bytes(data)) for _ in range(dice.choice((1, 1, 1, 2)))] + dice.choice(([], [], [], [FIN]))
    return lie


# ---- the server ----

class Liar:
    """Plays scripts[i] to the i-th connection, and scripts[which] with a lie; to those after them it plays the latter again, `more` times, and
    refuses the rest, so that a device which tries again comes to an end. handshake: a list as a lie gives it, in place of the answer to the
    upgrade."""

    def __init__(self, scripts, which=0, lie=None, handshake=None, hold_s=HOLD_S, more=0):
        self.scripts, self.which, self.lie, self.handshake, self.hold_s, self.more = scripts, which, lie, handshake, hold_s, more
        self.over, self.connections, self.played = threading.Event(), 0, False

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
        self.thread.join(10)
        self.listener.close()

    def reach(self):
        return ["--cloud", f"ws://127.0.0.1:{self.port}"]

    def run(self):
        while not self.over.is_set():
            device, _ = self.listener.accept()
            if self.over.is_set():
                device.close()
                return
            self.connections += 1
            device.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(device, self.connections), daemon=True).start()

    def serve(self, device, number):
        with contextlib.suppress(OSError), device:
            self.talk(device, number)

    def talk(self, device, number):
        request = b""
        device.settimeout(5)
        while b"\r\n\r\n" not in request:
            piece = device.recv(1 << 16)
            if not piece:
                return
            request += piece
        if number > len(self.scripts) + self.more:
            device.sendall(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
            return
        key = next((line.split(b":", 1)[1].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")), b"")
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        if not self.say(device, self.handshake or ["accept spa"], accept) or self.handshake:
            return
        which = number - 1 if number <= len(self.scripts) else self.which
        self.play(device, self.scripts[which], self.lie if which == self.which else None)

    def say(self, device, things, accept=b""):
        """False: the connection is over."""
        for thing in things:
            if thing == STALL:
                self.linger(device, self.hold_s)
                return False
            if thing == FIN:
                device.shutdown(socket.SHUT_RDWR)
                return False
            if thing == RST:
                device.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if isinstance(thing, str):
                protocol = thing.removeprefix("accept").strip()
                thing = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept \
                    + (b"\r\nSec-WebSocket-Protocol: " + protocol.encode() if not protocol.startswith("without") else b"") + b"\r\n\r\n"
            device.sendall(thing)
        return True

    def linger(self, device, seconds):
        """Takes what comes and says nothing, until the device has gone."""
        device.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            while device.recv(1 << 16):
                pass

    def play(self, device, script, lie):
        heard, wanted, stream, index = 0, 0, b"", 0
        device.settimeout(WAIT_S)
        for step in script:
            if step[0] == "up":
                wanted += 1
                continue
            while heard < wanted:
                try:
                    piece = device.recv(1 << 16)
                except TimeoutError:
                    heard = wanted
                    break
                if not piece:
                    return
                stream += piece
                frames = b"".join(p for first_byte, _, p in capture.frames(b"\r\n\r\n" + stream) if first_byte & 15 == 2)
                heard = max(heard, len(wire.split(frames)[0]))
            name, head, bulk = step[1:]
            things = lie(index, name, head, bulk) if lie else None
            self.played = self.played or things is not None
            index += 1
            if not self.say(device, [sent(name, head, bulk)] if things is None else things):
                return
        self.linger(device, self.hold_s)
