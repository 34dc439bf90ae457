"""Writes first inputs for the fuzz targets whose inputs are not text: small, of every form that the reader knows. The kept corpora in
fuzz/corpus began with them and were made smaller by coverage (SPA_FUZZ_KEEP of tools/fuzz).

    python3 fuzz/seeds.py SPA FOLDER      SPA: the program, which converts; FOLDER/TARGET/...
"""
import hashlib
import itertools
import json
import pathlib
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "e2e"))
import wire  # noqa: E402

D, VOCAB, TAPS, CONTEXT = 4, 50, [0, 2], [2]


def sha(*pieces):
    return hashlib.sha256(b"".join(pieces)).digest()


def pad(block):
    return block + bytes(-len(block) % 8)


def floats(n, scale=1.0):
    return struct.pack(f"<{n}f", *(scale * ((7 * i) % 11 - 5) / 10 for i in range(n)))


# ---- feature files ----

def feature_file(basis):
    model = wire.encode("WELCOME", {"model": "tiny", "model_hash": bytes(range(32)), "d": D, "n_layers": 2, "n_vocab": VOCAB, "n_ctx": 64, "logit_scale": 1})
    plugin = wire.encode("PLUGIN", {"d": D, "n_layers": 2, "taps": TAPS, "k": D, "rms": True, **({"basis": True, "basis_hash": sha(basis)} if basis else {}),
                                    "ctx_taps": CONTEXT})
    whole = b"SPAFEAT\n" + struct.pack("<IIIIQ", 1, len(model), len(plugin), 0, len(basis)) + pad(model + plugin) + pad(basis)
    begin = whole + sha(whole)

    def record(kind, key, n_tokens, n_ctx, n_loss, refused, bulk):
        head = b"REC\n" + struct.pack("<I", kind) + key + struct.pack("<IIIIIIQ", n_tokens, n_ctx, n_loss, refused, 64 if refused else 0, 0, len(bulk))
        return head + sha(begin[-32:], head, pad(bulk))[:24] + pad(bulk)

    def features(n_ctx, n_loss):
        words = list(range(n_loss)) + [i * 3 for i in range(n_loss)]
        return struct.pack(f"<{len(words)}I", *words) + floats(n_ctx * len(CONTEXT) * D + n_loss * (len(TAPS) * D + D))
    records = [record(1, b"k" * 16, 4, 3, 2, 0, features(3, 2)), record(1, b"l" * 16, 0, 0, 0, 7, b"too long"), record(3, b"m" * 16, 6, 5, 1, 0, features(5, 1))]
    footer = b"END\n" + struct.pack("<IQQQ", 0, len(records), len(begin) + sum(map(len, records)) + 64, 0)
    return begin + b"".join(records) + footer + sha(begin[-32:], *(r[56:80] for r in records), footer)


def feature_seeds():
    basis = floats(len(TAPS) * (1 + D + D * D))
    return [bytes([right]) + feature_file(b) for b in (b"", basis) for right in (0, 1)]


# ---- checkpoints, plugins, adapters ----

def checkpoint(d, n_layers, r, m, dtype="F32"):
    """A published checkpoint of this shape."""
    tensors = {"ladder_side.input_adapter.weight": [r, d], "ladder_side.input_adapter.bias": [r], "ladder_side.output_adapter.weight": [d, r],
               "ladder_side.output_adapter.bias": [d], "opt.weight": [2, d]}
    for i in range(n_layers):
        tensors |= {f"ladder_side.down_adapters.{i}.weight": [r, d], f"ladder_side.down_adapters.{i}.bias": [r]}
        side = f"ladder_side.side_adapters.{i}.adapter_"
        tensors |= {side + "h_to_r.weight": [m, r], side + "h_to_r.bias": [m], side + "r_to_h.weight": [r, m], side + "r_to_h.bias": [r]}
    return safetensors(tensors, dtype)


def safetensors(tensors, dtype="F32"):
    head, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in tensors.items():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        numbers = floats(n) if dtype == "F32" else bytes(2 * n)
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def checkpoint_seeds():
    return [checkpoint(4, 2, 2, 4), checkpoint(4, 1, 1, 2, "F16"), checkpoint(3, 1, 2, 3, "BF16"), safetensors({"a": [2, 3], "b": [1]})]


def plugin_seeds(spa, folder):
    """A checkpoint as plugin files of every type, and as adapter folders; whatever trained plugins lie beside `folder` as sample*.gguf, too."""
    plugins, adapters = [], []
    (folder / "c.safetensors").write_bytes(checkpoint(32, 1, 2, 32))
    sources = [folder / "c.safetensors", *sorted(folder.glob("sample*.gguf"))]
    for number, (source, kind) in enumerate(itertools.product(sources, ("f32", "f16", "q8_0"))):
        out = folder / f"p{number}.gguf"
        if subprocess.run([spa, "convert", source, out, "--type", kind], capture_output=True).returncode == 0:
            plugins.append(out.read_bytes())
        adapter = folder / f"a{number}"
        if subprocess.run([spa, "convert", source, f"{adapter}/", "--type", kind], capture_output=True).returncode == 0:
            adapters.append((adapter / "adapter_config.json").read_bytes() + b"\0" + (adapter / "adapter_model.safetensors").read_bytes())
    return plugins, adapters


# ---- files of sums ----

def file_seeds():
    keys = [b"\0sha256:" + b"5a" * 32 + b" a name\nsha256:zz\n", b"\0first\nsecond\r\n# no key\n\nBearer second", b"\0# nothing\n", b"\0" + b"x" * 600]
    n = 6
    saved = b"SPACKPT\n" + struct.pack("<II", 1, 0) + bytes(32) + struct.pack("<QQ", 17, n) + floats(3 * n)
    basis = b"SPABASE1" + bytes(32) + struct.pack("<IIIIQ", 4, 2, 2, 0, 1000)
    for _ in range(3):
        basis += struct.pack("<dd", 2.0, 1.0) + floats(4 * 3)
    words = [b"\3--flag\n--number=7\n-n\n-5\n--share\n0.5\nws://example.org:81/v1/spa\n", b"\3--list\na\n-l=b\n--seed\n18446744073709551615\n--choice\nauto\n--\n-x\n127.0.0.1",
             b"\3--nmber\n3\n", b"\3--help\n", b"\3--describe\n", b"\3wss://[::1]:9\nws://h/p/q\nlocalhost\n::1\n", b"\3--string\n", b"\3--share=nan\n", b"\3--flag=1\n"]
    return keys + [bytes([flag]) + block + bytes(32) for block, flag in ((saved, 5), (basis, 6))] + [b"\1" + saved + sha(saved), b"\2" + basis + sha(basis)] + words


def anchor_seeds():
    """Sums and heads are put right by the target: what counts is the layout."""
    n, answer, layers, d = 3, 4 + 4 * 24, 2, 16
    answers = bytes(8 + 32 + 8) + b"".join(struct.pack("<I", k) + struct.pack("<24i", *range(24)) for k in (2, 24, 25)) + bytes(32)
    head = 8 + 32 + 16 + 4 * layers + n * (16 + 32) + 32
    prompts = [[(ord(c) - 32) & 0x5F if c != "\n" else 96 for c in f"user:{text}\nassistant:"] for text in ("hi", "what is it?", "a longer question")]
    records, table, at = b"", b"", (head + 7) // 8 * 8
    for prompt in prompts:
        length, tokens = len(prompt), len(prompt) + 2
        groups = (tokens - 1) * layers + 2
        record = struct.pack("<II", length, tokens) + struct.pack(f"<{tokens}i", *prompt, 7, 96) + bytes(groups * (4 + 2 * d))
        table += struct.pack("<QQ", at, len(record)) + bytes(32)
        records += pad(record)
        at += len(pad(record))
    states = bytes(8 + 32 + 16 + 4 * layers) + table + bytes(32)
    states += bytes(-len(states) % 8) + records
    foreign = states.replace(struct.pack("<ii", 7, 96), struct.pack("<ii", 7, 97), 1)   # a token that the model does not have
    return [bytes([flags]) + struct.pack("<H", len(answers)) + answers + states for flags in (7, 3, 1, 0)] + \
        [bytes([7]) + struct.pack("<H", 0) + block for block in (states, foreign)]


# ---- the wire, at both ends: byte 0 chooses the plugin and how far a conversation has come, byte 1 the size of the pieces ----

WELCOME = {"version": 1, "server": "s", "model": "m", "d": 8, "n_layers": 4, "n_vocab": 100, "n_ctx": 64, "max_message": 65536, "max_requests": 2,
           "learn_window": 3, "logit_scale": 1.0, "loss_window": 2, "n_anchors": 2, "pads": True}


def session_seeds():
    taps = {"request": 1, "pos": 3, "n_rows": 1, "asked": [0]}
    row = {"f32": 64, "f16": 32}
    said = [wire.pack("TOKENS", {"request": 1, "ids": [3, 4], "by": [0, 1]}, b"abc"), wire.pack("DONE", {"request": 1, "finish": 1, "completion_tokens": 2}),
            wire.pack("ERROR", {"request": 2, "code": 6}, b"no"), wire.pack("ERROR", {"code": 11}, b"going down"), wire.pack("FITTED", {"hash": bytes(32), "total": 4 * 2 * 25}),
            wire.pack("BLOB", {"hash": bytes(32), "total": 100}, bytes(50)), wire.pack("ERROR", {"row": 1, "is_row": True, "code": 7}, b"long"),
            wire.pack("LOSSES", {"id": 1, "n": 2, "gradient": True}, bytes(8 + 64)), wire.pack("LOSSES", {"id": 2, "n": 1, "top": True}, bytes(8)),
            wire.pack("LOGPROBS", {"request": 1, "n": 1}, struct.pack("<ifI", 3, -0.5, 1) + b"x"),
            wire.pack("FEATURES", {"row": 1, "n_tokens": 5, "n_loss": 1}, struct.pack("<Ii", 2, 7) + bytes(64 + 32)),
            wire.pack("FEATURES", {"row": 1, "n_tokens": 5, "n_ctx": 4, "n_loss": 1}, struct.pack("<Ii", 2, 7) + bytes(4 * 32 + 64 + 32))]
    out = [bytes([0, 0]) + wire.pack("WELCOME", WELCOME), bytes([4, 3]) + wire.pack("WELCOME", WELCOME | {"need_basis": True})]
    for how in (2, 3, 6, 10, 18, 34, 66, 130, 134, 135):
        for n in row.values():
            out.append(bytes([how, 0]) + wire.pack("TAPS", taps, bytes(n)) + wire.pack("TAPS", taps | {"epoch": 1, "pos": 0, "n_rows": 2, "asked": [1]}, bytes(n + n // 2)))
        out += [bytes([how, 5]) + b"".join(said[i:i + 3]) for i in range(0, len(said), 2)]
    return out


def host_seeds():
    plugin = {"d": 8, "n_layers": 4, "taps": [0, 4], "k": 8}
    hello = [wire.pack("HELLO", {"version": 1, "client": "c", "max_message": 65536}),
             wire.pack("HELLO", {"version": 1, "max_message": 65536, "plugin": plugin | {"has_gate": True, "gate_bias": 0.5}}, floats(8)),
             wire.pack("HELLO", {"version": 1, "max_message": 65536, "plugin": plugin | {"has_gate": True, "gate_taps": True}}, floats(8 + 16))]
    asks = {"request": 2, "n_predict": 4, "temp": 0.5, "top_p": 0.9, "repeat_penalty": 1.1, "gate": 1}
    said = [wire.pack("GENERATE", asks, wire.part(2, b"hello") + wire.part(5, b"stop")), wire.pack("GENERATE", asks | {"raw": True, "run_ahead": 3}, wire.part(4, b"text")),
            wire.pack("GENERATE", asks | {"after": 1, "after_to": 3}, wire.part(1, b"s") + wire.part(2, b"u") + wire.part(6, struct.pack("<ii", 3, 4))),
            wire.pack("GENERATE", asks | {"pad": True, "logprobs": 3, "late": 1}, wire.part(2, "ü".encode())), wire.pack("CANCEL", {"request": 1}),
            wire.pack("STATE", {"request": 1, "pos": 3, "n": 1, "draft_index": 1, "draft": [4, 0, 5]}, bytes(32)), wire.pack("STATE", {"request": 1, "pos": 1, "n": 1}, bytes(16)),
            wire.pack("STATE", {"request": 1, "pos": 1, "n": 1}, bytes(10)), wire.pack("LEARN", {"row": 1}, wire.part(2, b"q") + wire.part(0x83, b"a")),
            wire.pack("LEARN", {"row": 2, "fit": True, "last": True, "more": True}, wire.part(0x84, b"a")), wire.pack("LEARN", {"row": 1, "anchor": True}),
            wire.pack("FETCH", {"hash": bytes(32)}), wire.pack("BLOB", {"kind": 1, "hash": bytes(32), "total": 200}, bytes(200)),
            wire.pack("LOSS", {"id": 1, "n": 1, "gradient": True, "top": True}, struct.pack("<i", 3) + floats(8)), wire.pack("ERROR", {"code": 1}, b"bye")]
    out = [bytes([0, 0]) + h + said[0] for h in hello]
    for how in (1, 2, 3, 5, 6, 7, 10, 18, 34, 39, 66, 98, 131, 135):
        out += [bytes([how, 7]) + b"".join(said[i:i + 3]) for i in range(0, len(said), 3)]
    return out


def main(spa, folder):
    plugins, adapters = plugin_seeds(spa, folder)
    for target, seeds in {"features": feature_seeds(), "safetensors": checkpoint_seeds(), "plugin": plugins, "adapter": adapters, "files": file_seeds(),
                          "anchors": anchor_seeds(), "session": session_seeds(), "host": host_seeds()}.items():
        (folder / target).mkdir(exist_ok=True)
        for seed in seeds:
            (folder / target / sha(seed).hex()[:16]).write_bytes(seed)


main(pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]))
