"""programs - what bench/'s commands share: spa-cloud on loopback, spa with its peak memory, tools/env, Python environments.

Every process that is started here is ended here, by its own id."""
import argparse
import contextlib
import csv
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
READY_S = 120


class Failed(Exception):
    """One sentence for the user."""


class Url(str):
    """With .pid."""


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
def cloud(build, model, log, options=(), tls=None):
    """spa-cloud on a free port of loopback; gives its URL, a text with the process's id as `pid`. tls: its certificate, or plain ws."""
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
        url = Url(f"{'wss' if tls else 'ws'}://127.0.0.1:{port}")
        url.pid = process.pid
        yield url
    finally:
        process.terminate()
        process.wait()


def answer(build, verb, url, prompt, *words):
    """What spa chat or spa complete says to one prompt, its JSON."""
    done = subprocess.run([os.path.join(build, "spa"), verb, "--json", "--cloud", url, "-p", prompt, *map(str, words)],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failed(f"spa {verb} failed at '{prompt}': {done.stderr.strip()}")
    return json.loads(done.stdout)


def chat(build, url, prompt, *words):
    return answer(build, "chat", url, prompt, *words)


def is_ready(port, tls=None):
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=ssl.create_default_context(cafile=tls)) if tls else \
        http.client.HTTPConnection("127.0.0.1", port, timeout=5)
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


# ---- peers: llama.cpp's programs from the source that tools/setup pins ----

def llama_program(settings, name):
    """llama-bench or llama-server; built on the first call (some minutes), kept by source, processor and compile settings."""
    place = os.path.join(settings["SPA_CACHE"], os.path.basename(settings["SPA_LLAMA_PREFIX"]).replace("llama-", f"{name}-", 1))
    if os.path.exists(place):
        return place
    if not shutil.which("cmake"):
        raise Failed("cmake is missing; run tools/setup first")
    server = "ON" if name == "llama-server" else "OFF"
    with tempfile.TemporaryDirectory(dir=settings["SPA_CACHE"]) as work:
        wanted = os.path.join(work, "wanted.txt")
        with open(wanted, "w", encoding="utf-8") as out:
            out.write(f"llama-cpp-python=={settings['LLAMA_VERSION']} --hash=sha256:{settings['LLAMA_SHA256']}\n")
        say(f"downloading libllama's source (77 MB) and building {name} (some minutes, once)")
        log = os.path.join(work, "log")
        source = os.path.join(work, "src")
        yield_h = os.path.join(ROOT, "tools", "ggml-yield.h")
        steps = [
            [settings["SPA_PYTHON"], "-m", "pip", "-q", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes",
             "--no-binary", "llama-cpp-python", "-d", work, "-r", wanted],
            ["sh", "-c", f"mkdir {source} && tar xzf {work}/*.tar.gz -C {source} --strip-components=1"],
            ["cmake", "-G", "Ninja", "-S", f"{source}/vendor/llama.cpp", "-B", f"{work}/build", "-DCMAKE_BUILD_TYPE=Release",
             "-DBUILD_SHARED_LIBS=OFF", *shlex.split(settings["LLAMA_FLAGS"]), f"-DCMAKE_C_FLAGS=-include {yield_h}",
             "-DLLAMA_BUILD_COMMON=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_TESTS=OFF",
             f"-DLLAMA_BUILD_SERVER={server}", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_MTMD=OFF", "-DLLAMA_BUILD_UI=OFF",
             "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF"],
            ["cmake", "--build", f"{work}/build", "--target", name],
        ]
        with open(log, "w+", encoding="utf-8") as out:
            for step in steps:
                if subprocess.run(step, stdout=out, stderr=out).returncode != 0:
                    out.seek(0)
                    raise Failed(f"{step[0]} {step[1]} failed: {out.read()[-1500:]}")
        os.replace(os.path.join(work, "build", "bin", name), place)
    return place


@contextlib.contextmanager
def llama_server(program, model, log, options=(), before=()):
    """llama-server on a free port of loopback, ready; gives (port, pid). before: words in front of the command."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen([*before, program, "-m", model, "--host", "127.0.0.1", "--port", str(port), *options],
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + READY_S
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"llama-server does not start: {open(log, encoding='utf-8', errors='replace').read()[-400:]}")
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid):
    """User and system time of a process so far."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def llama_answers(port, pid, bodies):
    """Streams one completion a body at the same time. Tokens a second and the server's CPU seconds a token, from the very first token to
    the very last: with several adapters it may answer one client after the other, so that no time is all clients'."""
    times, failures = [[] for _ in bodies], []

    def one(i, body):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        try:
            connection.request("POST", "/completion", json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise Failed(f"llama-server answers {answer.status}: {answer.read()[:300]}")
            for line in answer:
                if line.startswith(b"data: ") and b'"stop":false' in line:
                    times[i].append((time.monotonic(), cpu_seconds(pid)))
        except (OSError, http.client.HTTPException, Failed) as error:
            failures.append(str(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(bodies)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures or not all(times):
        raise Failed(f"llama-server: {failures[0] if failures else 'an answer without tokens'}")
    began, ended = min(t[0] for t in times), max(t[-1] for t in times)
    n = sum(map(len, times)) - 1
    return n / (ended[0] - began[0]), (ended[1] - began[1]) / n


# ---- many users: bench/users ----

def program(build, name):
    """A program of the build folder that is made when asked for."""
    if subprocess.run(["cmake", "--build", build, "--target", name], stdout=subprocess.DEVNULL).returncode != 0:
        raise Failed(f"{name} cannot be built in {build}; run make build first")
    return os.path.join(build, name)


def users(build, cloud_at, *words, plugin=None):
    """spa-users' JSON: what so many users' answers were, and their speed."""
    command = [os.path.join(build, "spa-users"), "--cloud", cloud_at, *map(str, words)]
    done = subprocess.run(command + (["--plugin", plugin] if plugin else []), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Failed(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def speed(result):
    """Tokens a second while all users were at it."""
    return result["tokens"] / result["window_s"] if result["window_s"] > 0 else 0.0


def facts_plugin(build, url, folder, *words):
    """A plugin for the example rows."""
    path = os.path.join(folder, "facts.gguf")
    say("training a plugin on examples/facts.jsonl")
    run([os.path.join(build, "spa"), "train", os.path.join(ROOT, "examples", "facts.jsonl"), "-o", path, "--cloud", url, "--general", "0",
         "--report", "none", *words], folder, os.path.join(folder, "train.log"))
    return path


def middle(numbers, form="{:.1f}"):
    """Median, and from the least to the most, as texts."""
    return form.format(statistics.median(numbers)), f"{form.format(min(numbers))} to {form.format(max(numbers))}"


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

def table(rows, head, name=""):
    """Prints rows of texts under a head, columns as wide as they need; where bench/all asks for it, a CSV file as well."""
    place = os.environ.get("SPA_BENCH_CSV")
    if place:
        with open(place + (f"-{name}" if name else "") + ".csv", "w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([head, *rows])
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
