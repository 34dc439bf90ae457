"""The wire from the outside: messages as WIRE.md has them, heads read and written by the field numbers of core/spa.proto, WebSocket frames.

A second opinion on our own codec, and what a cloud is written with that lies (lying_cloud.py). Heads are dicts by field name; what is not
known stays under its number. Knows nothing of our C.
"""
import pathlib
import re
import struct

PROTO = pathlib.Path(__file__).resolve().parents[2] / "core" / "spa.proto"
TYPES = ["", "HELLO", "WELCOME", "FETCH", "BLOB", "GENERATE", "CANCEL", "TAPS", "STATE", "TOKENS", "DONE", "ERROR", "LEARN", "FITTED", "FEATURES",
         "LOSS", "LOSSES", "LOGPROBS"]
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_proto():
    """Message -> field name -> (number, type, repeated)."""
    text = re.sub(r"//.*", "", PROTO.read_text())
    return {name.upper(): {field: (int(number), kind, bool(many)) for many, kind, field, number in re.findall(r"(repeated )?(\w+) (\w+) = (\d+);", body)}
            for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.S)}


FIELDS = read_proto()


def varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes([n]))


def take_varint(data, at):
    n = shift = 0
    while True:
        n |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return n, at


def encode(message, head):
    """A head's bytes. Values: int, float, bool, str, bytes, dict (a message), list of int; a number as name: raw (wire type, value)."""
    out = b""
    for name, value in head.items():
        number, kind, many = FIELDS[message][name]
        if kind == "float":
            out += varint(number << 3 | FIXED32) + struct.pack("<f", value)
        elif many:
            packed = b"".join(map(varint, value))
            out += varint(number << 3 | BYTES) + varint(len(packed)) + packed if packed else b""
        elif isinstance(value, dict):
            inner = encode(kind.upper(), value)
            out += varint(number << 3 | BYTES) + varint(len(inner)) + inner
        elif isinstance(value, (bytes, str)):
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | BYTES) + varint(len(value)) + value if value else b""
        else:
            out += varint(number << 3 | VARINT) + varint(int(value)) if value else b""
    return out


def decode(message, data):
    names = {number: (name, kind, many) for name, (number, kind, many) in FIELDS[message].items()}
    head, at = {}, 0
    while at < len(data):
        key, at = take_varint(data, at)
        name, kind, many = names.get(key >> 3, (key >> 3, "", False))
        if key & 7 == VARINT:
            value, at = take_varint(data, at)
            value = value - (1 << 64) if kind == "int32" and value >> 63 else value
        elif key & 7 == FIXED32:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif key & 7 == BYTES:
            length, at = take_varint(data, at)
            value, at = bytes(data[at:at + length]), at + length
            if many:
                packed, value, i = value, [], 0
                while i < len(packed):
                    n, i = take_varint(packed, i)
                    value.append(n)
            elif kind == "string":
                value = value.decode()
            elif kind.upper() in FIELDS:
                value = decode(kind.upper(), value)
        else:
            raise ValueError("a wire type that we do not use")
        head[name] = value
    return head


def pack(message, head=None, bulk=b""):
    """One message's bytes."""
    head = head if isinstance(head, bytes) else encode(message, head or {})
    return struct.pack("<BBHI", TYPES.index(message), 0, len(head), len(bulk)) + head + bulk


def split(data):
    """Whole messages of what was received: (name, head, bulk), and what is left."""
    found, at = [], 0
    while len(data) - at >= 8:
        kind, _, head, bulk = struct.unpack_from("<BBHI", data, at)
        if len(data) - at < 8 + head + bulk:
            break
        found.append((TYPES[kind], decode(TYPES[kind], data[at + 8:at + 8 + head]), bytes(data[at + 8 + head:at + 8 + head + bulk])))
        at += 8 + head + bulk
    return found, data[at:]


def parts(bulk):
    """(kind, bytes) of a GENERATE's or LEARN's bulk."""
    at = 0
    while at < len(bulk):
        kind, length = bulk[at], struct.unpack_from("<I", bulk, at + 4)[0]
        yield kind, bulk[at + 8:at + 8 + length]
        at += 8 + length


def part(kind, data):
    return struct.pack("<BxxxI", kind, len(data)) + data


def frame(payload, opcode=2, fin=True, length=None):
    """A server's WebSocket frame. length: what it says of itself, when that is a lie."""
    n = len(payload) if length is None else length
    first = bytes([opcode | 128 * fin])
    head = bytes([n]) if n < 126 else b"\x7e" + struct.pack(">H", n) if n < 65536 else b"\x7f" + struct.pack(">Q", n)
    return first + head + payload
