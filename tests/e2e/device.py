"""A device after WIRE.md alone, in plain Python: WebSocket, frames, heads, parts. Nothing of it is the product's own code.

    with Device(port) as d:                  # Refused when the upgrade is
        d.hello(plugin=d.plugin_for(welcome))
        d.generate(1, "text", ...)
        for m in d.messages(): ...

In:  a port, and what to say.
Out: Message(type, head, bulk); heads are dicts, absent fields are 0 or empty. End, when the cloud has hung up.
"""
import base64
import os
import socket
import struct

NAMES = {1: "HELLO", 2: "WELCOME", 3: "FETCH", 4: "BLOB", 5: "GENERATE", 6: "CANCEL", 7: "TAPS", 8: "STATE", 9: "TOKENS", 10: "DONE", 11: "ERROR",
         12: "LEARN", 13: "FITTED", 14: "FEATURES", 15: "LOSS", 16: "LOSSES", 17: "LOGPROBS"}
NUMBERS = {name: number for number, name in NAMES.items()}

# name: (field number, form): u unsigned or enum, i signed, f float, s bytes or text, r packed unsigned, m a message
PLUGIN = {"d": (1, "u"), "n_layers": (2, "u"), "taps": (3, "r"), "k": (4, "u"), "rms": (5, "u"), "basis": (6, "u"), "basis_hash": (7, "s"), "add": (8, "u"),
          "ctx_taps": (9, "r"), "tap_dtype": (10, "u"), "state_dtype": (11, "u"), "model_hash": (12, "s"), "has_gate": (13, "u"), "gate_bias": (14, "f")}
HEADS = {
    "HELLO": {"version": (1, "u"), "client": (2, "s"), "max_message": (3, "u"), "plugin": (4, PLUGIN)},
    "WELCOME": {"version": (1, "u"), "model": (3, "s"), "d": (5, "u"), "n_layers": (6, "u"), "n_vocab": (7, "u"), "n_ctx": (8, "u"), "max_message": (9, "u"),
                "max_requests": (10, "u"), "learn_window": (11, "u")},
    "GENERATE": {"request": (1, "u"), "raw": (2, "u"), "n_predict": (3, "i"), "temp": (4, "f"), "top_k": (5, "i"), "top_p": (6, "f"), "min_p": (7, "f"),
                 "repeat_penalty": (8, "f"), "repeat_last_n": (9, "i"), "seed": (10, "u"), "gate": (11, "u"), "late": (12, "u"), "answer_ms": (13, "u"),
                 "ignore_eos": (14, "u"), "after": (15, "u"), "run_ahead": (18, "u")},
    "CANCEL": {"request": (1, "u")},
    "TAPS": {"request": (1, "u"), "epoch": (2, "u"), "pos": (3, "u"), "n_rows": (4, "u"), "asked": (5, "r")},
    "STATE": {"request": (1, "u"), "epoch": (2, "u"), "pos": (3, "u"), "n": (4, "u"), "draft_index": (5, "u"), "draft": (6, "r")},
    "TOKENS": {"request": (1, "u"), "index": (2, "u"), "ids": (3, "r"), "by": (4, "r")},
    "DONE": {"request": (1, "u"), "finish": (2, "u"), "prompt_tokens": (3, "u"), "completion_tokens": (4, "u"), "gated": (5, "u"), "late": (6, "u"), "refused": (7, "u")},
    "ERROR": {"request": (1, "u"), "code": (2, "u"), "row": (3, "u"), "is_row": (4, "u"), "is_loss": (5, "u"), "retry_ms": (6, "u")},
    "LEARN": {"row": (1, "u"), "fit": (2, "u"), "last": (3, "u"), "more": (5, "u"), "anchor": (4, "u")},
    "FEATURES": {"row": (1, "u"), "n_tokens": (2, "u"), "n_ctx": (3, "u"), "n_loss": (4, "u")},
    "FETCH": {"kind": (1, "u"), "hash": (2, "s"), "offset": (3, "u")},
}
GATE = {"auto": 0, "always": 1, "never": 2}
LATE = {"wait": 0, "base": 1, "error": 2}
CODES = {5: "TOO_LARGE", 6: "BUSY", 7: "CONTEXT_FULL", 8: "LATE_ANSWER", 9: "BAD_STATE", 11: "DRAINING", 15: "DENIED"}
MASK = b"\x5a\xa5\x3c\xc3"


def varint(n):
    out = bytearray()
    n &= (1 << 64) - 1
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out) + bytes([n])


def encode(fields, head):
    out = b""
    for name, value in head.items():
        number, form = fields[name]
        if isinstance(form, dict):
            inner = encode(form, value)
            out += varint(number << 3 | 2) + varint(len(inner)) + inner
        elif form == "r":
            packed = b"".join(map(varint, value))
            out += varint(number << 3 | 2) + varint(len(packed)) + packed if value else b""
        elif form == "s":
            raw = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(raw)) + raw
        elif form == "f":
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += varint(number << 3) + varint(int(value))
    return out


def read_varint(data, at):
    n = shift = 0
    while True:
        byte = data[at]
        n |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return n, at


def decode(fields, data):
    names = {number: (name, form) for name, (number, form) in fields.items()}
    head = {name: [] if form == "r" else b"" if form == "s" else 0 for name, (_, form) in fields.items()}
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind, (name, form) = key & 7, names.get(key >> 3, (None, None))
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        else:
            n, at = read_varint(data, at)
            value, at = bytes(data[at:at + n]), at + n
            if form == "r":
                packed, value, i = value, [], 0
                while i < len(packed):
                    one, i = read_varint(packed, i)
                    value.append(one)
        if name:
            head[name] = value
    return head


def frame(kind, head=None, bulk=b"", fields=None):
    """One message of the wire."""
    inner = encode(fields or HEADS[kind], head or {})
    return struct.pack("<BBHI", NUMBERS[kind], 0, len(inner), len(bulk)) + inner + bulk


def parts(*texts, kind=4):
    """TEXT parts, or (kind, text) pairs."""
    out = b""
    for text in texts:
        one, text = text if isinstance(text, tuple) else (kind, text)
        raw = text.encode() if isinstance(text, str) else text
        out += struct.pack("<B3xI", one, len(raw)) + raw
    return out


class Message:
    def __init__(self, kind, head, bulk):
        self.type, self.head, self.bulk = kind, head, bulk

    def __repr__(self):
        return f"{self.type} {self.head} +{len(self.bulk)}"


class Refused(Exception):
    """The upgrade was answered with something else than 101."""

    def __init__(self, status, headers, body):
        super().__init__(f"{status} {body!r}")
        self.status, self.headers, self.body = status, headers, body


class End(Exception):
    """No more comes. close: the WebSocket's number, or None; error: the ERROR of request 0 that came before, or None."""

    def __init__(self, close, error):
        super().__init__(f"closed as {close}, after {error} {error.bulk.decode(errors='replace') if error else ''}")
        self.close, self.error = close, error
        self.code = CODES.get(error.head["code"], error.head["code"]) if error else None


class Device:
    def __init__(self, port, key=None, tls=None, timeout=60):
        self.error = self.close_code = None
        self.messages_in = []
        self.buffer = self.payload = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        try:
            self.socket.sendall((f"GET /v1/spa HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                                 f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Protocol: spa\r\n{authorization}\r\n").encode())
            while b"\r\n\r\n" not in self.buffer:
                self.more()
            head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
            lines = head.decode().split("\r\n")
            status, headers = int(lines[0].split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:] if ": " in line)}
            if status != 101:
                while len(self.buffer) < int(headers.get("content-length", 0)):
                    self.more()
                raise Refused(status, headers, self.buffer)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def more(self):
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise End(self.close_code, self.error)
        self.buffer += piece

    # ---- out ----

    def send_frame(self, opcode, data):
        head = bytes([0x80 | opcode])
        head += bytes([0x80 | len(data)]) if len(data) < 126 else struct.pack(">BH", 0xFE, len(data)) if len(data) < 1 << 16 else struct.pack(">BQ", 0xFF, len(data))
        key = (MASK * (len(data) // 4 + 1))[:len(data)]
        masked = (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(len(data), "little")
        try:
            self.socket.sendall(head + MASK + masked)
        except (BrokenPipeError, ConnectionResetError):
            self.drain()

    def send(self, kind, head=None, bulk=b""):
        self.send_frame(2, frame(kind, head, bulk))

    def framed(self, kind, head=None, bulk=b""):
        """For who writes to the socket at his own risk: a small message, masked with zeros."""
        data = frame(kind, head, bulk)
        assert len(data) < 126
        return bytes([0x82, 0x80 | len(data)]) + bytes(4) + data

    def drain(self):
        """The cloud does not listen any more: what it has said last."""
        while True:
            self.next()

    # ---- in ----

    def next_frame(self):
        while True:
            if len(self.buffer) >= 2:
                length, at = self.buffer[1] & 127, 2
                need = 2 if length == 126 else 8 if length == 127 else 0
                if len(self.buffer) >= at + need:
                    if need:
                        length, at = int.from_bytes(self.buffer[2:2 + need], "big"), at + need
                    if len(self.buffer) >= at + length:
                        opcode, data = self.buffer[0] & 15, self.buffer[at:at + length]
                        self.buffer = self.buffer[at + length:]
                        return opcode, data
            try:
                self.more()
            except (ConnectionResetError, BrokenPipeError):
                raise End(self.close_code, self.error) from None

    def next(self):
        """The next message."""
        while True:
            if len(self.payload) >= 8:
                kind, _, head, bulk = struct.unpack_from("<BBHI", self.payload)
                whole = 8 + head + bulk
                if len(self.payload) >= whole:
                    name = NAMES[kind]
                    self.raw_welcome = self.payload[8:8 + head] if name == "WELCOME" else getattr(self, "raw_welcome", b"")
                    m = Message(name, decode(HEADS.get(name, {}), self.payload[8:8 + head]), self.payload[8 + head:whole])
                    self.payload = self.payload[whole:]
                    if name == "ERROR" and not m.head["request"] and not m.head["is_row"] and not m.head["is_loss"]:
                        self.error = m
                    return m
            opcode, data = self.next_frame()
            if opcode in (0, 1, 2):
                self.payload += data
            elif opcode == 8:
                self.close_code = int.from_bytes(data[:2], "big") if len(data) >= 2 else None
                raise End(self.close_code, self.error)
            elif opcode == 9:
                self.send_frame(10, data)

    def until(self, *kinds):
        while True:
            m = self.next()
            if m.type in kinds:
                return m

    # ---- the conversation ----

    def hello(self, plugin=None, max_message=1 << 20):
        self.plugin = plugin
        self.send("HELLO", {"version": 1, "client": "test", "max_message": max_message, **({"plugin": plugin} if plugin else {})})
        self.welcome = self.until("WELCOME", "ERROR")
        if self.welcome.type == "ERROR":
            self.drain()
        return self.welcome.head

    def generate(self, request, text, n_predict=16, gate="never", late="wait", chat=False, more_parts=b"", **more):
        self.send("GENERATE", {"request": request, "raw": not chat, "n_predict": n_predict, "temp": 0, "top_p": 1, "repeat_penalty": 1, "gate": GATE[gate],
                               "late": LATE[late], "ignore_eos": 1, **more}, parts(text, kind=2 if chat else 4) + more_parts)

    def state(self, taps, z, **other):
        """An answer to TAPS that asks; other: what of its head, or its bulk, is to be different."""
        bulk = other.pop("bulk", None)
        head = {"request": taps.head["request"], "epoch": taps.head["epoch"], "pos": taps.head["pos"] + taps.head["asked"][-1], "n": 1, **other}
        self.send("STATE", head, struct.pack(f"<{len(z)}f", *z) if bulk is None else bulk)


def raw_plugin(welcome, context=False):
    """The simplest there is: all numbers of the last layer's tap, F32, no basis, no gate; with context every token's embedding, too."""
    taps = [0, welcome["n_layers"]] if context else [welcome["n_layers"]]
    return {"d": welcome["d"], "n_layers": welcome["n_layers"], "taps": taps, "k": welcome["d"], "rms": 1, "add": 1,
            **({"ctx_taps": [0]} if context else {})}


def shape_of(port, **how):
    with Device(port, **how) as d:
        return d.hello()
