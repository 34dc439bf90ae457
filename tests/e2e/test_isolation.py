"""32 chats at once on the golden model, each with a secret in its prompt: the tokens of each alone, and its secret nowhere else."""
import concurrent.futures
import json
import random

import pytest

import plugins
import system

N, SEED = 32, 1


def secrets():
    dice = random.Random(SEED)
    return ["".join(dice.choices("bcdfghjklmnpqrstvwxz", k=12)) for _ in range(N)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isolation")
    return [plugins.perturbed(folder, seed) for seed in range(4)]


def test_isolation_chats_at_once_are_those_alone_and_secrets_stay(start_cloud, files):
    cloud = start_cloud(system.TINY, *system.F32, "-np", "8", "-c", "2048", "--log-level", "debug")
    words = []
    for i, secret in enumerate(secrets()):
        plugin = files[i % 8] if i % 8 < len(files) else None
        words.append(system.question(cloud.reach(), f"{'Once upon a time. ' * (i % 3)}My word is {secret}. What is it?", plugin, n=24, gate="always" if plugin else "never"))
    alone = [json.loads(system.good(system.spa(*w)).stdout) for w in words]
    with concurrent.futures.ThreadPoolExecutor(N) as pool:
        together = [json.loads(system.good(done).stdout) for done in pool.map(lambda w: system.spa(*w), words)]
    assert [t["tokens"] for t in together] == [a["tokens"] for a in alone]
    assert sum(t["stats"]["shared_steps"] > 0 for t in together) > N // 2, "they were at work at the same time"
    places = {"the log": cloud.log.read_text(errors="replace"), "the metrics": cloud.get("/metrics")[2].decode(), "/health": cloud.get("/health")[2].decode()}
    for i, secret in enumerate(secrets()):
        for k, answer in enumerate(together):
            assert i == k or secret not in answer["text"], f"the secret of {i} in the answer of {k}"
        for place, text in places.items():
            assert secret not in text, f"the secret of {i} in {place}"
