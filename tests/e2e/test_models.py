"""Base models of other kinds: for each, z = 0 is the base model, losses are those of its own logits, and training reads the right rows.

The random ones are made by tests/models.py; Gemma 3 270M (scaled embedding, tied head, window attention) comes from SPA_GEMMA.
"""
import json
import os
import pathlib
import subprocess
import sys

import pytest

import plugins
import system

sys.path.insert(0, str(system.HERE.parent))
import models  # noqa: E402

GEMMA = pathlib.Path(os.environ.get("SPA_GEMMA", ""))
PROMPT = "Tell me about the weather."
TEXTS = ["My dog is called Biscuit and he sleeps on the blue chair by the window.", "My sister Mara plays the cello in an orchestra in Leeds.",
         "The wifi password of the cabin is larkspur forty, all in one word."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def path_of(folder, name):
    if name != "gemma3":
        path = folder / f"{name}.gguf"
        return path if path.exists() else models.make(folder, name)
    assert GEMMA.is_file(), "SPA_GEMMA leads to no model; run tools/setup"
    return GEMMA


def text_rows(path, texts=TEXTS):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def nothing(folder, d, n_layers):
    """A plugin whose z is 0 everywhere."""
    path = folder / f"nothing{d}-{n_layers}.gguf"
    return path if path.exists() else plugins.random_checkpoint(folder, f"nothing{d}-{n_layers}", d, n_layers, 4, 0.0, bias=0.0)


@pytest.mark.parametrize("name", [*models.MODELS, "gemma3"])
def test_model_logits_losses_and_taps_are_libllamas_own(folder, name):
    done = subprocess.run([system.BUILD / "tests" / "model_check", path_of(folder, name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["largest"] > 1
    assert seen["logits"] <= 1e-3
    # libllama rounds states to 8 bits for the product with a quantised or F16 head, training does not: that alone may differ.
    exact = name in ("qwen2-f32", "gpt2", "phi2", "gemma2", "gemma2-cap30", "granite", "command-r", "mamba", "lfm2")
    assert seen["loss"] <= (1e-4 if exact else 0.5 if name == "gemma3" else 0.1)
    # Answers and training rows take different products: of noise tokens a real model makes wide differences from last bits.
    assert seen["taps"] <= (0.5 if name == "gemma3" else 1e-2)
    assert seen["continued"] <= (0.5 if name == "gemma3" else 1e-2)
    assert seen["cuts"] == (name not in ("mamba", "lfm2"))


@pytest.mark.parametrize("name", ["qwen2-q4_k", "qwen2-bias", "gpt2", "gemma2", "granite", "mamba", "lfm2", "gemma3"])
def test_model_with_z_0_says_what_the_base_says(folder, start_cloud, name):
    cloud = start_cloud(path_of(folder, name), "-c", "2048", "-np", "2")
    d, n_layers = (640, 18) if name == "gemma3" else (models.D, models.N)
    base = system.ask(cloud, PROMPT, verb="complete")
    with_0 = system.ask(cloud, PROMPT, nothing(folder, d, n_layers), verb="complete", gate="always")
    assert with_0["tokens"] == base["tokens"] and len(base["tokens"]) > 4
    assert set(with_0["by"]) == {"plugin"} and set(base["by"]) == {"base"}


@pytest.mark.parametrize("name", ["mamba", "lfm2"])
def test_model_without_tail_to_cut_waits_for_every_state(folder, start_cloud, name):
    """Recurrent and hybrid: run-ahead guesses once, cannot go back, says so and guesses no more; the tokens are those of a cloud that never guesses."""
    plugin = plugins.random_checkpoint(folder, f"strong-{name}", models.D, models.N, 4, 40.0)
    ahead = start_cloud(path_of(folder, name), "-c", "2048", "-np", "2", "--run-ahead-always")
    waits = start_cloud(path_of(folder, name), "-c", "2048", "-np", "2", "--run-ahead", "0")
    a, b = (system.ask(cloud, PROMPT, plugin, verb="complete", gate="always") for cloud in (ahead, waits))
    assert a["tokens"] == b["tokens"]
    assert "cannot go back" in ahead.said() and "cannot go back" not in waits.said()


@pytest.mark.parametrize("name", ["gemma2", "qwen2-bias", "mamba", "gemma3"])
def test_model_is_trained_end_to_end(folder, start_cloud, tmp_path, name):
    """A soft-cap, a bias, a recurrent memory, and a real model: the loss falls, and the words come."""
    cloud = start_cloud(path_of(folder, name), "-c", "2048", "-np", "2")
    plugin, rows = tmp_path / "out.gguf", text_rows(tmp_path / "rows.jsonl")
    system.good(system.spa("train", rows, "-o", plugin, *cloud.reach(), "--general", "0", "--epochs", "12", "--batch", "1", "--dropout", "0",
                           "--basis", "task:32", "--cache-dir", tmp_path / "cache", timeout=900))
    seen = json.loads(system.good(system.spa("inspect", plugin, "--json")).stdout)
    assert seen["training"]["final_loss"] < 0.8 * seen["training"]["first_loss"]   # noise with a soft-cap of 2 cannot fall far
    if name == "gemma3":
        said = system.ask(cloud, TEXTS[1][:20], plugin, verb="complete", n=6, gate="always")
        assert seen["training"]["final_loss"] < 0.5
        assert said["text"].split()[:2] == ["the", "cello"]


def test_model_whose_logits_are_not_known_is_refused(folder):
    """Half a per cent off: a scale that the file names and libllama does not apply."""
    done = subprocess.run([system.SPA_CLOUD, "-m", path_of(folder, "qwen2-scaled"), "--port", str(system.free_port())], capture_output=True, text=True,
                          timeout=system.PATIENCE_S)
    assert "computes its logits in a way that spa-cloud does not know" in system.one_sentence(done)
