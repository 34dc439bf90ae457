"""What the cloud gives to whom, and what who wants more gets: connections, messages, prompts, places in the queue, tokens, keys. The table is in
SECURITY.md; each of its flags is here or named there with its test."""
import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time

import pytest

import device
import system
from cutting_path import CuttingPath

SMALL = (system.TINY, *system.F32, "--anchors", "none", "--no-self-check")


def values(cloud, **how):
    page = cloud.get("/metrics", **how)[2].decode()
    return {name: float(value) for name, value in re.findall(r"^(spa_\w+(?:\{[^}]*\})?) (\S+)$", page, re.MULTILINE)}


def counts(cloud, family, why, n=1, **how):
    label = {"key_reloads": "outcome", "requests": "end"}.get(family, "why")
    system.wait_for(lambda: values(cloud, **how)[f'spa_{family}_total{{{label}="{why}"}}'] >= n)


def refused(port, **how):
    with pytest.raises(device.Refused) as e:
        device.Device(port, **how)
    return e.value


def ended(d):
    with pytest.raises(device.End) as e:
        d.drain()
    return e.value


# ---- connections ----

def test_limits_connections_in_all(start_cloud):
    cloud = start_cloud(*SMALL, "--max-connections", "2")
    with device.Device(cloud.port), device.Device(cloud.port):
        answer = refused(cloud.port)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "connections" in json.loads(answer.body)["error"]["message"]
        assert "try again in 5 s" in system.one_sentence(system.spa("chat", "-p", "hi", "--retry", "0", *cloud.reach()))
        counts(cloud, "connections_refused", "full", 2)
    system.wait_for(lambda: values(cloud)["spa_connections"] == 0)
    with device.Device(cloud.port) as d:
        d.hello()


def test_limits_a_device_comes_again_when_the_cloud_says(start_cloud):
    """Refused at first, it is let in within --retry, and the user sees nothing of it."""
    cloud = start_cloud(*SMALL, "--max-connections", "1")
    with device.Device(cloud.port):
        waits = system.start(*system.question(cloud.reach(), "hi", n=3))
        counts(cloud, "connections_refused", "full")
    assert len(json.loads(system.good(system.finish(waits)).stdout)["tokens"]) == 3


def test_limits_connections_of_an_address_and_of_a_key(start_cloud, tmp_path):
    cloud = start_cloud(*SMALL, "--max-connections-per-address", "2")
    with device.Device(cloud.port), device.Device(cloud.port):
        answer = refused(cloud.port)
        assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        counts(cloud, "connections_refused", "address")
    (tmp_path / "keys").write_text("one\ntwo\n")
    cloud = start_cloud(*SMALL, "--max-connections-per-key", "1", "--api-key-file", tmp_path / "keys")
    with device.Device(cloud.port, key="one"):
        assert refused(cloud.port, key="one").status == 429
        with device.Device(cloud.port, key="two") as d:
            d.hello()
        counts(cloud, "connections_refused", "per_key", headers={"Authorization": "Bearer two"})


@pytest.mark.skipif("sanitize" in system.BUILD.parts, reason="a sanitizer ends a program that is out of memory")
def test_limits_no_memory_for_a_connection_is_told_to_come_later(start_cloud):
    """Each one needs room for the largest message: here it is there for one, and again when that one has gone."""
    cloud = start_cloud(*SMALL, "--max-message", str(1 << 26))
    with device.Device(cloud.port) as d:
        d.hello()
        had = int(re.search(r"VmSize:\s+(\d+) kB", open(f"/proc/{cloud.process.pid}/status").read())[1]) << 10
        resource.prlimit(cloud.process.pid, resource.RLIMIT_AS, (had + (1 << 25), resource.RLIM_INFINITY))
        with device.Device(cloud.port) as other:
            end = ended(other)
        assert (end.close, end.code) == (1013, "BUSY") and end.error.head["retry_ms"] >= 1000 and "try again" in end.error.bulk.decode()
        counts(cloud, "connections_refused", "full")
        d.generate(1, "hi", 2)
        assert d.until("DONE", "ERROR").type == "DONE"
    system.wait_for(lambda: values(cloud)["spa_connections"] == 0)
    with device.Device(cloud.port) as d:
        d.hello()


def test_limits_a_dead_connection_makes_way_before_its_device_gives_up(start_cloud):
    """Of a key that may have one: its line goes dead without a word, its device notices, and the cloud has to notice within the --retry that the device has."""
    cloud = start_cloud(*SMALL, "--max-connections-per-key", "1", "-c", "2048")
    asked = ["chat", "--json", "-p", "hi", "--temp", "0", "-n", "200", "--ignore-eos"]
    whole = json.loads(system.good(system.spa(*asked, *cloud.reach())).stdout)
    system.wait_for(lambda: values(cloud)["spa_connections"] == 0)
    with CuttingPath(cloud.port, 1, span=500, kinds=["stall"]) as path:
        path.arm(1)
        cut = json.loads(system.good(system.spa(*asked, "--cloud", path.url, "--ping", "1")).stdout)
        assert path.cuts["stall"] == 1
    assert cut["tokens"] == whole["tokens"] and cut["stats"]["resumed"] == 1
    counts(cloud, "connections_refused", "per_key")


@pytest.mark.parametrize("tls", [False, True])
def test_limits_sockets_that_ask_for_nothing(start_cloud, tmp_path, tls):
    """So many may wait; others are closed at once; those that wait are closed when their time is over, and then there is room."""
    authority = system.Authority(tmp_path / "ca") if tls else None
    cloud = start_cloud(*SMALL, "--max-sockets", "4", "--handshake-s", "5", authority=authority, certificate=authority.issue() if tls else None)
    time.sleep(0.1)   # the last look at /health is gone
    with contextlib.ExitStack() as opened:
        waiting = [opened.enter_context(socket.create_connection(("127.0.0.1", cloud.port), 30)) for _ in range(6)]
        for s in waiting[:3]:
            s.sendall(b"GET /v1/spa HTTP/1.1\r\n" if not tls else b"\x16\x03\x01")
        assert any(s.recv(1) == b"" for s in waiting[4:])
        waiting[3].setblocking(False)
        with pytest.raises(BlockingIOError):
            waiting[3].recv(1)   # which came before, and may still wait
        waiting[3].settimeout(30)
        for s in waiting[:4]:
            with contextlib.suppress(ConnectionResetError):
                while s.recv(1000):
                    pass
    counts(cloud, "connections_refused", "sockets")
    counts(cloud, "connections_refused", "unfinished", 3)
    with device.Device(cloud.port, tls=ssl._create_unverified_context() if tls else None) as d:
        d.hello()


def answers_no_long_head(server):
    """An error, or no answer at all."""
    try:
        return server.get("/health", {"X-Long": "a" * 5000})[0] >= 400
    except (OSError, http.client.HTTPException):
        return True


def test_limits_a_long_head_and_a_hello_that_does_not_come(start_cloud):
    cloud = start_cloud(*SMALL, "--max-head", "2048", "--handshake-s", "2")
    assert cloud.get("/health", {"X-Long": "a" * 1500})[0] == 200
    assert answers_no_long_head(cloud)
    counts(cloud, "connections_refused", "unfinished")
    with device.Device(cloud.port) as d:
        end = ended(d)
        assert end.close == 1008 and "HELLO" in end.error.bulk.decode()
    counts(cloud, "connections_cut", "silent")
    assert cloud.get("/health")[0] == 200
    assert cloud.get("/health", method="POST")[0] == 405, "nothing with a body is served"


def test_limits_idle_connections_are_closed_and_busy_ones_not(start_cloud):
    cloud = start_cloud(*SMALL, "--idle-s", "2", "-c", "8192", "-np", "4")
    with device.Device(cloud.port) as idle, device.Device(cloud.port) as busy:
        shape = idle.hello()
        busy.hello(device.raw_plugin(shape))
        busy.generate(1, "hi", 3, gate="always")
        first = busy.until("TAPS")
        end = ended(idle)
        assert (end.close, end.code) == (1000, "BUSY")
        counts(cloud, "connections_cut", "idle")
        time.sleep(2)
        busy.state(first, [0.0] * shape["d"])   # it has owed a state for longer than that
        assert busy.until("TOKENS", "ERROR").type == "TOKENS"


def test_limits_a_ping_is_to_be_answered(start_cloud):
    cloud = start_cloud(*SMALL, "--ping", "2")
    with device.Device(cloud.port) as d:
        d.hello()
        assert d.next_frame()[0] == 9
        d.send_frame(10, b"")
        assert d.next_frame()[0] == 9, "who answers is asked again"
        with pytest.raises((device.End, ConnectionError)):
            while True:
                d.next_frame()   # no pong any more
    counts(cloud, "connections_cut", "ping")


def test_limits_who_answers_pings_or_goes_is_not_counted_as_silent(start_cloud):
    """Both answer for longer than one lives that does not; then one goes away without a word, and the other says goodbye."""
    cloud = start_cloud(*SMALL, "--ping", "2")
    with device.Device(cloud.port) as stays, device.Device(cloud.port) as goes:
        for d in (stays, goes):
            d.hello()
        for _ in range(5):
            stays.send_frame(10, b"")
            goes.send_frame(10, b"")
            time.sleep(1)
        assert values(cloud)["spa_connections"] == 2
        goes.socket.close()
        system.wait_for(lambda: values(cloud)["spa_connections"] == 1)
    system.wait_for(lambda: values(cloud)["spa_connections"] == 0)
    assert values(cloud)['spa_connections_cut_total{why="ping"}'] == 0


# ---- messages and prompts ----

def test_limits_message_size(start_cloud):
    cloud = start_cloud(*SMALL, "--max-message", "65536")
    with device.Device(cloud.port) as d:
        assert d.hello()["max_message"] == 65536
        d.send_frame(2, struct.pack("<BBHI", 5, 0, 0, 65529))
        end = ended(d)
        assert (end.close, end.code) == (1009, "TOO_LARGE")
    counts(cloud, "connections_cut", "size")


def test_limits_prompt_bytes_are_counted_before_they_are_read(start_cloud):
    """Without a limit of its own a cloud looks at what could fit; a million bytes could not."""
    for options, size, words in (("--max-prompt", "1000"), 1001, "1001 bytes"), ((), 1000000, "1000000 bytes"):
        cloud = start_cloud(*SMALL, *options)
        with device.Device(cloud.port) as d:
            d.hello()
            d.generate(1, "a" * size)
            refusal = d.until("ERROR", "TOKENS")
            assert device.CODES[refusal.head["code"]] == "CONTEXT_FULL" and words in refusal.bulk.decode()
            d.generate(2, "hi", 2)
            assert d.until("DONE", "ERROR").type == "DONE", "the connection stays"
        counts(cloud, "requests_refused", "context")


def test_limits_a_context_and_its_share_are_a_requests_own(start_cloud):
    """256 tokens a slot: a prompt of more is refused although its bytes could be as many, an answer ends where its slot does, a neighbour's goes on."""
    cloud = start_cloud(*SMALL, "-c", "512", "-np", "2")
    with device.Device(cloud.port) as d, device.Device(cloud.port) as neighbour:
        for each in (d, neighbour):
            each.hello()
        d.generate(1, "1 2 " * 150)
        refusal = d.until("ERROR", "DONE")
        assert refusal.type == "ERROR" and device.CODES[refusal.head["code"]] == "CONTEXT_FULL" and "256" in refusal.bulk.decode()
        counts(cloud, "requests_refused", "context")
        neighbour.generate(1, "hi", 200)
        d.generate(2, "hi", 1000)
        assert d.until("DONE", "ERROR").type == "DONE"
        counts(cloud, "requests", "context")
        assert neighbour.until("DONE", "ERROR").type == "DONE"
    assert values(cloud)['spa_requests_total{end="length"}'] == 1


def test_limits_a_connection_is_read_no_further_than_it_is_looked_at(start_cloud):
    """More than may wait comes in one message: it is read piece by piece, and is whole in the end."""
    cloud = start_cloud(*SMALL, "--max-unread", "1024", "--max-prompt", "1000")
    with device.Device(cloud.port) as d:
        d.hello()
        assert values(cloud)["spa_reads_paused_total"] == 0
        d.generate(1, "a" * 300000)
        assert "300000 bytes" in d.until("ERROR", "TOKENS").bulk.decode()
        d.generate(2, "hi", 2)
        assert d.until("DONE", "ERROR").type == "DONE"
    assert values(cloud)["spa_reads_paused_total"] >= 1


def test_limits_a_device_that_does_not_read_is_cut(start_cloud):
    """It fetches the LM head again and again, and leaves it lying."""
    cloud = start_cloud(*SMALL, "--max-unsent", str(1 << 20), "-c", "1024")
    with device.Device(cloud.port) as d:
        d.hello()
        raw = device.decode({"head_bytes": (14, "u"), "head_hash": (15, "s")}, d.raw_welcome)
        with contextlib.suppress(device.End, OSError):
            d.socket.settimeout(5)
            for _ in range((24 << 20) // min(raw["head_bytes"], 48 << 10)):   # more than the system's own buffers hold, less than the usual limit
                d.socket.sendall(d.framed("FETCH", {"kind": 0, "hash": raw["head_hash"], "offset": 0}))
        counts(cloud, "connections_cut", "unread")


# ---- places and tokens ----

def hold(cloud, requests, **how):
    """A connection whose requests wait for states that do not come."""
    d = device.Device(cloud.port, **how)
    shape = d.hello()
    d.socket.close()
    d = device.Device(cloud.port, **how)
    d.hello(device.raw_plugin(shape))
    for number in range(1, requests + 1):
        d.generate(number, f"hold {number}", 8, gate="always")
    return d


@pytest.mark.parametrize("options, most", [((), 64), (("--max-requests-per-connection", "3"), 3)], ids=["usual", "few"])
def test_limits_requests_of_a_connection(start_cloud, options, most):
    cloud = start_cloud(*SMALL, "-np", "2", *options)
    with hold(cloud, most + 1) as d:
        assert d.until("ERROR").head["request"] == most + 1
    counts(cloud, "requests_refused", "connection")


def test_limits_states_awaited(start_cloud):
    """A device that answers nothing is asked for the front's state, and for those behind so many guesses."""
    cloud = start_cloud(*SMALL, "--run-ahead", "3", "--run-ahead-always", "--max-bad-states", "0")
    with device.Device(cloud.port) as d:
        shape = d.hello()
    with device.Device(cloud.port) as d:
        d.hello(device.raw_plugin(shape))
        d.generate(1, "hi", 60, gate="always", answer_ms=600000, run_ahead=100)
        system.wait_for(lambda: values(cloud)["spa_states_awaited"] == 4)
        for _ in range(4):
            d.until("TAPS")
        time.sleep(0.5)
        assert values(cloud)["spa_states_awaited"] == 4
    system.wait_for(lambda: values(cloud)["spa_states_awaited"] == 0)


def test_limits_the_queue_is_shared_out_fairly(start_cloud):
    """One connection takes the slot and all places; another one gets some of these, up to the half."""
    cloud = start_cloud(*SMALL, "-np", "1", "--max-queue", "8")
    with hold(cloud, 1) as slot, hold(cloud, 8) as greedy:
        slot.until("TAPS")
        system.wait_for(lambda: values(cloud)["spa_queue_requests"] == 8)
        with device.Device(cloud.port) as late:
            late.hello()
            for number in range(1, 7):
                late.generate(number, "hi", 2)
            losers = [greedy.until("ERROR") for _ in range(4)]
            assert [e.head["request"] for e in losers] == [8, 7, 6, 5], "the newest places go first"
            assert all(device.CODES[e.head["code"]] == "BUSY" and e.head["retry_ms"] >= 1000 for e in losers)
            mine = [late.until("ERROR") for _ in range(2)]
            assert [e.head["request"] for e in mine] == [5, 6] and "queue is full" in mine[0].bulk.decode()
        counts(cloud, "requests_refused", "crowded_out", 4)
        counts(cloud, "requests_refused", "queue", 2)
        system.wait_for(lambda: values(cloud)["spa_queue_requests"] == 4)


def test_limits_slots_are_shared_out_among_keys(start_cloud, tmp_path):
    """A key with many connections waits behind one with one."""
    (tmp_path / "keys").write_text("many\nfew\n")
    cloud = start_cloud(*SMALL, "-np", "2", "--api-key-file", tmp_path / "keys", "-c", "2048")
    with contextlib.ExitStack() as opened:
        first = opened.enter_context(hold(cloud, 1, key="many"))
        other = opened.enter_context(hold(cloud, 1, key="many"))
        first.until("TAPS")
        other.until("TAPS")
        third = opened.enter_context(hold(cloud, 1, key="many"))
        system.wait_for(lambda: values(cloud, headers={"Authorization": "Bearer few"})["spa_queue_requests"] == 1)
        few = opened.enter_context(hold(cloud, 1, key="few"))
        system.wait_for(lambda: values(cloud, headers={"Authorization": "Bearer few"})["spa_queue_requests"] == 2)
        first.send("CANCEL", {"request": 1})
        assert few.until("TAPS", "ERROR").type == "TAPS", "it came last, and its key has no slot"
        other.send("CANCEL", {"request": 1})
        assert third.until("TAPS", "ERROR").type == "TAPS"


def test_limits_sessions_of_a_key(start_cloud, tmp_path):
    (tmp_path / "keys").write_text("one\ntwo\n")
    cloud = start_cloud(*SMALL, "--max-sessions-per-key", "2", "--api-key-file", tmp_path / "keys")
    with hold(cloud, 1, key="one") as a, hold(cloud, 2, key="one") as b:
        refusal = b.until("ERROR")
        assert refusal.head["request"] == 2 and device.CODES[refusal.head["code"]] == "BUSY" and refusal.head["retry_ms"] >= 1000
        with device.Device(cloud.port, key="two") as d:
            d.hello()
            d.generate(1, "hi", 2)
            assert d.until("DONE", "ERROR").type == "DONE", "others' are their own"
        a.until("TAPS")
        a.send("CANCEL", {"request": 1})
        a.until("DONE")
        b.generate(3, "hi", 2, gate="never")
        assert b.until("DONE", "ERROR").type == "DONE"
        counts(cloud, "requests_refused", "key", headers={"Authorization": "Bearer two"})


def test_limits_tokens_of_a_key(start_cloud, tmp_path):
    """A minute's tokens are spent; connecting anew brings none back; the cloud says when there will be some, and another key has its own."""
    (tmp_path / "keys").write_text("one\ntwo\n")
    cloud = start_cloud(*SMALL, "--tokens-per-minute", "60", "--api-key-file", tmp_path / "keys")
    for key in ("one", "two"):
        with device.Device(cloud.port, key=key) as d:
            d.hello()
            d.generate(1, "hi", 64)
            assert d.until("DONE", "ERROR").type == "DONE", "what has begun is not cut off"
    with device.Device(cloud.port, key="one") as d:
        d.hello()
        d.generate(1, "hi", 2)
        refusal = d.until("ERROR", "DONE")
        assert refusal.type == "ERROR" and "tokens a minute" in refusal.bulk.decode() and 1000 <= refusal.head["retry_ms"] <= 60000
        counts(cloud, "requests_refused", "tokens", headers={"Authorization": "Bearer one"})


def test_limits_an_answer_that_has_begun_goes_on_though_its_key_owes_tokens(start_cloud, tmp_path):
    """Cut off and asked for again, it may owe a minute's tokens, and no more: else who makes up a beginning had no limit."""
    (tmp_path / "keys").write_text("one\ntwo\n")
    cloud = start_cloud(*SMALL, "--tokens-per-minute", "100", "-c", "4096", "--api-key-file", tmp_path / "keys")

    def spend(key, n):
        """So many tokens, which it gets."""
        with device.Device(cloud.port, key=key) as d:
            d.hello()
            d.generate(1, "hi", n)
            ids = []
            while (m := d.until("TOKENS", "DONE", "ERROR")).type == "TOKENS":
                ids += m.head["ids"]
            assert m.type == "DONE" and len(ids) == n
            return ids

    def again(key, ids, n):
        """(how it ends, the tokens behind ids)"""
        with device.Device(cloud.port, key=key) as d:
            d.hello()
            d.generate(1, "hi", n, more_parts=device.parts((6, struct.pack(f"<{len(ids)}i", *ids))))
            behind = []
            while (m := d.until("TOKENS", "DONE", "ERROR")).type == "TOKENS":
                behind += m.head["ids"]
            return m.type, behind
    ids = spend("one", 150)
    with device.Device(cloud.port, key="one") as d:
        d.hello()
        d.generate(1, "hi", 2)
        assert d.until("ERROR", "DONE").type == "ERROR", "its minute is spent"
    assert again("one", ids[:120], 150) == ("DONE", ids[120:])
    assert again("two", spend("two", 350)[:120], 350)[0] == "ERROR", "three minutes are"
    counts(cloud, "requests_refused", "tokens", 2, headers={"Authorization": "Bearer one"})


def test_limits_a_device_asks_again_when_the_cloud_says(start_cloud):
    """Through `spa`: a request that was refused for the tokens of its minute has its answer some seconds later; without --retry it says so."""
    cloud = start_cloud(*SMALL, "--tokens-per-minute", "600")
    with device.Device(cloud.port) as d:
        d.hello()
        for number in range(1, 4):
            d.generate(number, "hi", 210)
        for _ in range(3):
            d.until("DONE", "ERROR")
    assert "tokens a minute" in system.one_sentence(system.spa("chat", "-p", "hi", "-n", "3", "--retry", "0", *cloud.reach()))
    assert len(json.loads(system.good(system.spa(*system.question(cloud.reach(), "hi", n=3))).stdout)["tokens"]) == 3


def test_limits_no_request_waits_for_states_longer_than_the_cloud_allows(start_cloud):
    """It asks for ten minutes and would wait even then; the cloud grants a moment."""
    cloud = start_cloud(*SMALL, "--answer-ms-max", "200")
    for late, ends in ("base", "TOKENS"), ("wait", "ERROR"):
        with device.Device(cloud.port) as d:
            shape = d.hello()
        with device.Device(cloud.port) as d:
            d.hello(device.raw_plugin(shape))
            d.generate(1, "hi", 2, gate="always", late=late, answer_ms=600000)
            assert d.until("TOKENS", "ERROR", "DONE").type == ends
    assert values(cloud)['spa_states_unused_total{why="late"}'] >= 2


# ---- keys ----

def made_key(tmp_path, name):
    done = subprocess.run([system.SPA_CLOUD, "key", "--name", name, "-o", tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.stat(tmp_path / name).st_mode & 0o777 == 0o600
    key = (tmp_path / name).read_text().strip()
    assert key not in done.stdout and done.stdout.startswith("sha256:") and done.stdout.endswith(f" {name}\n")
    again = subprocess.run([system.SPA_CLOUD, "key", "-o", tmp_path / name], capture_output=True, text=True)
    assert again.returncode == 1 and name in again.stderr and (tmp_path / name).read_text().strip() == key
    return key, done.stdout


def test_limits_keys_are_read_again(start_cloud, tmp_path):
    """A key that is added is known, one that is taken out ends what goes on with it, and a file that cannot be read changes nothing."""
    (alice, alices), (bob, bobs) = made_key(tmp_path, "alice"), made_key(tmp_path, "bob")
    keys = tmp_path / "keys"
    keys.write_text(alices)
    cloud = start_cloud(*SMALL, "--api-key-file", keys)
    system.good(system.spa("chat", "-p", "hi", "-n", "2", *cloud.reach(), "--api-key-file", tmp_path / "alice"))
    assert refused(cloud.port, key=bob).status == 401
    with device.Device(cloud.port, key=alice) as d:
        d.hello()
        keys.write_text("sha256:12\n")
        cloud.process.send_signal(signal.SIGHUP)
        counts(cloud, "key_reloads", "refused", headers={"Authorization": f"Bearer {alice}"})
        assert "line 1" in cloud.said() and "stay as they were" in cloud.said()
        keys.write_text(alices + bobs)
        cloud.process.send_signal(signal.SIGHUP)
        counts(cloud, "key_reloads", "taken", headers={"Authorization": f"Bearer {alice}"})
        with device.Device(cloud.port, key=bob) as other:
            other.hello()
            keys.write_text(bobs)
            cloud.process.send_signal(signal.SIGHUP)
            end = ended(d)
            assert (end.code, end.close) == ("DENIED", 1008) and "key" in end.error.bulk.decode()
            other.generate(1, "hi", 2)
            assert other.until("DONE", "ERROR").type == "DONE", "bob's goes on"
        assert refused(cloud.port, key=alice).status == 401
    counts(cloud, "connections_cut", "key", headers={"Authorization": f"Bearer {bob}"})
    for secret in (alice, bob, alices.split()[0][7:]):
        assert secret not in cloud.log.read_text() and secret not in json.dumps([values(cloud, headers={"Authorization": f"Bearer {bob}"})])
    assert "plain text" not in cloud.log.read_text()


def test_limits_plain_keys_and_open_files_are_warned_of(start_cloud, tmp_path):
    keys, mine = tmp_path / "keys", tmp_path / "mine"
    for path in (keys, mine):
        path.write_text("open-sesame\n")
        path.chmod(0o644)
    cloud = start_cloud(*SMALL, "--api-key-file", keys)
    assert "spa-cloud key" in cloud.said() and "chmod 600" in cloud.said()
    done = system.good(system.spa("chat", "-p", "hi", "-n", "2", *cloud.reach(), "--api-key-file", mine))
    assert "chmod 600" in done.stderr and "sesame" not in done.stderr + cloud.said()
    mine.chmod(0o600)
    assert system.good(system.spa("chat", "-p", "hi", "-n", "2", *cloud.reach(), "--api-key-file", mine)).stderr == ""


# ---- certificates of devices ----

@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtls")
    mine, other = system.Authority(folder / "ca"), system.Authority(folder / "other", "somebody else")
    return mine, mine.issue(), mine.issue("alice.example", usage="clientAuth"), mine.issue("bob.example", usage="clientAuth"), \
        other.issue("alice.example", usage="clientAuth"), mine.issue("carol.example", days=-1, usage="clientAuth")


def test_limits_certificates_of_devices(start_cloud, authorities, tmp_path):
    mine, server, alice, bob, foreign, expired = authorities
    cloud = start_cloud(*SMALL, "--ssl-ca-file", mine.cert, "--max-connections-per-key", "1", authority=mine, certificate=server, client=alice)
    ask = ["chat", "-p", "hi", "-n", "2", "--retry", "0", *cloud.reach()]
    system.good(system.spa(*ask, "--cert-file", alice.cert, "--key-file", alice.key))
    assert "--cert-file" in system.one_sentence(system.spa(*ask))
    for pair in (foreign, expired):
        said = system.one_sentence(system.spa(*ask, "--cert-file", pair.cert, "--key-file", pair.key))
        assert "accept the certificate" in said, "how sure it is depends on whether TLS' alert overtakes the end of the connection"
    assert "belong together" in system.one_sentence(system.spa(*ask, "--cert-file", alice.cert))
    assert "private key" in system.one_sentence(system.spa(*ask, "--cert-file", alice.cert, "--key-file", bob.key))

    def context(pair):
        c = ssl._create_unverified_context()
        c.load_cert_chain(pair.cert, pair.key)
        return c
    with device.Device(cloud.port, tls=context(alice)) as d:
        d.hello()
        assert refused(cloud.port, tls=context(alice)).status == 429, "a certificate counts as a key"
        with device.Device(cloud.port, tls=context(bob)) as other:
            other.hello()


def test_limits_certificates_need_tls():
    done = subprocess.run([system.SPA_CLOUD, "-m", system.TINY, "--ssl-ca-file", system.TINY], capture_output=True, text=True, env=system.environment)
    assert "--ssl-key-file" in system.one_sentence(done)


# ---- spa serve ----

@contextlib.contextmanager
def local_server(cloud, tmp_path, *options):
    port = system.free_port()
    log = open(tmp_path / "serve.log", "w")
    process = subprocess.Popen([str(w) for w in (system.SPA, "serve", "--port", port, *cloud.reach(), *options)], stdin=subprocess.DEVNULL, stderr=log,
                               env=system.environment)
    try:
        system.wait_for(lambda: "serves" in (tmp_path / "serve.log").read_text())
        yield port, process
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def post(port, key=None, size=10, timeout=60, stream=False):
    import http.client
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    body = json.dumps({"messages": [{"role": "user", "content": "a" * size}], "max_tokens": 3, "stream": stream})
    c.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})})
    return c.getresponse()


def test_limits_of_the_local_server(start_cloud, tmp_path):
    cloud = start_cloud(*SMALL)
    with local_server(cloud, tmp_path, "--max-body", "2000", "--max-connections", "3", "--request-s", "1") as (port, _):
        assert post(port).status == 200
        assert post(port, size=3000).status == 413
        with contextlib.ExitStack() as opened:
            waiting = [opened.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(8)]
            closed = 0
            for s in waiting:
                s.settimeout(30)
                with contextlib.suppress(OSError):
                    s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
                with contextlib.suppress(ConnectionResetError):
                    while s.recv(1000):
                        pass
                closed += 1
            assert closed == 8, "some at once, the others when their second is over"
        refused = local_value(port, "connections_refused_total")
        assert refused >= 1 and local_value(port, "connections_unfinished_total") == 8 - refused
        assert local_value(port, 'requests_total{api="chat",code="413"}') == 1


def test_limits_of_a_local_requests_head_and_time(start_cloud, tmp_path):
    """Who brings too long a head, or a body too slowly, gets no answer and is counted; who asks again on an open connection, or takes the WebSocket's way, is not."""
    cloud = start_cloud(*SMALL)
    with local_server(cloud, tmp_path, "--max-head", "2048", "--request-s", "2") as (port, _):
        for n, starts in (1500, True), (5000, False):
            try:
                assert (get(port, "/health", {"X-Long": "a" * n}) is not None) == starts
            except (OSError, http.client.HTTPException):
                assert not starts
        assert local_value(port, "connections_unfinished_total") == 1
        with socket.create_connection(("127.0.0.1", port), 30) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            with contextlib.suppress(ConnectionResetError):
                assert s.recv(1000) == b""
        assert local_value(port, "connections_unfinished_total") == 2
        again = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(2):
            again.request("GET", "/health")
            assert again.getresponse().read()
        again.close()
        system.wait_for(lambda: local_value(port, "connections_open") == 1)
        assert local_value(port, "connections_unfinished_total") == 2


def get(port, path, headers=None):
    import urllib.request
    return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {}), timeout=30).read()


def local_value(port, name):
    return float(re.search(rf"^spa_serve_{re.escape(name)} (\S+)$", get(port, "/metrics").decode(), re.MULTILINE)[1])


def test_limits_local_keys_are_read_again(start_cloud, tmp_path):
    (_, alices), (bob, bobs) = made_key(tmp_path, "alice"), made_key(tmp_path, "bob")
    alice = (tmp_path / "alice").read_text().strip()
    keys = tmp_path / "keys"
    keys.write_text(alices)
    cloud = start_cloud(*SMALL)
    with local_server(cloud, tmp_path, "--client-key-file", keys) as (port, process):
        assert (post(port, alice).status, post(port, bob).status) == (200, 401)
        assert "plain text" not in (tmp_path / "serve.log").read_text()
        keys.write_text("sha256:\n")
        process.send_signal(signal.SIGHUP)
        system.wait_for(lambda: "line 1" in (tmp_path / "serve.log").read_text())
        assert post(port, alice).status == 200
        keys.write_text(bobs)
        process.send_signal(signal.SIGHUP)
        system.wait_for(lambda: "1 keys from now on" in (tmp_path / "serve.log").read_text())
        assert (post(port, alice).status, post(port, bob).status) == (401, 200)
    keys.write_text("open sesame\n")
    with local_server(cloud, tmp_path, "--client-key-file", keys):
        system.wait_for(lambda: "spa-cloud key" in (tmp_path / "serve.log").read_text())


def test_limits_the_local_server_hands_on_when_to_ask_again(start_cloud, tmp_path):
    cloud = start_cloud(*SMALL, "--tokens-per-minute", "100")
    with local_server(cloud, tmp_path) as (port, _):
        with device.Device(cloud.port) as d:
            d.hello()
            d.generate(1, "hi", 150)
            d.until("DONE", "ERROR")
        answer = post(port)
        assert answer.status == 429 and 20 <= int(answer.headers["retry-after"]) <= 60, (answer.status, answer.headers)


# ---- the table ----

def rows_of(program):
    """The rows of SECURITY.md's table of a program, as lists of cells."""
    lines = iter((system.HERE.parent.parent / "SECURITY.md").read_text().splitlines())
    next(line for line in lines if line.startswith(f"| limit | `{program}` |"))
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_limits_the_table_names_what_there_is(start_cloud, tmp_path):
    """Each flag is an option, each count a series; and what has a count has a flag."""
    cloud = start_cloud(*SMALL)
    with local_server(cloud, tmp_path) as (port, _):
        assert post(port).status == 200   # a status has a series once there was one
        helps = {"spa-cloud": subprocess.run([system.SPA_CLOUD, "--help"], capture_output=True, text=True).stdout, "spa serve": system.spa("serve", "--help").stdout}
        series = {"spa-cloud": values(cloud), "spa serve": set(re.findall(r"^(spa_\w+)", get(port, "/metrics").decode(), re.MULTILINE))}
    families = {"refused": "spa_connections_refused_total", "cut": "spa_connections_cut_total", "requests": "spa_requests_refused_total",
                "states": "spa_states_unused_total"}
    for program, help_text in helps.items():
        rows = list(rows_of(program))
        assert len(rows) >= 6
        for limit, flags, default, _, counted in rows:
            for flag in re.findall(r"`(--?[\w-]+)`", flags):
                assert re.search(rf"(^|\s|,){flag}\b", help_text, re.MULTILINE), f"{limit}: there is no {flag}"
            assert flags or not counted, f"{limit}: what is counted has a flag"
            for name in re.findall(r"`(spa_\w+)`", counted):
                assert name in series[program], f"{limit}: {name} is not counted"
            for family, whys in re.findall(r"\b(refused|cut|requests|states), ([\w, ]+)", re.sub(r"`[^`]*`", "", counted)):
                for why in whys.split(", "):
                    assert f'{families[family]}{{why="{why}"}}' in series[program], f"{limit}: {family}, {why} is not counted"


# ---- no dumps ----

def limits_of(process):
    text = open(f"/proc/{process.pid}/limits").read()
    return re.search(r"Max core file size\s+(\S+)\s+(\S+)", text).groups()


def test_limits_no_core_dumps_unless_asked_for(start_cloud, tmp_path):
    with_dumps = start_cloud(*SMALL, "--core-dumps")
    without = start_cloud(*SMALL)
    assert limits_of(without.process) == ("0", "0")
    ours = re.search(r"Max core file size\s+(\S+)\s+(\S+)", open("/proc/self/limits").read()).groups()
    assert limits_of(with_dumps.process) == ours
    with local_server(without, tmp_path) as (_, process):
        assert limits_of(process) == ("0", "0")
