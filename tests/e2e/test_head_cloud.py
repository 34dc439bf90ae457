"""`--head cloud`: no LM head on the device, the same plugin within rounding, and one sentence when the cloud is gone."""
import array
import json
import re
import subprocess
import threading
import time

import pytest

import capture
import plugins
import system

CLOUD = ("--head", "cloud")


def weights(plugin):
    return {name: array.array("f", data) for name, data in plugins.read_gguf(plugin).items()}


def difference(a, b):
    """Largest difference of two plugins' numbers, tensor by tensor, as a share of the tensor's largest. Without the keys' biases:
    one moves all scores of a softmax alike, so its gradient is zero but for rounding, and rounding is what may differ."""
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return max(max(abs(x - y) for x, y in zip(a[name], b[name], strict=True)) / (max(map(abs, a[name])) or 1)
               for name in a if not name.endswith(".bk"))


def some_rows(folder, n):
    lines = (system.EXAMPLES / "facts.jsonl").read_text().splitlines()
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines[:: len(lines) // n][:n]) + "\n")
    return path


def train(cloud, rows, plugin, *options):
    return system.good(system.spa("train", rows, "-o", plugin, *cloud.reach(), "--epochs", "3", "--batch", "10", "--general", "0", "--cache-dir",
                                  plugin.parent / "cache", *options, timeout=900))


@pytest.mark.parametrize("model", ["tiny", "smol"])
def test_head_cloud_trains_the_same_plugin_within_rounding(model, request, tmp_path):
    cloud, rows = request.getfixturevalue(model), some_rows(tmp_path, 40)
    train(cloud, rows, tmp_path / "cloud.gguf", *CLOUD)
    assert not (tmp_path / "cache").exists(), "nothing was fetched"
    train(cloud, rows, tmp_path / "local.gguf")
    assert list((tmp_path / "cache").glob("head-*"))
    # Losses and gradients differ in last bits; the optimizer divides small gradients by their own size.
    assert difference(tmp_path / "local.gguf", tmp_path / "cloud.gguf") < 1e-3
    seen = [json.loads(system.good(system.spa("eval", rows, *cloud.reach(), "--plugin", tmp_path / "cloud.gguf", "--limit", "8",
                                              "--cache-dir", tmp_path / "cache", "--json", *head)).stdout) for head in ((), CLOUD)]
    for key in ("rows", "loss_tokens", "exact_match", "base_exact_match", "agreement", "gate_rate"):
        assert seen[0][key] == seen[1][key], key
    for key in ("loss", "base_loss"):
        assert abs(seen[0][key] - seen[1][key]) < 1e-4 * seen[0][key], key


def test_head_cloud_same_seed_gives_the_same_bytes(tiny, tmp_path):
    rows = some_rows(tmp_path, 40)
    for name in ("a", "b"):
        train(tiny, rows, tmp_path / name, *CLOUD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_head_cloud_fits_a_small_device(smol, tmp_path):
    command = list(map(str, (system.SPA, "train", some_rows(tmp_path, 40), "-o", tmp_path / "p.gguf", *smol.reach(), "--epochs", "1",
                             "--general", "0", *CLOUD)))
    # Through a shell: a process' peak begins with that of the program that started it, and this one is larger than spa.
    result = subprocess.run(["sh", "-c", '"$@"; exit $?', "sh", *command], capture_output=True, text=True, env=system.environment,
                            timeout=900, check=True)
    megabytes = int(re.search(r"memory +(\d+) MB", result.stdout)[1])
    features = float(re.search(r"carry loss, ([\d.]+) MB", result.stderr)[1])
    assert megabytes - features < 24


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_head_cloud_that_is_started_again_in_mid_training_changes_nothing(how, start_cloud, tmp_path):
    """Most bytes are losses and gradients: at four fifths of them the training is under way, and goes on where it was."""
    cloud, rows = start_cloud(system.TINY, *system.F32), some_rows(tmp_path, 40)
    with capture.Proxy(cloud.port) as wire:
        train(wire, rows, tmp_path / "whole.gguf", *CLOUD, "--epochs", "6")
    came_back = threading.Thread(target=cloud.start_again)

    def strike():
        getattr(cloud.process, how)()
        cloud.process.wait()
        came_back.start()
    with capture.Axe(cloud.port, 0.8 * sum(map(len, wire.down)), strike) as axe:
        result = train(axe, rows, tmp_path / "broken.gguf", *CLOUD, "--epochs", "6")
    came_back.join()
    assert "trying again" not in result.stderr, "that was while states came"
    assert (tmp_path / "broken.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_head_cloud_that_dies_is_one_sentence_and_no_file(start_cloud, tmp_path):
    cloud, plugin = start_cloud(system.TINY, *system.F32), tmp_path / "p.gguf"
    log = tmp_path / "log.csv"
    run = system.start("train", some_rows(tmp_path, 40), "-o", plugin, *cloud.reach(), "--epochs", "10000", "--general", "0", "--csv",
                       log, "--retry", "1", *CLOUD)
    deadline = time.monotonic() + system.PATIENCE_S
    while not (log.exists() and log.stat().st_size > 100):   # some steps are done
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    cloud.kill()
    said = system.one_sentence(system.finish(run))
    assert str(cloud.port) in said
    assert not plugin.exists()
