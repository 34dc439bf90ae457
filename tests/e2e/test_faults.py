"""Memory and files that fail at any call: a sample of tests/soak/faults.py, which fails each one. SPA_SEED: of the sample."""
import concurrent.futures
import os
import random

import pytest

import fault_runs

SEED = int(os.environ.get("SPA_SEED", "1"))
SAMPLE = {"convert": 40, "folder": 30, "chat": 30, "train": 30, "serve": 16}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    return fault_runs.Runs(tiny, tmp_path_factory.mktemp("faults") / "runs")


@pytest.mark.parametrize("kind", fault_runs.KINDS)
def test_faults_end_in_one_sentence_and_tear_no_file(runs, kind):
    numbers = runs.calls(kind)
    assert min(numbers.values()) > 0, numbers
    chosen = fault_runs.every(numbers, SAMPLE[kind], random.Random(SEED))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [f"{which} {n} of {numbers[which]}: {what}" for (which, n), what in zip(chosen, pool.map(lambda one: runs.attempt(kind, *one), chosen)) if what]
    print(f"\nfaults in {kind}: seed {SEED}, {len(chosen)} of {numbers} with {fault_runs.PROGRAM}, {len(found)} findings")
    assert not found, "\n".join(found)
