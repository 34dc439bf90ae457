"""What a cloud makes once per model for every device: anchors and the generic basis. Nothing of a user is in them."""
import json
import re
import subprocess

import system

PROMPTS = system.HERE.parent.parent / "cloud" / "anchor_prompts.c"


def plain(text):
    return re.sub(r"\W+", " ", text.lower()).strip()


def test_public_anchor_prompts_are_not_the_ones_that_measure_harm():
    prompts = [json.loads(f'"{text}"') for text in re.findall(r'^    "(.*)",$', PROMPTS.read_text(), re.M)]
    assert len(prompts) == len(set(map(plain, prompts))) == 400
    measured = {plain(json.loads(line)["messages"][0]["content"]) for line in (system.EXAMPLES / "general.jsonl").read_text().splitlines()}
    assert not measured & set(map(plain, prompts))


def rows(folder):
    return system.write_rows(folder / "rows.jsonl", [(f"What is {i}?", f"It is {i * i}.") for i in range(12)])


def make(*words):
    return subprocess.run([str(w) for w in (system.SPA_CLOUD, *words)], capture_output=True, text=True, env=system.environment,
                          timeout=system.PATIENCE_S)


def test_public_basis_and_anchors_train_a_plugin(start_cloud, tmp_path):
    basis, cache, plugin = tmp_path / "tiny.basis", tmp_path / "cache", tmp_path / "p.gguf"
    made = make("basis", "-m", system.TINY, *system.F32, "--text", system.HERE.parent.parent / "WIRE.md", "--k", "40", "-o", basis)
    assert made.returncode == 0, made.stderr
    with_basis = start_cloud(system.TINY, *system.F32, "--basis", basis, "--anchors", cache)
    train = ["train", rows(tmp_path), "-o", plugin, *with_basis.reach(), "--epochs", "2", "--general", "20",
             "--basis", "generic:32"]
    system.good(system.spa(*train))
    seen = json.loads(system.good(system.spa("inspect", plugin, "--json")).stdout)
    assert (seen["basis"], seen["k"]) == (True, 32)

    # Anchors are kept, for their owner alone, and a second training with the same taps adds none.
    system.wait_for(lambda: list(cache.glob("*.states")))
    files = {path: path.stat() for path in cache.iterdir()}
    assert sorted(path.suffix for path in files) == [".answers", ".states"]
    assert all(stat.st_mode & 0o777 == 0o600 for stat in files.values())
    system.good(system.spa(*train))
    assert {path: path.stat().st_ino for path in cache.iterdir()} == {path: stat.st_ino for path, stat in files.items()}

    # Another cloud has no generic basis: it takes the plugin's own copy, and the answers are the same.
    without = start_cloud(system.TINY, *system.F32, "--anchors", "none")
    answers = [system.ask(cloud, "What is 3?", plugin, gate="always") for cloud in (with_basis, without, without)]
    assert answers[0]["by"] == ["plugin"] * 24
    assert [a["text"] for a in answers] == [answers[0]["text"]] * 3

    def refusal(cloud, k):
        words = ["train", tmp_path / "rows.jsonl", "-o", plugin, *cloud.reach(), "--basis", f"generic:{k}", "--fresh"]
        return system.one_sentence(system.spa(*words))
    assert "spa-cloud basis" in refusal(without, 32)
    assert "generic:40" in refusal(with_basis, 41)

    # States on the cloud's basis are none on the rows' own.
    system.good(system.spa(*train))
    done = system.good(system.spa(*train[:-1], "task:32"))
    assert "the cloud's, not the rows' own" in done.stdout + done.stderr


def test_public_basis_of_another_model_is_left_aside(start_cloud, tmp_path):
    basis = tmp_path / "other.basis"
    basis.write_bytes(b"SPABASE1" + bytes(4000))
    cloud = start_cloud(system.TINY, *system.F32, "--basis", basis, "--anchors", "none")
    assert "another model" in cloud.said()
    gone = make("-m", system.TINY, "--port", "0", "--basis", tmp_path / "gone")
    assert gone.returncode == 1 and "there is no such file" in gone.stderr
