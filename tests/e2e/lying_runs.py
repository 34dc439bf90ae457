"""Devices in front of clouds that lie: what spa is asked to do, and what has to be true of its end. For tests/e2e/test_lies.py and
tests/soak/lies.py.

A device may take a lie for the truth when it cannot know better (another text is a text). Otherwise it says one sentence and ends with
a code that is not 0; in any case within its deadline, without a word of a sanitizer, and what was there before is there unharmed.
"""
import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import time

import lying_cloud
import system

SANITIZED = system.BUILD / "sanitize" / "spa"
DEVICE = SANITIZED if SANITIZED.is_file() else system.SPA
DEADLINE_S = 60        # of a device on a busy machine; it pings after one second of silence
FAULT = 99
ENVIRONMENT = {"ASAN_OPTIONS": f"exitcode={FAULT}:detect_leaks=1:allocator_may_return_null=1", "UBSAN_OPTIONS": f"exitcode={FAULT}:print_stacktrace=1"}
OLDER = b"older" * 100
# How a verdict begins that a machine without a processor to spare may have brought about.
SLOW = ("it had not ended after", "spa serve did not", "a local client got TimeoutError")
HUNG_UP = "spa serve hung up on a local client"


class Runs:
    """Records a good conversation of each kind once, in front of a cloud with the golden model; then tries lies."""

    def __init__(self, cloud, folder):
        self.cloud, self.folder, self.count, self.scripts = cloud, folder, 0, {}
        folder.mkdir(exist_ok=True)
        self.rows = system.write_rows(folder / "rows.jsonl", [(f"What is {i}?", f"It is {i}.") for i in range(6)])
        self.plugin = folder / "mine.gguf"
        system.good(system.spa("train", self.rows, "-o", self.plugin, *cloud.reach(), "--epochs", "2", "--general", "0", "--basis", "task:16", "--features", "none",
                               "--csv", "none", "--report", "none", "--cache-dir", folder))

    def words(self, kind, reach, out):
        """The command of a kind. out: a folder of this run's own."""
        calm = ["--ping", "1"]
        if kind == "base":
            return ["chat", "-p", "Hello there", "-n", "6", "--temp", "0", "--retry", "0", *reach, *calm]
        if kind == "chat":
            return ["chat", "-p", "What is 3?", "-n", "8", "--temp", "0", "--retry", "0", "--plugin", self.plugin, "--gate", "always", "--seed", "1", *reach, *calm]
        more = ["--head", "cloud", "--basis", "none"] if kind == "head" else ["--basis", "task:16"]
        return ["train", self.rows, "-o", out / "p.gguf", *reach, "--epochs", "1", "--general", "2", "--csv", "none", "--report", "none", "--features", "none",
                "--cache-dir", out / "cache", "--retry", "1", *more, *calm]

    def fresh(self):
        self.count += 1
        out = self.folder / f"run{self.count}"
        out.mkdir()
        (out / "p.gguf").write_bytes(OLDER)
        return out

    def conversation(self, kind):
        """(scripts of all its connections, which of them is lied on): the longest, with "fetch" the first of a training."""
        if kind not in self.scripts:
            with lying_cloud.Recorder(self.cloud.port) as proxy:
                if kind == "serve":
                    assert self.serve(proxy.reach()) is None
                else:
                    system.good(system.spa(*self.words(kind, proxy.reach(), self.fresh())))
            scripts = proxy.scripts()
            assert all(len(script) > 1 for script in scripts)
            self.scripts[kind] = scripts, 0 if kind == "fetch" else scripts.index(max(scripts, key=len))
        return self.scripts[kind]

    def script(self, kind):
        scripts, which = self.conversation(kind)
        return scripts[which]

    def attempt(self, kind, lie, handshake=None):
        """What is wrong with the device's end, or None."""
        with lying_cloud.Liar(*self.conversation(kind), lie, handshake, more=3 if kind == "serve" else 0) as liar:
            return self.serve(liar.reach()) if kind == "serve" else self.run(kind, liar.reach())

    def honest(self, kind):
        """What is wrong with a device in front of a player that does not lie."""
        with lying_cloud.Liar(*self.conversation(kind)) as liar:
            if kind == "serve":
                return self.serve(liar.reach(), 200)
            done = system.spa(*self.words(kind, liar.reach(), self.fresh()))
            return None if done.returncode == 0 else done.stderr

    def run(self, kind, reach):
        out = self.fresh()
        process = subprocess.Popen([str(w) for w in (DEVICE, *self.words(kind, reach, out))], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=system.environment | ENVIRONMENT)
        try:
            stdout, stderr = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"it had not ended after {DEADLINE_S} s"
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        return verdict(done, (out / "p.gguf").read_bytes())

    def serve(self, reach, wanted=None):
        """A local client asks spa serve in front of it: an answer or an error as OpenAI has them, and the server lives on and ends well."""
        port = own_port()
        log = self.fresh() / "log"
        with open(log, "w") as f:
            process = subprocess.Popen([str(w) for w in (DEVICE, "serve", "--plugin", f"mine={self.plugin}", "--port", port, "--retry", "1", "--ping", "1", *reach)],
                                       stdin=subprocess.DEVNULL, stdout=f, stderr=f, env=system.environment | ENVIRONMENT)
        try:
            found = ask(process, port, wanted)
            if found == HUNG_UP:   # it does not listen any more: it is on its way out
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                found = "spa serve did not end after SIGTERM"
        said = log.read_text(errors="replace")
        if "Sanitizer" in said or "runtime error" in said or process.returncode not in (0, 1, -signal.SIGTERM) or (process.returncode and len(said.strip().splitlines()) != 1):
            return f"spa serve ended with {process.returncode}: {said[-1500:]}"   # with 1 before it listens: it says why
        return None if process.returncode else found   # by our SIGTERM, too, where that meets it on its way out, when it has said why


ports = itertools.count(20000 + os.getpid() % 97 * 128)


def own_port():
    """One that nobody of this process is given again, and no connection of the system's has: two servers at once are started here."""
    while True:
        port = 20000 + next(ports) % 12000
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def ask(process, port, wanted):
    body = json.dumps({"model": "mine", "messages": [{"role": "user", "content": "What is 3?"}], "temperature": 0, "max_tokens": 6, "seed": 1, "logprobs": True, "top_logprobs": 3})
    deadline = time.monotonic() + DEADLINE_S
    while True:
        if process.poll() is not None:
            return None   # what it said is looked at by the caller
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            read = answer.read()
            connection.close()
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                return "spa serve did not listen"
            time.sleep(0.05)
        except (OSError, http.client.HTTPException) as e:
            return HUNG_UP if isinstance(e, (ConnectionError, http.client.RemoteDisconnected)) else f"a local client got {type(e).__name__}: {e}"
    try:
        told = json.loads(read)
        good = wanted in (None, answer.status) and ("choices" in told if answer.status == 200 else len(told["error"]["message"].split()) >= 4)
    except (ValueError, KeyError, TypeError):
        good = False
    return None if good else f"a local client got {answer.status}: {read[:300]!r}"


def verdict(done, plugin):
    """None, or what is wrong. plugin: what now stands where an older one was."""
    if done.returncode == FAULT or "Sanitizer" in done.stderr or "runtime error" in done.stderr:
        return done.stderr[-2500:]
    if done.returncode == 0:
        return None if plugin == OLDER or plugin[:4] == b"GGUF" else "the plugin file is torn"
    if plugin != OLDER:
        return "the older plugin file was harmed"
    try:
        system.one_sentence(done)
    except AssertionError as e:
        return str(e)
    return None if not any(ord(c) < 32 and c not in "\r\n\t" for c in done.stderr) else f"control characters reach the terminal: {done.stderr!r}"


def workers():
    return max(4, 2 * (os.cpu_count() or 2))   # most of a liar's time is waiting
