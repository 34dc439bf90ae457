"""PLUGIN.md, followed by somebody else: the golden checkpoint, converted by `spa`, is read with the gguf package of Python and run
with numpy alone; the states equal those of the authors' module.

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


def ladder(w, n_taps, x):
    """x: n_taps arrays [T, k] -> z [T, d]"""
    h = x[0] @ w["W.0"].T + w["b.0"]
    for i in range(1, n_taps):
        v = relu(h)
        a = v + relu(v @ w[f"U.{i}"].T + w[f"c.{i}"]) @ w[f"V.{i}"].T + w[f"e.{i}"]
        h = x[i] @ w[f"W.{i}"].T + w[f"b.{i}"] + a
    return relu(h) @ w["W_out"].T + w["b_out"]


def main():
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tiny.gguf")
        subprocess.run([sys.argv[1], "convert", os.path.join(GOLDEN, "tiny.plugin.safetensors"), path, "--mode", "add",
                        "--base-name", "Tiny"], check=True)
        reader = gguf.GGUFReader(path)
        keys = {k: f.contents() for k, f in reader.fields.items()}
        w = {t.name[len("spa."):]: np.array(t.data, copy=True) for t in reader.tensors}
        del reader

    assert keys["general.type"] == "adapter" and keys["adapter.type"] == "spa" and keys["spa.version"] == 1
    assert [keys["spa." + k] for k in ("d", "n_layers", "r", "m", "k")] == [64, 4, 8, 64, 64]
    assert keys["spa.taps"] == [0, 1, 2, 3, 4] and keys["spa.mode"] == "add" and keys["spa.base.name"] == "Tiny"

    theirs = safetensors("tiny.plugin.safetensors")
    assert np.array_equal(w["W.2"], theirs["ladder_side.down_adapters.1.weight"])
    assert np.array_equal(w["gate.weight"], theirs["opt.weight"])

    vectors = safetensors("tiny.vectors.safetensors")
    z = ladder(w, 5, [vectors[f"state.{i}"] for i in range(5)])
    error = np.abs(z - vectors["side"]).max() / np.abs(vectors["side"]).max()
    assert error < 1e-5, error    # two orders of F32 sums
    print(f"ok: largest difference {error:.1e} of the largest value")


if __name__ == "__main__":
    if not gguf:
        sys.exit(77)   # what CTest calls skipped
    main()
