"""fuzz - every fuzz target (tools/fuzz; needs clang) for so many executions. --seconds: no target gets more; one that has fewer executions then is a finding."""
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("fuzz", __doc__, runs=(10_000_000, 20_000), seconds=(7200, 120))
ROOT = pathlib.Path(__file__).resolve().parents[2]

with run:
    process = subprocess.Popen([ROOT / "tools" / "fuzz", "-n", str(run.runs), "-s", str(run.seed), str(run.seconds)], stdout=subprocess.PIPE, text=True)
    executions = {}
    for line in process.stdout:
        run.say(line.strip())
        told = re.match(r"fuzz (\w+): seed \d+, (\d+|\?) executions", line)
        if not told:
            continue
        name, executions[told[1]] = told[1], int(told[2].replace("?", "0"))
        run.count = f"{sum(executions.values())}executions+{len(executions)}targets"
        if "nothing found" not in line:
            run.found(line.strip())
        elif executions[name] < run.runs:
            run.found(f"{name}: {executions[name]} executions within {run.seconds} s, not {run.runs}")
    if process.wait() and not run.findings:
        run.found("tools/fuzz failed")
