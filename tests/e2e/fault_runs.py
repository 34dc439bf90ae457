"""spa with one call that fails, after each other: for tests/e2e/test_faults.py and tests/soak/faults.py.

The program is spa_faults (tests/faults): of all calls of its own code that allocate, or that work on files, the Nth fails. Whatever N is, it
does not crash and leaks nothing; it ends well with what it should have made, or says one sentence and ends with a code that is not 0. Files
are the old ones or whole new ones.
"""
import contextlib
import hashlib
import http.client
import json
import re
import shutil
import signal
import struct
import subprocess
import time

import lying_runs
import plugins
import system

SANITIZED = system.BUILD / "sanitize" / "tests" / "faults" / "spa_faults"
PLAIN = system.BUILD / "tests" / "faults" / "spa_faults"
PROGRAM = SANITIZED if SANITIZED.is_file() else PLAIN
LIBRARIES = system.BUILD / "tests" / "faults" / "spa_faults_libraries"
FAULT, DEADLINE_S = 99, 120
SANITIZER = {"ASAN_OPTIONS": f"exitcode={FAULT}:detect_leaks=1", "UBSAN_OPTIONS": f"exitcode={FAULT}:print_stacktrace=1"}
OLDER = b"older" * 100
CLASSES = ("alloc", "file")
KINDS = ("convert", "folder", "chat", "train", "serve")


class Runs:
    def __init__(self, cloud, folder, program=PROGRAM):
        self.cloud, self.folder, self.program, self.count, self.good = cloud, folder, program, 0, {}
        folder.mkdir(exist_ok=True)
        self.rows = system.write_rows(folder / "rows.jsonl", [(f"What is {i}?", f"It is {i}.") for i in range(6)])
        self.plugin = folder / "mine.gguf"
        system.good(system.spa("train", self.rows, "-o", self.plugin, *cloud.reach(), "--epochs", "2", "--general", "0", "--basis", "task:16",
                               "--csv", "none", "--report", "none", "--cache-dir", folder))

    def words(self, kind, out):
        """The command, and the files that it makes: name -> bytes that lie there before, or None."""
        reach = [*self.cloud.reach(), "--ping", "1"]
        if kind == "convert":
            return ["convert", plugins.CHECKPOINT, out / "c.gguf", "--mode", "add"], {"c.gguf": OLDER}
        if kind == "folder":
            return ["convert", self.plugin, f"{out}/adapter/"], {"adapter": None}
        if kind == "chat":
            return ["chat", "--json", "-p", "What is 3?", "-n", "6", "--temp", "0", "--seed", "1", "--retry", "0", "--plugin", self.plugin, "--gate", "always", *reach], {}
        if kind == "train":
            return ["train", self.rows, "-o", out / "p.gguf", *reach, "--epochs", "1", "--general", "2", "--basis", "task:16", "--checkpoint", "0",
                    "--cache-dir", out / "cache", "--retry", "1", "--eval", self.rows], {"p.gguf": OLDER}
        return ["serve", "--plugin", f"mine={self.plugin}", "--retry", "0", *reach], {}

    def run(self, kind, **environment):
        """(result, folder) of a run; a serve is asked once and then ended."""
        self.count += 1
        out = self.folder / f"run{self.count}"
        out.mkdir()
        words, before = self.words(kind, out)
        for name, older in before.items():
            if older:
                (out / name).write_bytes(older)
        port = lying_runs.own_port()
        if kind == "serve":
            words += ["--port", str(port)]
        process = subprocess.Popen([str(w) for w in (self.program, *words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=system.environment | SANITIZER | environment)
        told = ask(process, port) if kind == "serve" else None
        try:
            stdout, stderr = process.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            stderr += b"\nit had not ended in time"
        done = subprocess.CompletedProcess(process.args, process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        done.told = told
        return done, out

    def calls(self, kind):
        """How many calls of each class a run that nothing disturbs makes; its results are what a run that ends well must give."""
        if kind not in self.good:
            counted = self.folder / f"count.{kind}"
            done, out = self.run(kind, SPA_FAIL_COUNT=str(counted))
            assert done.returncode == 0, done.stderr
            numbers = dict(zip(CLASSES, map(int, re.findall(r"\d+", counted.read_text()))))
            self.good[kind] = numbers, self.results(kind, done, out)
            shutil.rmtree(out)
        return self.good[kind][0]

    def results(self, kind, done, out):
        if kind == "chat":
            answer = json.loads(done.stdout)
            return {"text": answer["text"], "tokens": answer["tokens"]}
        if kind == "serve":
            return {}
        return {str(path.relative_to(out)): content(path) for path in sorted(out.rglob("*")) if path.is_file() and path.suffix in (".gguf", ".safetensors", ".features", ".json")}

    def attempt(self, kind, which, n):
        """What is wrong when the nth call of a class fails, or None."""
        self.calls(kind)
        done, out = self.run(kind, SPA_FAIL=f"{which}:{n}")
        found = self.verdict(kind, done, out)
        shutil.rmtree(out)
        return found

    def verdict(self, kind, done, out):
        _, good = self.good[kind]
        if done.returncode < 0 or done.returncode == FAULT or "Sanitizer" in done.stderr or "runtime error" in done.stderr or "not ended" in done.stderr:
            return f"ended with {done.returncode}: {done.stderr[-2500:]}"
        left = [str(path.relative_to(out)) for path in out.rglob("*") if re.search(r"\.tmp$|\.[A-Za-z0-9]{6}$", path.name) and path.name not in good]
        if left:
            return f"left behind: {left}; {done.stderr}"
        if kind == "serve":
            return None if done.told is None else done.told + ": " + done.stderr[-800:]
        made = {} if kind == "chat" and done.returncode else self.results(kind, done, out)
        for name, found in made.items():
            if found != good.get(name) and found != OLDER:
                return f"{name} is neither the old one nor the new one; code {done.returncode}: {done.stderr}"
        if done.returncode == 0:
            return None if set(good) <= set(made) and all(made[name] == good[name] for name in good if not name.endswith(".features")) else f"ended well without its results: {sorted(made)}; {done.stderr}"
        if kind in ("convert", "train") and not any(found in (OLDER, good.get(name)) for name, found in made.items() if name in ("c.gguf", "p.gguf")):
            return f"the older file is gone: {done.stderr}"
        try:
            system.one_sentence(done)
        except AssertionError as e:
            return str(e)
        return None


def content(path):
    """What a whole file says that does not depend on timing: of a plugin the lengths of its tensors (it is saved a second time with what an
    evaluation has shown), of a feature file the number of its records; None when it is torn."""
    data = path.read_bytes()
    if data[:4] == b"GGUF":
        return {name: len(tensor) for name, tensor in plugins.read_gguf(path).items()}
    return read_features(data) if data[:8] == b"SPAFEAT\n" else data


def sha(*pieces):
    return hashlib.sha256(b"".join(pieces)).digest()


def read_features(data):
    """The layout is device/feature_format.h's."""
    try:
        model, plugin, _, basis = struct.unpack_from("<IIIQ", data, 12)
        at = 32 + (model + plugin + 7) // 8 * 8 + (basis + 7) // 8 * 8
        header, records, at = data[at:at + 32], [], at + 32
        assert header == sha(data[:at - 32])
        while data[at:at + 4] == b"REC\n":
            length = 80 + (struct.unpack_from("<Q", data, at + 48)[0] + 7) // 8 * 8
            assert data[at + 56:at + 80] == sha(header, data[at:at + 56], data[at + 80:at + length])[:24]
            records.append(data[at:at + length])
            at += length
        assert data[at:at + 4] == b"END\n" and len(data) == at + 64 and data[at + 32:] == sha(header, *(r[56:80] for r in records), data[at:at + 32])
        return len(records)
    except (AssertionError, struct.error):
        return None


def ask(process, port):
    """One question to spa serve, then SIGTERM. A server that did not come up is judged by its end."""
    body = json.dumps({"model": "mine", "messages": [{"role": "user", "content": "What is 3?"}], "temperature": 0, "max_tokens": 4, "seed": 1})
    deadline, found = time.monotonic() + 30, None
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            json.loads(answer.read())
            connection.close()
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                found = "it did not listen"
                break
            time.sleep(0.02)
        except (ConnectionError, http.client.HTTPException):
            found = "hung up"
            break
        except (OSError, ValueError) as e:
            found = f"a local client got {type(e).__name__} {e}"
            break
    if process.poll() is None and found == "hung up":   # it may be on its way out
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return None if found == "hung up" else found   # without memory for it a connection may be closed


def every(numbers, wanted=None, dice=None):
    """(class, n) of all calls, or a sample of them."""
    all_of_them = [(which, n) for which in CLASSES for n in range(1, numbers[which] + 1)]
    return all_of_them if wanted is None or wanted >= len(all_of_them) else dice.sample(all_of_them, wanted)
