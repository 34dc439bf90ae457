"""Our readers of plugin files and checkpoints beside those of others, on good files and on damaged ones.

What ours accepts, ggml's gguf.h, Python's gguf and safetensors packages read too, and to the same numbers; what ours refuses, it refuses with
a sentence. Damage is seeded: a failure names its seed and leaves the file in the test's folder.
"""
import hashlib
import json
import random
import subprocess
import sys

import gguf
import numpy as np
import pytest
import safetensors

import plugins
import system

MUTANTS = 400


def check(kind, *paths):
    done = subprocess.run([system.BUILD / "tests" / "reader_check", kind, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-400:]}"
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(seen) == len(paths) - (kind == "adapter")
    return seen


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def by_python_gguf(path):
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: sha(gguf.quants.dequantize(t.data, t.tensor_type).astype("<f4")) for t in tensors}


def by_python_safetensors(path):
    names = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64"}
    with safetensors.safe_open(path, "np") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}
    return {name: [names.get(str(t.dtype), "other"), list(t.shape), sha(t)] for name, t in tensors.items()}


def damage(data, seed, head):
    """A few bytes changed, mostly among the first `head`, where the structure is; sometimes bytes cut off or put in."""
    rng, data = random.Random(seed), bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(min(head, len(data)) if rng.random() < 0.8 else len(data))
        what = rng.random()
        if what < 0.35:
            data[at] ^= 1 << rng.randrange(8)
        elif what < 0.7:
            data[at] = rng.choice((0, 1, 2, 8, 32, 127, 128, 255, rng.randrange(256)))
        elif what < 0.85:
            data[at:at + 8] = rng.choice((0, 1, 31, 32, 1 << 31, 1 << 63, (1 << 64) - 1)).to_bytes(8, "little")
        elif what < 0.95:
            a, b = sorted((at, min(len(data), at + rng.randrange(64))))
            data[a:b] = bytes(reversed(data[a:b]))
        else:
            del data[rng.randrange(64, len(data)):]
            data += b"\0" * rng.choice((0, 32))
    return bytes(data)


def disagreements(paths, seen, theirs):
    """Of the files that ours accepts, those that another reader refuses or reads differently; each refusal of ours is a sentence."""
    wrong = []
    for path, ours in zip(paths, seen, strict=True):
        if not ours["ok"]:
            assert len(ours["why"].split()) >= 4
            continue
        try:
            other = theirs(path)
        except Exception as e:   # whatever a reader makes of damage
            wrong.append(f"{path}: {type(e).__name__}: {str(e)[:200]}")
            continue
        if ours.get("ggml", "same") != "same" or ours["tensors"] != {name: other.get(name) for name in ours["tensors"]}:
            wrong.append(f"{path}: {ours.get('ggml')}, {[name for name in ours['tensors'] if ours['tensors'][name] != other.get(name)]}")
    accepted = sum(ours["ok"] for ours in seen)
    assert 0.02 * len(paths) < accepted < 0.9 * len(paths), "the damage is too mild or too rough to tell anything"
    return wrong


def mutants(source, folder, head):
    data, paths = source.read_bytes(), []
    for seed in range(MUTANTS):
        paths.append(folder / f"{seed}{source.suffix}")
        paths[-1].write_bytes(damage(data, seed, min(head, len(data))))
    return paths


@pytest.fixture(scope="module")
def plugin_files(tmp_path_factory, golden_plugins):
    folder = tmp_path_factory.mktemp("readers")
    made = {"f32": golden_plugins["add"]}
    for kind in ("f16", "q8_0"):
        made[kind] = folder / f"{kind}.gguf"
        system.good(system.spa("convert", golden_plugins["add"], made[kind], "--type", kind))
    return made


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_plugin_reader_agrees_with_ggml_and_pythons_gguf(plugin_files, tmp_path, kind):
    paths = [plugin_files[kind], *mutants(plugin_files[kind], tmp_path, 2200)]
    seen = check("gguf", *paths)
    assert seen[0]["ok"] and len(seen[0]["tensors"]) == 29
    assert disagreements(paths, seen, by_python_gguf) == []


def test_safetensors_reader_agrees_with_the_package(tmp_path):
    paths = [plugins.CHECKPOINT, *mutants(plugins.CHECKPOINT, tmp_path, 2600)]
    seen = check("safetensors", *paths)
    assert seen[0]["ok"]
    assert disagreements(paths, seen, by_python_safetensors) == []


def test_llama_adapter_loader_refuses_a_plugin_file(plugin_files, facts_sized_plugin):
    """Somebody hands a plugin to llama.cpp as a LoRA: an error, no crash, no adapter."""
    assert [x["ok"] for x in check("adapter", system.TINY, *plugin_files.values(), facts_sized_plugin)] == [False] * 4


@pytest.fixture(scope="module")
def facts_sized_plugin(tmp_path_factory, tiny):
    """With everything that training makes: basis, context attention, a gate of the taps."""
    folder = tmp_path_factory.mktemp("trained")
    rows = system.write_rows(folder / "rows.jsonl", [(f"What is {i}?", f"It is {i * i}.") for i in range(12)])
    system.good(system.spa("train", rows, "-o", folder / "trained.gguf", *tiny.reach(), "--epochs", "2", "--general", "0", "--basis", "task:32",
                           "--cache-dir", folder))
    return folder / "trained.gguf"


def test_adapter_folder_there_and_back_is_the_same_plugin(facts_sized_plugin, tmp_path):
    folder, back = tmp_path / "adapter", tmp_path / "back.gguf"
    system.good(system.spa("convert", facts_sized_plugin, f"{folder}/"))
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "SPA" and config["task_type"] == "CAUSAL_LM" and config["d"] == 64
    theirs = by_python_gguf(facts_sized_plugin)
    assert {name: t[2] for name, t in by_python_safetensors(folder / "adapter_model.safetensors").items()} == theirs
    system.good(system.spa("convert", folder, back))
    assert back.read_bytes() == facts_sized_plugin.read_bytes()
    said = system.one_sentence(system.spa("convert", facts_sized_plugin, folder))
    assert "exists already" in said


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_smaller_plugin_file_says_the_same(tiny, golden_plugins, plugin_files, kind):
    """Every margin of the golden generations is at least 0.06."""
    for gate in ("always", "auto"):
        whole, smaller = (system.ask(tiny, "Hello, how are you?", plugin, gate=gate) for plugin in (golden_plugins["add"], plugin_files[kind]))
        if kind == "f16":
            assert smaller["tokens"] == whole["tokens"]
        assert smaller["stats"]["gated"] > 0
    assert plugin_files[kind].stat().st_size < golden_plugins["add"].stat().st_size


def test_plugin_document_is_enough_to_compute_with(tmp_path):
    """tests/test_plugin_gguf.py does what PLUGIN.md says with numpy and the gguf package alone."""
    done = subprocess.run([sys.executable, system.HERE.parent / "test_plugin_gguf.py", system.SPA], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
