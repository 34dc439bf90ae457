"""Parity through the whole system: the authors' checkpoint, converted, makes the tokens of tiny.generations.json."""
import json

import pytest

import plugins
import system

GENERATIONS = json.loads((system.GOLDEN / "tiny.generations.json").read_text())["generations"]
CHAT = "Hello, how are you?"   # the first prompt is its ChatML form; the others are raw bytes, one token each


def name_of(case):
    return f"{case['mode']}-{case['gate']}-{len(case['prompt'])}"


@pytest.mark.parametrize("case", GENERATIONS, ids=name_of)
def test_golden_generation_equals_the_authors_module(tiny, golden_plugins, case):
    is_chat = max(case["prompt"]) > 255
    got = system.ask(tiny, CHAT if is_chat else bytes(case["prompt"]).decode(), golden_plugins[case["mode"]],
                     verb="chat" if is_chat else "complete", n=len(case["tokens"]),
                     gate="always" if case["gate"] == "always" else "auto")
    assert got["tokens"] == case["tokens"]
    asked = [1] * len(case["tokens"]) if case["gate"] == "always" else case["gates"]
    assert got["by"] == ["plugin" if gate else "base" for gate in asked]
    assert got["stats"]["gated"] == sum(asked)
    assert got["finish_reason"] == "length"


def test_golden_gate_never_is_the_base_model(tiny, golden_plugins):
    """The same tokens as without a plugin, and nothing is asked."""
    alone = system.ask(tiny, CHAT)
    never = system.ask(tiny, CHAT, golden_plugins["add"], gate="never")
    assert never["tokens"] == alone["tokens"]
    assert set(never["by"]) == set(alone["by"]) == {"base"}
    assert never["stats"]["gated"] == 0


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_convert_there_and_back_is_bit_for_bit(golden_plugins, tmp_path, mode):
    back = tmp_path / "back.safetensors"
    system.good(system.spa("convert", golden_plugins[mode], back))
    assert plugins.read_safetensors(back) == plugins.read_safetensors(plugins.CHECKPOINT)


def test_convert_refuses_a_pickle_and_says_how_to_go_on(tmp_path):
    result = system.spa("convert", system.GOLDEN / "tiny.plugin.bin", tmp_path / "out.gguf", "--mode", "add")
    said = system.one_sentence(result)
    assert "tiny.plugin.bin" in said and "save_file" in said
    assert list(tmp_path.iterdir()) == []


def test_inspect_says_the_shape_of_a_converted_file(golden_plugins):
    seen = json.loads(system.good(system.spa("inspect", golden_plugins["add"], "--json")).stdout)
    assert {key: seen[key] for key in ("d", "r", "m", "k", "n_layers", "taps", "mode", "basis", "context", "base_hash")} == {
        "d": 64, "r": 8, "m": 64, "k": 64, "n_layers": 4, "taps": [0, 1, 2, 3, 4], "mode": "add", "basis": False,
        "context": None, "base_hash": None}
