"""limits - a process with a share of one core and so much memory: by control groups where this user may make them, else by stopping it."""
import contextlib
import os
import signal
import threading
import time

PERIOD_US = 100000
GROUPS = "/sys/fs/cgroup"


class Limit:
    """how: in words. before: goes in front of a command. watch(pid): to be called once it runs."""

    def __init__(self, how, folders=(), share=None):
        self.how, self.share, self.ended, self.threads = how, share, threading.Event(), []
        files = [os.path.join(f, "cgroup.procs") for f in folders]
        self.before = ["sh", "-c", " && ".join(f"echo $$ > {f}" for f in files) + ' && exec "$@"', "limited"] if files else []

    def watch(self, pid):
        if self.share is None:
            return
        self.threads.append(threading.Thread(target=self.duty, args=(pid,)))
        self.threads[-1].start()

    def duty(self, pid):
        """Runs for `share` of every period."""
        period = PERIOD_US / 1e6
        with contextlib.suppress(ProcessLookupError):
            while not self.ended.is_set():
                os.kill(pid, signal.SIGCONT)
                time.sleep(period * self.share)
                os.kill(pid, signal.SIGSTOP)
                time.sleep(period * (1 - self.share))
            os.kill(pid, signal.SIGCONT)


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
        out.write(str(value))


def make_groups(name, percent, memory_mb, made):
    """Folders of the groups, also in `made` as they come. OSError: not allowed here."""
    quota, limit = PERIOD_US * percent // 100, memory_mb << 20
    if os.path.exists(os.path.join(GROUPS, "cgroup.controllers")):
        made.append(os.path.join(GROUPS, name))
        os.mkdir(made[-1])
        write(made[-1], "cpu.max", f"{quota} {PERIOD_US}")
        write(made[-1], "memory.max", limit)
        return
    for part, values in (("cpu", {"cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": quota}), ("memory", {"memory.limit_in_bytes": limit})):
        made.append(os.path.join(GROUPS, part, name))
        os.mkdir(made[-1])
        for file, value in values.items():
            write(made[-1], file, value)


@contextlib.contextmanager
def limited(percent, memory_mb):
    """percent of one core, memory_mb of memory."""
    made, failed = [], False
    try:
        make_groups(f"spa-bench-{os.getpid()}-{time.monotonic_ns()}", percent, memory_mb, made)
    except OSError:
        failed = True
    limit = Limit("stopped and continued ten times a second; memory not limited", share=percent / 100) if failed else \
        Limit("control groups: CPU quota and memory limit", made)
    try:
        yield limit
    finally:
        limit.ended.set()
        for t in limit.threads:
            t.join()
        for folder in made:
            for _ in range(50):   # the last process may still be on its way out
                with contextlib.suppress(FileNotFoundError):
                    try:
                        os.rmdir(folder)
                    except OSError:
                        time.sleep(0.05)
                        continue
                break
