"""fuzz - every fuzz target (tools/fuzz; needs clang) for so many executions, or so many seconds each, whichever comes first."""
import pathlib
import re
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("fuzz", __doc__, runs=(10_000_000, 1_000_000), seconds=(3600, 10))
ROOT = pathlib.Path(__file__).resolve().parents[2]

with run:
    process = subprocess.Popen([ROOT / "tools" / "fuzz", "-n", str(run.runs), "-s", str(run.seed), str(run.seconds)], stdout=subprocess.PIPE, text=True)
    executions = 0
    for line in process.stdout:
        run.say(line.strip())
        told = re.match(r"fuzz (\w+): seed \d+, (\d+) executions", line)
        executions += int(told[2]) if told else 0
        run.count = f"{executions}executions"
        if told and "nothing found" not in line:
            run.found(line.strip())
    if process.wait() and not run.findings:
        run.found("tools/fuzz failed")
