"""faults - spa convert, chat, train and serve with every single call failing that allocates or works on files, one a run.

What it looks at, says tests/e2e/fault_runs.py. --libraries N: beside them, a sample of the allocations inside the libraries of the process; what
those make of it is listed and is no finding of ours. --plain 1: the program without sanitizers is what is wanted.
"""
import collections
import concurrent.futures
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("faults", __doc__, libraries=(0, 0), plain=(0, 0))

import fault_runs
import system


def attempts(runs, kind, wanted):
    """(class, n, what was found) of all calls, or of a sample."""
    chosen = fault_runs.every(runs.calls(kind), wanted, run.dice)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield from ((*one, found) for one, found in zip(chosen, pool.map(lambda one: runs.attempt(kind, *one), chosen)))


with run, system.Cloud(run.folder / "cloud.log", system.TINY, *system.F32) as cloud:
    program = fault_runs.PLAIN if run.plain else fault_runs.PROGRAM
    run.looks_with(program, fault_runs.PLAIN if run.plain else fault_runs.SANITIZED)
    runs, done = fault_runs.Runs(cloud, run.folder / "own", program), 0
    for kind in fault_runs.KINDS:
        before = done
        for which, n, found in attempts(runs, kind, 20 if run.short else None):
            done += 1
            run.count = f"{done}failures"
            if found:
                run.found(f"{kind}: {which} {n}: {found}")
        run.say(f"{kind}: {done - before} of {runs.calls(kind)}")
    if run.libraries:
        runs = fault_runs.Runs(cloud, run.folder / "libraries", fault_runs.LIBRARIES)
        for kind in fault_runs.KINDS:
            seen = collections.Counter((found or "ended well, or in a sentence").split("\n")[0][:100] for _, _, found in attempts(runs, kind, run.libraries))
            for what, n in seen.most_common():
                run.say(f"libraries, {kind}: {n} times: {what}")
