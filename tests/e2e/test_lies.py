"""Clouds that lie: whatever comes down the wire, the device does not crash, writes nothing it should not, and ends with one sentence.

A sample of tests/soak/lies.py, which tries all of the catalogue and as many mutations as it is told. SPA_SEED: of the sample.
"""
import concurrent.futures
import os
import random

import pytest

import lying_cloud
import lying_runs

SEED = int(os.environ.get("SPA_SEED", "1"))
SAMPLE = {"base": 16, "chat": 70, "fetch": 20, "train": 40, "head": 12, "serve": 8}
MUTATIONS = {"chat": 50, "train": 20}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    return lying_runs.Runs(tiny, tmp_path_factory.mktemp("lies") / "runs")


def attempt_all(runs, tasks):
    """tasks: (kind, name, lie, handshake). All that was found."""
    for kind in {task[0] for task in tasks}:
        runs.script(kind)
    with concurrent.futures.ThreadPoolExecutor(lying_runs.workers()) as pool:
        found = pool.map(lambda task: (task[:2], runs.attempt(task[0], task[2], task[3])), tasks)
        return [f"{kind}: {name}: {what}" for (kind, name), what in found if what]


@pytest.mark.parametrize("kind", SAMPLE)
def test_lies_of_the_catalogue(runs, kind):
    every = list(lying_cloud.lies(runs.script(kind)))
    chosen = random.Random(SEED).sample(every, min(SAMPLE[kind], len(every)))
    found = attempt_all(runs, [(kind, name, lie, None) for name, lie in chosen])
    print(f"\nlies of {kind}: seed {SEED}, {len(chosen)} of {len(every)} with {lying_runs.DEVICE}, {len(found)} findings")
    assert not found, "\n".join(found)


def test_lies_before_the_conversation_begins(runs):
    found = attempt_all(runs, [("base", name, None, handshake) for name, handshake in lying_cloud.HANDSHAKES.items()])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_lies_that_a_seed_makes(runs, kind):
    tasks = [(kind, f"mutation {SEED + i}", lying_cloud.mutation(runs.script(kind), SEED + i), None) for i in range(MUTATIONS[kind])]
    found = attempt_all(runs, tasks)
    print(f"\nmutations of {kind}: seeds {SEED} to {SEED + len(tasks) - 1}, {len(found)} findings")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", SAMPLE)
def test_lies_an_honest_play_is_taken_for_a_cloud(runs, kind):
    """The player itself is no lie: what it plays unchanged ends well."""
    assert runs.honest(kind) is None
