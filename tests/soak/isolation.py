"""isolation - users with secrets in their prompts on slots that are used 10,000 times again (tests/test_isolation.c)."""
import os
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("isolation", __doc__, reuses=(10000, 600))

import system

with run:
    done = subprocess.run([system.BUILD / "tests" / "test_isolation"], env=os.environ | {"SPA_REUSES": str(run.reuses), "SPA_SEED": str(run.seed)},
                          capture_output=True, text=True)
    print(done.stdout, done.stderr, file=sys.stderr)
    told = re.search(r"(\d+) slots used again", done.stdout + done.stderr)
    reused = int(told[1]) if told else 0
    run.count = f"{reused}reuses"
    if done.returncode:
        run.found(f"test_isolation ended with {done.returncode}")
    if reused < run.reuses:
        run.found(f"{reused} slots were used again, not {run.reuses}")
