"""programs - what bench/'s commands share: spa-cloud on loopback, spa with its peak memory, tools/env, Python environments.

Every process that is started here is ended here, by its own id."""
import argparse
import contextlib
import hashlib
import http.client
import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
READY_S = 120


class Failed(Exception):
    """One sentence for the user."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def environment_of_tools():
    """The settings of tools/env, those that it does not export too."""
    names = ("SPA_CACHE", "SPA_LLAMA_PREFIX", "SPA_MODEL", "SPA_PYTHON", "LLAMA_VERSION", "LLAMA_SHA256", "LLAMA_FLAGS")
    show = "; ".join(f'printf "%s\\n" "${name}"' for name in names)
    lines = subprocess.run(["sh", "-c", f". tools/env; {show}"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return dict(zip(names, lines.split("\n")))


def run(command, folder, log):
    """Runs to the end: standard output, seconds, peak memory in MB of this process alone. `folder` takes the place of the user's
    home, so that no cache of an earlier run helps; `log` gets standard error."""
    env = {name: value for name, value in os.environ.items() if name not in ("SPA_CLOUD", "SPA_API_KEY")}
    env.update(HOME=folder, XDG_CACHE_HOME=os.path.join(folder, "cache"))
    began = time.monotonic()
    with open(log, "w", encoding="utf-8") as err, open(log + ".out", "w+", encoding="utf-8") as out:
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode != 0:
        tail = open(log, encoding="utf-8", errors="replace").read()[-600:].strip()
        raise Failed(f"{shlex.join(map(str, command[:3]))} ... ended with {process.returncode}: {tail}")
    return text, time.monotonic() - began, usage.ru_maxrss / 1e3


@contextlib.contextmanager
def cloud(build, model, log, options=(), tls=False):
    """spa-cloud on a free port of loopback; gives its URL. tls: the options name a key and a certificate."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen([os.path.join(build, "spa-cloud"), "-m", model, "--host", "127.0.0.1", "--port", str(port),
                                    *options], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + READY_S
        while not is_ready(port, tls):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"spa-cloud does not start; {log} says why")
            time.sleep(0.05)
        yield f"{'wss' if tls else 'ws'}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def chat(build, url, prompt, *words):
    """spa chat's JSON for one prompt."""
    done = subprocess.run([os.path.join(build, "spa"), "chat", "--json", "--cloud", url, "-p", prompt, *map(str, words)],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failed(f"spa chat failed at '{prompt}': {done.stderr.strip()}")
    return json.loads(done.stdout)


def is_ready(port, tls=False):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=ssl._create_unverified_context()) if tls \
        else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def python_with(requirements, cache):
    """The Python of an environment that holds these pinned packages; made on the first call, kept by the file's hash."""
    with open(requirements, "rb") as f:
        folder = os.path.join(cache, "venv-bench-" + hashlib.sha256(f.read()).hexdigest()[:12])
    python, done = os.path.join(folder, "bin", "python"), os.path.join(folder, ".done")
    if not os.path.exists(done):
        say(f"installing {os.path.relpath(requirements, ROOT)} into {folder} (once; large)")
        for command in ([sys.executable, "-m", "venv", "--clear", folder],
                        [python, "-m", "pip", "-q", "--disable-pip-version-check", "install", "-r", requirements]):
            if subprocess.run(command).returncode != 0:
                raise Failed(f"{shlex.join(command)} failed; check the network and try again")
        open(done, "w").close()
    return python


# ---- what spa train prints ----

def number(pattern, text):
    found = re.search(pattern, text, re.M)
    return float(found.group(1)) if found else None


def summary_of(text):
    """spa train's last lines, by their labels; what is not there is None."""
    return {
        "epochs": number(r"^rows .*?(\d+) epochs", text),
        "seconds": number(r"^seconds\s+([\d.]+)", text),
        "parts": {name: float(s) for name, s in
                  re.findall(r"(\w+) ([\d.]+)", (re.search(r"^seconds\s+[\d.]+: (.*)$", text, re.M) or [None, ""])[1])},
        "exact_match": number(r"^held back.*exact match ([\d.]+) %", text),
        "held_loss": number(r"^held back\s+loss .*?-> ([\d.]+)", text),
        "down_mb": number(r"^wire\s+([\d.]+) MB down", text),
        "up_mb": number(r"^wire.*?([\d.]+) MB up", text),
    }


# ---- output ----

def table(rows, head):
    """Prints rows of texts under a head, columns as wide as they need."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * w for w in widths], *rows]:
        print("  ".join(str(cell).ljust(w) for cell, w in zip(row, widths)).rstrip())
    sys.stdout.flush()


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def read_jsonl(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def make_data(doc, write):
    """The command line of a data set's maker: FOLDER [--seed N]; prints the paths that write(folder, seed) returns."""
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument("folder")
    p.add_argument("--seed", type=int, default=1)
    options = p.parse_args()
    print(*write(options.folder, options.seed), sep="\n")
