"""cuts - answers over connections that are cut at random bytes in both directions (tests/e2e/test_resume.py), in five ways, many times.

What it looks at, says that file: no token lost, doubled or changed.
"""
import os
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("cuts", __doc__, cuts=(2000, 30))
with run:
    import system
    run.count = f"0of{run.cuts}cuts"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", str(system.HERE / "test_resume.py"), "-k",
                           "after_random_cuts"], env={**os.environ, "SPA_CUTS": str(run.cuts), "SPA_SEED": str(run.seed)}, capture_output=True, text=True)
    print(done.stdout, done.stderr, file=sys.stderr)
    said = re.search(r"resume: seed \d+, (\{.*\}) cuts, (\d+) times an answer went on, (\d+) of them behind its first tokens, (\d+) connections left", done.stdout)
    if done.returncode != 0 or not said:
        run.found(f"pytest ended with {done.returncode}")
    else:
        cuts = sum(map(int, re.findall(r": (\d+)", said[1])))
        run.say(said[0])
        run.count = f"{cuts}cuts+{said[2]}resumed+{said[3]}behind-tokens+{said[4]}late"
