"""Writes first inputs for fuzz_features: a small whole file, as it is and with sums to be put right, without and with a basis.

    python3 fuzz/feature_corpus.py FOLDER
"""
import hashlib
import pathlib
import struct
import sys

D, VOCAB, TAPS, CONTEXT = 4, 50, [0, 2], [2]


def sha(*pieces):
    return hashlib.sha256(b"".join(pieces)).digest()


def pad(block):
    return block + bytes(-len(block) % 8)


def number(field, value):
    return bytes([field << 3]) + (bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7]))


def block(field, value):
    return bytes([field << 3 | 2, len(value)]) + value


def header(basis):
    model = block(3, b"tiny") + block(4, bytes(range(32))) + number(5, D) + number(6, 2) + number(7, VOCAB) + number(8, 64) \
        + bytes([16 << 3 & 127 | 5 | 128, 1]) + struct.pack("<f", 1)
    plugin = number(1, D) + number(2, 2) + block(3, bytes(TAPS)) + number(4, D) + number(5, 1) \
        + (number(6, 1) + block(7, sha(basis)) if basis else b"") + block(9, bytes(CONTEXT))
    whole = b"SPAFEAT\n" + struct.pack("<IIIIQ", 1, len(model), len(plugin), 0, len(basis)) + pad(model + plugin) + pad(basis)
    return whole + sha(whole)


def record(header_sum, kind, key, n_tokens, n_ctx, n_loss, refused, bulk):
    head = b"REC\n" + struct.pack("<I", kind) + key + struct.pack("<IIIIIIQ", n_tokens, n_ctx, n_loss, refused, 64 if refused else 0, 0, len(bulk))
    return head + sha(header_sum, head, pad(bulk))[:24] + pad(bulk)


def features(n_ctx, n_loss):
    words = list(range(n_loss)) + [i * 3 for i in range(n_loss)]
    floats = n_ctx * len(CONTEXT) * D + n_loss * (len(TAPS) * D + D)
    return struct.pack(f"<{len(words)}I{floats}f", *words, *([0.5] * floats))


def file(basis):
    begin = header(basis)
    records = [record(begin[-32:], 1, b"k" * 16, 4, 3, 2, 0, features(3, 2)), record(begin[-32:], 1, b"l" * 16, 0, 0, 0, 7, b"too long"),
               record(begin[-32:], 3, b"m" * 16, 6, 5, 1, 0, features(5, 1))]
    length = len(begin) + sum(map(len, records)) + 64
    footer = b"END\n" + struct.pack("<IQQQ", 0, len(records), length, 0)
    return begin + b"".join(records) + footer + sha(begin[-32:], *(r[56:80] for r in records), footer)


folder = pathlib.Path(sys.argv[1])
with_basis = struct.pack(f"<{len(TAPS) * (1 + D + D * D)}f", *([0.5] * (len(TAPS) * (1 + D + D * D))))
for name, basis in (("plain", b""), ("basis", with_basis)):
    for right in (0, 1):
        (folder / f"{name}{right}").write_bytes(bytes([right]) + file(basis))
