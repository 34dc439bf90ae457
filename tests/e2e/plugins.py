"""Plugin files and checkpoints from the outside: reads tensors of a GGUF, writes safetensors, makes plugins that differ.

Only what the tests need, written from PLUGIN.md and the safetensors format, so that it is a second opinion on our own files.
"""
import array
import json
import random
import struct

import system

CHECKPOINT = system.GOLDEN / "tiny.plugin.safetensors"
ALIGNMENT = 32
# GGUF's value types with a fixed size; 8 is a string, 9 an array.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def read_gguf(path):
    """Name -> bytes of every F32 tensor."""
    data, at = path.read_bytes(), 0

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0]

    def string():
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length:at].decode()

    def skip_value(kind):
        nonlocal at
        if kind == 8:
            string()
        elif kind == 9:
            inner, n = take("I"), take("Q")
            for _ in range(n):
                skip_value(inner)
        else:
            at += SIZES[kind]

    assert data[:4] == b"GGUF"
    at = 4
    _version, n_tensors, n_keys = take("I"), take("Q"), take("Q")
    for _ in range(n_keys):
        string()
        skip_value(take("I"))
    found = []
    for _ in range(n_tensors):
        name, length = string(), 4
        for _ in range(take("I")):
            length *= take("Q")
        assert take("I") == 0, f"{name} is not F32"
        found.append((name, take("Q"), length))
    start = (at + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return {name: data[start + offset:start + offset + length] for name, offset, length in found}


def ladder_tensors(path):
    """The weights that must stay at home: everything but the gate and the basis, which the cloud needs."""
    return {name: data for name, data in read_gguf(path).items() if not name.startswith("spa.gate") and name != "spa.basis"}


def read_safetensors(path):
    """Name -> (shape, bytes)."""
    data = path.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    head = json.loads(data[8:8 + length])
    head.pop("__metadata__", None)
    return {name: (t["shape"], data[8 + length + t["data_offsets"][0]:8 + length + t["data_offsets"][1]])
            for name, t in head.items()}


def write_safetensors(path, tensors):
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, data) in tensors.items():
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))
    return path


def convert(checkpoint, plugin, mode):
    system.good(system.spa("convert", checkpoint, plugin, "--mode", mode))
    return plugin


def perturbed(folder, seed):
    """The golden checkpoint with every weight moved a little, as a plugin."""
    rng, tensors = random.Random(seed), {}
    for name, (shape, data) in read_safetensors(CHECKPOINT).items():
        numbers = array.array("f", data)
        size = max(abs(x) for x in numbers)
        tensors[name] = shape, array.array("f", (x + 0.3 * size * rng.uniform(-1, 1) for x in numbers)).tobytes()
    return convert(write_safetensors(folder / f"{seed}.safetensors", tensors), folder / f"{seed}.gguf", "add")


def random_checkpoint(folder, seed, d, n_layers, r, strength, bias=0.1):
    """A plugin of the authors' form for any base model. strength: how far it moves the base model's states; with a bias of 0 as well, not at all."""
    rng = random.Random(seed)

    def matrix(rows, cols, scale=1.0):
        bound = scale / cols ** 0.5
        return [rows, cols], array.array("f", (rng.uniform(-bound, bound) for _ in range(rows * cols))).tobytes()

    def vector(n, bound=0.1):
        return [n], array.array("f", (rng.uniform(-bound, bound) for _ in range(n))).tobytes()

    tensors = {"ladder_side.input_adapter.weight": matrix(r, d), "ladder_side.input_adapter.bias": vector(r)}
    for i in range(n_layers):
        # The deepest layers' states are a hundred times as large as the embedding: small weights keep h in bounds.
        tensors[f"ladder_side.down_adapters.{i}.weight"] = matrix(r, d, 0.05)
        tensors[f"ladder_side.down_adapters.{i}.bias"] = vector(r)
        side = f"ladder_side.side_adapters.{i}.adapter_"
        tensors[side + "h_to_r.weight"], tensors[side + "h_to_r.bias"] = matrix(d, r, 0.1), vector(d)
        tensors[side + "r_to_h.weight"], tensors[side + "r_to_h.bias"] = matrix(r, d, 0.1), vector(r)
    tensors["ladder_side.output_adapter.weight"] = matrix(d, r, strength)
    tensors["ladder_side.output_adapter.bias"] = vector(d, bias)
    tensors["opt.weight"] = matrix(2, d)
    return convert(write_safetensors(folder / f"random{seed}.safetensors", tensors), folder / f"random{seed}.gguf", "add")
