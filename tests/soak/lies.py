"""lies - clouds that lie to spa chat, train and serve: all of the catalogue, and as many mutations of good conversations as --rounds says.

What it looks at, says tests/e2e/lying_runs.py. A device that was too slow among others may have been short of a processor: it is tried again, alone, and a finding
if it is too slow again.
"""
import concurrent.futures
import functools
import itertools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("lies", __doc__, rounds=(5000, 100))

import lying_cloud
import lying_runs
import system

KINDS = ("base", "chat", "fetch", "train", "head", "serve")


def tasks(runs):
    """(kind, name, what makes the lie anew, handshake)"""
    for kind in KINDS:
        for name, lie in lying_cloud.lies(runs.script(kind)):
            yield kind, name, functools.partial(lambda lie: lie, lie), None
    for kind in ("base", "train", "serve"):
        for name, handshake in lying_cloud.HANDSHAKES.items():
            yield kind, name, lambda: None, handshake
    for i, kind in zip(range(run.rounds), itertools.cycle(("chat", "train", "chat", "base", "chat", "serve", "head"))):
        yield kind, f"mutation {run.seed + i}", functools.partial(lying_cloud.mutation, runs.script(kind), run.seed + i), None


with run, system.Cloud(run.folder / "cloud.log", system.TINY, *system.F32) as cloud:
    run.looks_with(lying_runs.DEVICE, lying_runs.SANITIZED)
    runs = lying_runs.Runs(cloud, run.folder / "runs")
    chosen = list(tasks(runs))
    if run.short:
        chosen = run.dice.sample(chosen, 100)
    done, slow = 0, []
    with concurrent.futures.ThreadPoolExecutor(lying_runs.workers()) as pool:
        for one, found in zip(chosen, pool.map(lambda t: runs.attempt(t[0], t[2](), t[3]), chosen)):
            kind, name = one[:2]
            done += 1
            run.count = f"{done}conversations"
            if found and found.startswith(lying_runs.SLOW):
                slow.append(one)
            elif found:
                run.found(f"{kind}: {name}: {found}")
            if done % 250 == 0:
                run.say(f"{done} of {len(chosen)}, last {kind}: {name}")
    run.say(f"{len(slow)} were too slow among others")
    for kind, name, lie, handshake in slow:
        found = runs.attempt(kind, lie(), handshake)
        if found:
            run.found(f"{kind}: {name}: {found}")
