"""What crosses the line: bytes of a gated token, padded tokens, answers that share a message, sockets that do not wait for more."""
import collections
import ctypes
import json
import os
import socket
import struct

import pytest

import capture
import plugins
import system

PIDFD_OPEN, PIDFD_GETFD = 434, 438   # numbers of system calls, the same on every architecture
TYPES = {5: "GENERATE", 7: "TAPS", 8: "STATE", 9: "TOKENS", 10: "DONE"}


def tls_records(stream):
    """Lengths of a direction's records of application data, their heads included."""
    lengths, at = [], 0
    while at < len(stream):
        kind, length = stream[at], struct.unpack_from(">H", stream, at + 3)[0]
        at += 5 + length
        if kind == 23:
            lengths.append(5 + length)
    assert at == len(stream), "not TLS from end to end"
    return lengths


def frames(stream):
    """Of every WebSocket message of a direction: its length on the line and the types of the messages in it."""
    found = []
    for first, length, data in capture.frames(stream):
        assert first & 128, "a message in several frames"
        if first & 15 != 2:
            continue
        types, inner = [], 0
        while inner < len(data):
            kind, head, bulk = data[inner], *struct.unpack_from("<HI", data, inner + 2)
            types.append(TYPES.get(kind, kind))
            inner += 8 + head + bulk
        assert inner == len(data), "a message that does not end with its WebSocket message"
        found.append((length, types))
    return found


def test_wire_a_gated_token_costs_at_most_700_bytes_each_way(start_cloud, tmp_path):
    """Everything that is paid for on the socket: heads, WebSocket, TLS. 32 tokens more, and what they add."""
    authority = system.Authority(tmp_path / "ca")
    cloud = start_cloud(system.SMOL, "--anchors", "none", "--no-self-check", authority=authority, certificate=authority.issue())
    plugin = tmp_path / "p.gguf"
    rows = system.write_rows(tmp_path / "rows.jsonl", [(f"What is {i}?", f"It is the number {i} of them all.") for i in range(24)])
    system.good(system.spa("train", rows, "-o", plugin, *cloud.reach(), "--epochs", "1", "--general", "0", "--report", "none", timeout=900))
    told = json.loads(system.good(system.spa("inspect", plugin, "--json")).stdout)
    assert (told["bytes_down_per_gated"], told["bytes_up_per_gated"]) == (9 * 66, 9 * 66), "nine taps of 64, a state of 576, in I8"
    cost = {}
    for n in (8, 40):
        with capture.Proxy(cloud.port) as proxy:
            words = system.question(["--cloud", f"wss://127.0.0.1:{proxy.port}", "--ca-file", authority.cert], "Hello", plugin, n=n, gate="always")
            answer = json.loads(system.good(system.spa(*words, "--ignore-eos", "--run-ahead", "off")).stdout)
        assert answer["stats"]["gated"] == n
        cost[n] = [sum(tls_records(direction)) for direction in (proxy.down[0], proxy.up[0])]
    down, up = ((many - few) / 32 for few, many in zip(cost[8], cost[40]))
    assert 594 < down <= 700 and 594 < up <= 700, (down, up)


# ---- padding ----

@pytest.fixture(scope="module")
def gated(tiny, tmp_path_factory):
    """A plugin whose gate picks some of an answer's tokens, and the prompt of that answer."""
    folder = tmp_path_factory.mktemp("gated")
    for seed in range(40):
        plugin = plugins.perturbed(folder, seed)
        answer = system.ask(tiny, "Hello there", plugin, n=16)
        if 3 < answer["by"].count("plugin") < len(answer["by"]) - 3:
            return plugin, answer
    raise AssertionError("no gate of these picks some tokens and leaves others")


def padded(cloud, plugin, *more, gate="auto", reach=None):
    words = system.question(reach or cloud.reach(), "Hello there", plugin, n=16, gate=gate)
    return json.loads(system.good(system.spa(*words, "--pad", *more)).stdout)


def test_wire_padded_tokens_are_alike_whether_gated_or_not(tiny, gated):
    plugin, plain = gated
    with capture.Proxy(tiny.port) as proxy:
        answer = padded(tiny, plugin, reach=proxy.reach())
    assert (answer["tokens"], answer["by"], answer["text"]) == (plain["tokens"], plain["by"], plain["text"])
    assert answer["stats"]["gated"] == answer["by"].count("plugin") and answer["stats"]["round_trips"] == len(answer["tokens"])
    sizes = collections.defaultdict(set)
    count = collections.Counter()
    for direction in (proxy.down[0], proxy.up[0]):
        for length, types in frames(direction):
            if set(types) & {"TAPS", "STATE", "TOKENS", "DONE"}:
                assert len(types) == 1, "padded messages leave one by one"
                sizes[types[0]].add(length)
                count[types[0]] += 1
    n = len(answer["tokens"])
    assert count["STATE"] == count["TOKENS"] == n and count["TAPS"] == n
    assert len(sizes["STATE"]) == 1 and sizes["TOKENS"] == sizes["DONE"] and len(sizes["TOKENS"]) == 1
    assert len(sizes["TAPS"]) == 1, "this plugin has no context: not even the prompt makes the first one longer"


def test_wire_padded_records_do_not_depend_on_the_gate(start_cloud, gated, tmp_path):
    """Over TLS, as a listener sees it: whatever the gate says, the same records in the same order."""
    plugin, _ = gated
    authority = system.Authority(tmp_path / "ca")
    cloud = start_cloud(system.TINY, *system.F32, authority=authority, certificate=authority.issue())
    seen, spoken = [], set()
    for threshold in ("auto", "0.0001", "0.9999"):
        with capture.Proxy(cloud.port) as proxy:
            answer = padded(cloud, plugin, "--ignore-eos", gate=threshold, reach=["--cloud", f"wss://127.0.0.1:{proxy.port}", "--ca-file", authority.cert])
        n = len(answer["tokens"])
        assert n == 16
        spoken.add(answer["by"].count("plugin"))
        # What comes before is the handshake, where a signature's length is chance, and HELLO and GENERATE with the threshold and a seed.
        seen.append((tls_records(proxy.down[0])[-2 * n - 3:], tls_records(proxy.up[0])[-n - 1:]))
    assert len(spoken) == 3, spoken
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("words", [(), ("--gate", "never"), ("--run-ahead", "4")])
def test_wire_pad_that_hides_nothing_is_refused(tiny, gated, words):
    said = system.one_sentence(system.spa("chat", "-p", "Hello", *tiny.reach(), "--pad", *words, *(["--plugin", gated[0]] if words else [])))
    assert "--pad" in said


# ---- several answers in one message ----

class Flood(capture.Proxy):
    """Holds back what the cloud says, until nothing more comes for a while: then all of it arrives at once."""

    def pump(self, source, sink, kept):
        if not any(kept is one for one in self.down):
            return super().pump(source, sink, kept)
        try:
            source.settimeout(0.3)
            held = b""
            while True:
                try:
                    piece = source.recv(1 << 16)
                except TimeoutError:
                    piece = None
                if piece:
                    kept += piece
                    held += piece
                    continue
                sink.sendall(held)
                held = b""
                if piece == b"":
                    return None
        except OSError:
            return None


def test_wire_states_asked_for_together_are_answered_together(start_cloud, golden_plugins):
    """A cloud that runs ahead has asked for several states by the time the device hears of the first."""
    cloud = start_cloud(system.TINY, *system.F32)
    plugin = golden_plugins["add"]
    waiting = system.ask(cloud, "Hello there", plugin, n=24, gate="always")
    with Flood(cloud.port) as proxy:
        ahead = json.loads(system.good(system.spa(*system.question(proxy.reach(), "Hello there", plugin, n=24, gate="always"))).stdout)
    assert ahead["tokens"] == waiting["tokens"]
    up, down = frames(proxy.up[0]), frames(proxy.down[0])
    assert max(types.count("STATE") for _, types in up) > 1
    told = sum(types.count("TOKENS") for _, types in down)
    assert told < len(ahead["tokens"]), "confirmed together, said together"


# ---- sockets ----

def no_delay(pid, port):
    """TCP_NODELAY of every connection of a process to or from a port; its sockets are borrowed, as a debugger does."""
    libc, options = ctypes.CDLL(None, use_errno=True), []
    held = libc.syscall(PIDFD_OPEN, pid, 0)
    for name in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            continue
        fd = libc.syscall(PIDFD_GETFD, held, int(name), 0)
        if fd < 0:
            pytest.skip(f"this system lends no sockets: {os.strerror(ctypes.get_errno())}")
        with socket.socket(fileno=fd) as s:
            if s.family == socket.AF_INET and s.type == socket.SOCK_STREAM and not s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) \
                    and port in (s.getsockname()[1], s.getpeername()[1]):
                options.append(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    os.close(held)
    return options


def test_wire_no_socket_waits_for_more_to_send(start_cloud):
    cloud = start_cloud(system.TINY, *system.F32)
    device = system.start("chat", "-p", "Hello", "-n", "100000", "--ignore-eos", *cloud.reach())
    try:
        system.read_some(device)
        assert no_delay(device.pid, cloud.port) == [1]
        assert no_delay(cloud.process.pid, cloud.port) == [1]
    finally:
        device.kill()
        device.communicate()
