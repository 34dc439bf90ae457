"""adapter - LoRA adapter files that llama-server loads: of the right shapes for a base model, with small random weights.

What they say does not matter where only their cost is measured. GGUF is read and written here as far as that needs."""
import array
import random
import struct

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32


def tensors_of(path):
    """Name -> dimensions of a GGUF's tensors, and the value of general.architecture."""
    with open(path, "rb") as f:
        def take(form):
            return struct.unpack("<" + form, f.read(struct.calcsize("<" + form)))[0]

        def string():
            return f.read(take("Q")).decode()

        def value(kind):
            if kind == 8:
                return string()
            if kind == 9:
                inner, n = take("I"), take("Q")
                for _ in range(n):
                    value(inner)
                return None
            f.read(SIZES[kind])
            return None

        if f.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF")
        take("I")
        n_tensors, n_keys = take("Q"), take("Q")
        keys = {}
        for _ in range(n_keys):
            name = string()
            keys[name] = value(take("I"))
        found = {}
        for _ in range(n_tensors):
            name = string()
            found[name] = [take("Q") for _ in range(take("I"))]
            take("I"), take("Q")
    return found, keys["general.architecture"]


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def write(path, model, rank=8, seed=1):
    """Rank-r adapters of q and v in every layer, as bench/peers/lora.py trains them."""
    shapes, architecture = tensors_of(model)
    dice, tensors = random.Random(seed), []
    for name, (n_in, n_out) in ((n, s) for n, s in shapes.items() if n.endswith(("attn_q.weight", "attn_v.weight"))):
        for part, dims in (("lora_a", (n_in, rank)), ("lora_b", (rank, n_out))):
            tensors.append((f"{name}.{part}", dims, array.array("f", (dice.gauss(0, 0.01) for _ in range(dims[0] * dims[1]))).tobytes()))
    keys = [(k, struct.pack("<I", 8) + string(v)) for k, v in
            (("general.architecture", architecture), ("general.type", "adapter"), ("adapter.type", "lora"))]
    keys.append(("adapter.lora.alpha", struct.pack("<If", 6, 2.0 * rank)))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(string(k) + v for k, v in keys)
    at = 0
    for name, dims, data in tensors:
        head += string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, at)
        at += len(data) + -len(data) % ALIGNMENT
    with open(path, "wb") as out:
        out.write(head + bytes(-len(head) % ALIGNMENT))
        for _, _, data in tensors:
            out.write(data + bytes(-len(data) % ALIGNMENT))
    return path
