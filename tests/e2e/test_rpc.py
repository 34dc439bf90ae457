"""A model whose layers lie with workers: the same answers, and an end without hanging when a worker dies or says nothing."""
import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import time

import pytest

import cutting_path
import plugins
import system

EXIT_LOST = 75


class Worker:
    """spa-cloud rpc-worker on a free port; ended at the block's end."""

    def __init__(self, log):
        self.port, self.log = system.free_port(), pathlib.Path(log)

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([str(system.SPA_CLOUD), "rpc-worker", "--port", str(self.port), "-t", "1"], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, env=system.environment)
        # Asked by a look at what listens: a connection would be taken for a cloud.
        wanted = f":{self.port:04X} 00000000:0000 0A"
        system.wait_for(lambda: self.process.poll() is not None or wanted in pathlib.Path("/proc/net/tcp").read_text())
        assert self.process.poll() is None, self.log.read_text()
        return self

    def __exit__(self, *failure):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def workers(tmp_path):
    with Worker(tmp_path / "worker0.log") as a, Worker(tmp_path / "worker1.log") as b:
        yield a, b


def rpc(workers):
    return ["--rpc", ",".join(f"127.0.0.1:{w.port}" for w in workers), "--anchors", "none"]


def test_rpc_two_workers_answer_as_one_machine_does(workers, start_cloud, tmp_path):
    plugin = plugins.random_checkpoint(tmp_path, 3, d=576, n_layers=30, r=8, strength=0.05)
    alone = start_cloud(system.SMOL, "--anchors", "none")
    spread = start_cloud(system.SMOL, *rpc(workers))
    for asked in (None, plugin):
        for prompt in ("What is 3?", "Write a story about the sea."):
            here, there = (system.ask(cloud, prompt, asked, n=32) for cloud in (alone, spread))
            assert (there["tokens"], there["text"]) == (here["tokens"], here["text"])
    # Each has some of the layers.
    for worker in workers:
        resident = int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{worker.process.pid}/status").read_text())[1])
        assert resident > 20000, f"{resident} KiB: this worker holds no layers"


def test_rpc_a_worker_leaves_no_core_dump(tmp_path):
    """The states of all tokens pass through it."""
    with Worker(tmp_path / "worker.log") as worker:
        limits = pathlib.Path(f"/proc/{worker.process.pid}/limits").read_text()
        assert re.search(r"Max core file size\s+(\S+)\s+(\S+)", limits).groups() == ("0", "0")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
def test_rpc_a_lost_worker_ends_the_answer_with_a_sentence(how, workers, start_cloud):
    cloud = start_cloud(system.SMOL, *rpc(workers), "--rpc-timeout", "10")
    process = system.start("chat", "-p", "Write a story.", "--temp", "0", "-n", 2000, "--ignore-eos", "--retry", "0", *cloud.reach())
    system.read_some(process)
    with concurrent.futures.ThreadPoolExecutor() as beside:   # the cloud ends a moment after it has turned: somebody must be looking
        ill = beside.submit(health_until_it_ends, cloud)
        workers[1].process.send_signal(how)
        said = system.one_sentence(system.finish(process, 60))
    assert "another cloud" in said, said
    assert any(status == 503 and b"worker" in body for status, body in ill.result())
    late = system.one_sentence(system.spa(*system.question(cloud.reach(), "hi"), timeout=60))
    assert "no more connections now" in late or "refused the connection" in late
    assert cloud.process.wait(60) == EXIT_LOST
    cloud.killed = True
    assert len(re.findall(r"worker", cloud.said())) == 1, "one line says it"


def health_until_it_ends(cloud):
    """All that /health has answered from now on."""
    seen = []
    while cloud.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, _, body = cloud.get("/health")
            seen.append((status, body))
        time.sleep(0.02)
    return seen


class PathThatEnds(cutting_path.CuttingPath):
    """A line to a worker that breaks in the middle of the model's weights."""

    def plan(self):
        return "up", 1 << 20, next(iter(self.kinds)), 0, 0


@pytest.mark.parametrize("kind, limit_s, words", [("stall", 10, "does not answer within 10 s"), ("rst", 60, "is lost")], ids=["silent", "killed"])
def test_rpc_a_worker_lost_while_the_model_loads_is_said(kind, limit_s, words, workers):
    def at_cut(kind):
        if kind == "rst":
            workers[0].process.kill()
    with PathThatEnds(workers[0].port, seed=1, kinds={kind: 1}, at_cut=at_cut) as path:
        lost = [f"127.0.0.1:{path.listener.getsockname()[1]}", f"127.0.0.1:{workers[1].port}"]
        ended = run_cloud("-m", system.SMOL, "--rpc", ",".join(lost), "--anchors", "none", "--rpc-timeout", limit_s)
        *before, said = ended.stderr.splitlines()   # of a connection that broke ggml says a word of its own before
        assert ended.returncode == 1 and "a worker of --rpc" in said and words in said and len(before) <= 1, ended.stderr
        assert sum(path.cuts.values()) == 1


def test_rpc_a_silent_worker_does_not_hold_up_an_idle_clouds_end(workers, start_cloud):
    cloud = start_cloud(system.SMOL, *rpc(workers), "--rpc-timeout", "20")
    for worker in workers:
        worker.process.send_signal(signal.SIGSTOP)
    cloud.process.terminate()
    assert cloud.process.wait(system.PATIENCE_S) in (0, 1)   # by libllama's version its buffers are given back with an answer or without
    cloud.killed = True


def test_rpc_an_answer_goes_on_elsewhere_when_a_worker_dies(workers, start_cloud, tmp_path):
    plugin = plugins.random_checkpoint(tmp_path, 3, d=576, n_layers=30, r=8, strength=0.05)
    whole, spread = start_cloud(system.SMOL, "--anchors", "none"), start_cloud(system.SMOL, *rpc(workers))
    asked = ["chat", "-p", "Write a story about the sea.", "--temp", "0.9", "--seed", "11", "-n", "64", "--ignore-eos", "--plugin", plugin, "--gate", "always"]
    expected = json.loads(system.good(system.spa(*asked, "--json", *whole.reach())).stdout)["text"]
    process = system.start(*asked, "--retry", "60", "--cloud", f"{spread.url},{whole.url}")
    began = system.read_some(process)
    workers[0].process.kill()
    done = system.good(system.finish(process))
    assert (began + done.stdout).rstrip("\n") == expected.rstrip("\n")
    spread.process.wait(60)
    spread.killed = True


def test_rpc_a_worker_serves_the_next_cloud(workers, start_cloud):
    for _ in range(2):
        cloud = start_cloud(system.TINY, *rpc(workers))
        assert system.ask(cloud, "hi", n=8)["text"] is not None
        cloud.process.terminate()
        assert cloud.process.wait(system.PATIENCE_S) == 0


@pytest.mark.parametrize("options, words", [
    (["--rpc", "10.0.0.1:50052"], ("tunnel", "--force")),
    (["--rpc", "127.0.0.1"], ("HOST:PORT",)),
    (["--rpc", "127.0.0.1:50052,"], ("HOST:PORT",)),
    (["--rpc", "127.0.0.1:0"], ("HOST:PORT",)),
    (["--rpc", ",".join(f"127.0.0.1:{p}" for p in range(20000, 20017))], ("16 workers",)),
])
def test_rpc_list_that_will_not_do_is_refused(options, words):
    said = system.one_sentence(run_cloud("-m", system.SMOL, *options))
    assert all(w in said for w in words), said


def test_rpc_worker_that_is_not_there_or_busy_is_said(workers, start_cloud):
    port = system.free_port()
    assert "rpc-worker" in system.one_sentence(run_cloud("-m", system.TINY, "--rpc", f"127.0.0.1:{port}"))
    start_cloud(system.TINY, *rpc(workers))
    assert "busy" in system.one_sentence(run_cloud("-m", system.TINY, *rpc(workers)))


def test_rpc_worker_beyond_loopback_is_refused():
    said = system.one_sentence(run_cloud("rpc-worker", "--host", "0.0.0.0"))
    assert "--force" in said and "tunnel" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = run_cloud("rpc-worker", "--port", taken.getsockname()[1])   # ggml says a word of its own before
        assert ended.returncode == 1 and "is the port taken" in ended.stderr.splitlines()[-1]


def run_cloud(*words):
    """spa-cloud run to its end, which comes by itself."""
    done = subprocess.run([str(w) for w in (system.SPA_CLOUD, *words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=system.environment,
                          timeout=system.PATIENCE_S)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, done.stderr)
