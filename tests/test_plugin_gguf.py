"""PLUGIN.md, followed by somebody else: the golden checkpoint, converted by `spa`, is read with the gguf package of Python and run
with numpy alone; the states equal those of the authors' module. A plugin with context attention that looks back is read and run, too.

    python tests/test_plugin_gguf.py build/spa          (skipped without the packages gguf and numpy)
"""
import json
import os
import struct
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy as np
except ImportError:
    gguf = None

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")


def safetensors(name):
    with open(os.path.join(GOLDEN, name), "rb") as f:
        block = f.read()
    n = struct.unpack("<Q", block[:8])[0]
    out = {}
    for key, t in json.loads(block[8:8 + n]).items():
        if key != "__metadata__" and t["dtype"] == "F32":
            begin, end = t["data_offsets"]
            out[key] = np.frombuffer(block[8 + n + begin:8 + n + end], "<f4").reshape(t["shape"])
    return out


def relu(x):
    return np.maximum(x, 0)


def attention(w, name, asks, seen, heads):
    """asks [T, .], seen [T, e] -> [T, .]: what each row of seen up to the same row says"""
    q, k, v = (a @ w[f"{name}.W{c}"].T + w[f"{name}.b{c}"] for c, a in zip("qkv", (asks, seen, seen)))
    out = []
    for q, k, v in zip(*(np.split(m, heads, axis=1) for m in (q, k, v))):
        scores = np.exp(q @ k.T / np.sqrt(k.shape[1])) * np.tri(len(q))
        out.append(scores / scores.sum(axis=1, keepdims=True) @ v)
    return np.concatenate(out, axis=1)


def context(w, keys, x):
    """x: context taps [T, k] one after the other -> what keys and values are made of [T, e]"""
    c = relu(np.concatenate(x, axis=1) @ w["ctx.W"].T + w["ctx.b"])
    return c + attention(w, "ctx.mix", c, c, keys["spa.context.heads"]) if keys.get("spa.context.mix") else c


def ladder(w, keys, x):
    """x: an array [T, k] for each tap -> z [T, d]"""
    taps, rungs = keys["spa.taps"], keys.get("spa.context.rungs", [])
    seen = context(w, keys, [x[taps.index(i)] for i in keys["spa.context.taps"]]) if rungs else None
    for i in range(len(taps)):
        h_i = x[i] @ w[f"W.{i}"].T + w[f"b.{i}"]
        if i > 0:
            v = relu(h)
            h_i += v + relu(v @ w[f"U.{i}"].T + w[f"c.{i}"]) @ w[f"V.{i}"].T + w[f"e.{i}"]
        h = h_i + attention(w, f"att.{i}", relu(h_i), seen, keys["spa.context.heads"]) if i in rungs else h_i
    return relu(h) @ w["W_out"].T + w["b_out"]


def read(path):
    reader = gguf.GGUFReader(path)
    keys = {k: f.contents() for k, f in reader.fields.items()}
    return keys, {t.name[len("spa."):]: np.array(t.data, copy=True) for t in reader.tensors}


def largest_difference(z, expected):
    error = np.abs(z - expected).max() / np.abs(expected).max()
    assert error < 1e-5, error    # two orders of F32 sums
    return error


def looks_back():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([os.path.join(os.path.dirname(sys.argv[1]), "tests", "plugin_sample"), folder], check=True)
        keys, w = read(os.path.join(folder, "sample.gguf"))
        assert keys["spa.version"] == 2 and keys["spa.context.mix"] is True
        x = np.fromfile(os.path.join(folder, "x.f32"), "<f4").reshape(-1, len(keys["spa.taps"]), keys["spa.k"])
        z = np.fromfile(os.path.join(folder, "z.f32"), "<f4").reshape(-1, keys["spa.d"])
    return largest_difference(ladder(w, keys, [x[:, i] for i in range(x.shape[1])]), z)


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tiny.gguf")
        subprocess.run([sys.argv[1], "convert", os.path.join(GOLDEN, "tiny.plugin.safetensors"), path, "--mode", "add",
                        "--base-name", "Tiny"], check=True)
        keys, w = read(path)

    assert keys["general.type"] == "adapter" and keys["adapter.type"] == "spa" and keys["spa.version"] == 1
    assert [keys["spa." + k] for k in ("d", "n_layers", "r", "m", "k")] == [64, 4, 8, 64, 64]
    assert keys["spa.taps"] == [0, 1, 2, 3, 4] and keys["spa.mode"] == "add" and keys["spa.base.name"] == "Tiny"

    theirs = safetensors("tiny.plugin.safetensors")
    assert np.array_equal(w["W.2"], theirs["ladder_side.down_adapters.1.weight"])
    assert np.array_equal(w["gate.weight"], theirs["opt.weight"])

    vectors = safetensors("tiny.vectors.safetensors")
    z = ladder(w, keys, [vectors[f"state.{i}"] for i in range(5)])
    error = max(largest_difference(z, vectors["side"]), looks_back())
    print(f"ok: largest difference {error:.1e} of the largest value")


if __name__ == "__main__":
    if not gguf:
        sys.exit(77)   # what CTest calls skipped
    main()
