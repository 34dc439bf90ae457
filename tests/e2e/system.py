"""The two programs as a user runs them: starts spa-cloud, runs spa, and makes certificates.

In:  SPA_BUILD, the folder that holds both; SPA_MODEL, a SmolLM2 GGUF.
Out: Cloud, spa(), ask(), one_sentence(), Authority. Every process is ended by its own id.
"""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
EXAMPLES = HERE.parent.parent / "examples"
TINY = GOLDEN / "tiny.base.gguf"
BUILD = pathlib.Path(os.environ.get("SPA_BUILD", "")).resolve()
SMOL = pathlib.Path(os.environ.get("SPA_MODEL", "")).resolve()
SPA = BUILD / "spa"
SPA_CLOUD = BUILD / "spa-cloud"
PATIENCE_S = 300      # a sanitizer build on a busy machine

# What parity with F32 references needs.
F32 = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")

# The user's own settings for spa stay out; conftest points the caches into the session's folder.
environment = {name: value for name, value in os.environ.items() if not name.startswith("SPA_")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cloud:
    """spa-cloud on a free port, ready when the block begins; ended at its end, and then it must have ended well."""

    client = None   # a certificate that it wants of those who ask

    def __init__(self, log, model, *options, authority=None, certificate=None, client=None):
        self.log, self.port, self.tls = pathlib.Path(log), free_port(), certificate is not None
        self.command = [SPA_CLOUD, "-m", model, "--host", "127.0.0.1", "--port", str(self.port), *options]
        self.authority, self.client = authority, client
        if self.tls:
            self.command += ["--ssl-key-file", certificate.key, "--ssl-cert-file", certificate.cert]
        self.killed = False

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(list(map(str, self.command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=environment)
        try:
            self.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *failure):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"spa-cloud did not end within 30 s of SIGTERM:\n{self.said()}") from None
        if not self.killed and failure == (None, None, None):
            assert self.process.returncode == 0, f"spa-cloud ended with {self.process.returncode}:\n{self.said()}"

    def wait_until_ready(self):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, f"spa-cloud ended before it was ready:\n{self.said()}"
            assert time.monotonic() < deadline, f"spa-cloud was not ready within {PATIENCE_S} s:\n{self.said()}"
            try:
                if self.get("/health")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.02)

    def get(self, path, headers=None, method="GET"):
        """Status, headers and body of a plain HTTP request on the same port."""
        if self.tls:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self.tls_context())
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def tls_context(self):
        context = ssl._create_unverified_context()
        if self.client:
            context.load_cert_chain(self.client.cert, self.client.key)
        return context

    @property
    def url(self):
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}"

    def reach(self):
        """Options of spa that lead here."""
        return ["--cloud", self.url, *(["--ca-file", self.authority.cert] if self.authority else [])]

    def start_again(self):
        """After kill: on the same port."""
        self.__enter__()
        self.killed = False

    def kill(self):
        self.killed = True
        self.process.kill()
        self.process.wait()

    def said(self):
        return self.log.read_text(errors="replace")[-4000:]


def wait_for(condition):
    """What a cloud does by itself, a moment after its answer."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def start(*words, **options):
    """A running spa whose output is read by the caller."""
    return subprocess.Popen([str(w) for w in (SPA, *words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=environment, **options)


def finish(process, timeout=PATIENCE_S):
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args} did not end within {timeout} s; it said: {err.decode(errors='replace')}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out.decode(errors="replace"),
                                       err.decode(errors="replace"))


def spa(*words, timeout=PATIENCE_S, **options):
    """spa run to its end, whatever that is."""
    return finish(start(*words, **options), timeout)


def read_some(process, n=20):
    """The first n bytes or more of an answer that streams."""
    got = b""
    while len(got) < n:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, process.stderr.read().decode()
        got += piece
    return got.decode(errors="replace")


def good(result):
    assert result.returncode == 0, f"{' '.join(map(str, result.args))} ended with {result.returncode}: {result.stderr}"
    return result


def question(reach, prompt, plugin=None, verb="chat", n=24, gate="auto"):
    """The words that make spa answer greedily as JSON."""
    return [verb, "--json", "-p", prompt, "--temp", "0", "-n", str(n), "--gate", gate, *reach,
            *(["--plugin", plugin] if plugin else [])]


def ask(cloud, prompt, plugin=None, **how):
    return json.loads(good(spa(*question(cloud.reach(), prompt, plugin, **how))).stdout)


# What spa train tells on the way when stderr is no terminal: a phase and its result.
PROGRESS = re.compile(r"(rows|head|basis|states|general|features|cloud|epochs?|gate|eval) ")


def one_sentence(result):
    """What a run that failed says about it: one line that a person can read, and after it nothing."""
    assert result.returncode not in (0, None), f"ended well: {result.stdout}"
    assert result.returncode > 0, f"ended by signal {-result.returncode}: {result.stderr}"
    lines = [line for line in re.split(r"[\r\n]+", result.stderr) if line.strip()]
    while len(lines) > 1 and "train" in map(str, result.args) and PROGRESS.match(lines[0]):
        lines.pop(0)
    assert len(lines) == 1, f"not one line: {result.stderr!r}"
    assert len(lines[0].split()) >= 4, f"no sentence: {lines[0]!r}"
    return lines[0]


def limit_file_size(n_bytes):
    """For preexec_fn: writes beyond n_bytes of any file fail, as on a full disk."""
    import resource

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)   # the write fails with EFBIG in place of a signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
    return limit


class Pair:
    """A certificate and its key."""

    def __init__(self, cert, key):
        self.cert, self.key = cert, key


def openssl(*words):
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Authority(Pair):
    """A certificate authority that nobody else trusts."""

    def __init__(self, folder, name="spa test authority"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(exist_ok=True)
        super().__init__(self.folder / "ca.pem", self.folder / "ca.key")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key,
                "-out", self.cert, "-days", "2", "-subj", f"/CN={name}")

    def issue(self, name="127.0.0.1", days=2, usage="serverAuth"):
        """A server's certificate for the address `name`, or with clientAuth a device's; negative days: it has expired."""
        stem = self.folder / f"server{days}-{name}"
        pair = Pair(f"{stem}.pem", f"{stem}.key")
        extensions = pathlib.Path(f"{stem}.ext")
        kind = "IP" if name[0].isdigit() else "DNS"
        extensions.write_text(f"subjectAltName={kind}:{name}\nextendedKeyUsage={usage}\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", pair.key, "-out",
                f"{stem}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{stem}.csr", "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-days",
                str(days), "-extfile", extensions, "-out", pair.cert)
        return pair


def write_rows(path, pairs):
    with open(path, "w", encoding="utf-8") as f:
        for user, answer in pairs:
            f.write(json.dumps({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}) + "\n")
    return path


def check_environment():
    for variable, path in (("SPA_BUILD", SPA), ("SPA_BUILD", SPA_CLOUD), ("SPA_MODEL", SMOL)):
        if not os.environ.get(variable) or not path.is_file():
            sys.exit(f"tests/e2e: {variable} must lead to {path.name or 'a model'}; it is '{os.environ.get(variable, '')}'.")
