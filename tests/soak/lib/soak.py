"""What every long form does: its command line, its last line, and the way to the end-to-end tests' helpers.

    run = soak.begin("replicas", __doc__, kills=(200, 3))    # --kills N: 200, with --short 3
    with run: ...
        run.found("device 3: 'x' is not 'y'")                # one finding
        run.count = f"{run.kills}kills"
"""
import argparse
import os
import pathlib
import random
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "e2e"))
SHOWN_MAX = 20


class Run:
    """As a block: prints the last line at its end and exits with 1 if there were findings. What goes wrong by itself is a finding, too."""

    def __init__(self, name, options):
        self.__dict__.update(vars(options))
        self.name, self.count, self.findings, self.began = name, "0", 0, time.monotonic()
        self.dice = random.Random(self.seed)

    def found(self, what):
        self.findings += 1
        if self.findings <= SHOWN_MAX:
            self.say(f"FINDING: {what}")

    def say(self, text):
        print(f"{self.name}: {time.monotonic() - self.began:.0f}s: {text}", file=sys.stderr, flush=True)

    def looks_with(self, program, sanitized):
        """Says which program runs. The long form does not begin with one without sanitizers, which would see half, and that is a finding."""
        self.say(f"with {program}")
        if program != sanitized and not self.short:
            raise FileNotFoundError(f"there is no {sanitized}; make soak builds it")

    def __enter__(self):
        self.made = tempfile.TemporaryDirectory(prefix=f"spa-{self.name}-")
        self.folder = pathlib.Path(self.made.name)
        return self

    def __exit__(self, kind, error, trace):
        if kind and kind is not KeyboardInterrupt:
            import traceback
            traceback.print_exception(kind, error, trace)
            self.found(f"the test itself ended early: {error!r:.300}")
        if self.findings and self.keep:
            self.say(f"logs are kept in {self.keep}")
            import shutil
            shutil.copytree(self.folder, self.keep, dirs_exist_ok=True)
        self.made.cleanup()
        print(self.name, self.seed, self.count, f"{time.monotonic() - self.began:.0f}s", self.findings, flush=True)
        os._exit(1 if self.findings or kind else 0)   # threads that hang are no reason to hang


def begin(name, about, **sizes):
    """sizes: name -> (long, short)."""
    p = argparse.ArgumentParser(prog=f"tests/soak/{name}.py", description=about.splitlines()[0])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--short", action="store_true")
    p.add_argument("--keep", metavar="DIR", help="where logs go when something was found")
    for size, (long, short) in sizes.items():
        p.add_argument("--" + size.replace("_", "-"), type=type(long), metavar="N", help=f"{long}; with --short {short}")
    o = p.parse_args()
    for size, (long, short) in sizes.items():
        if getattr(o, size) is None:
            setattr(o, size, short if o.short else long)
    import system
    system.check_environment()
    return Run(name, o)
