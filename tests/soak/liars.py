"""Devices that lie, beside devices that chat: nobody but the liar notices.

Each kind of liar gets its turn, in an order drawn from the seed, while honest neighbours chat. What must hold: each neighbour's tokens are those of its solo
run; the liar is cut after so many faults as --max-bad-states allows (or, where its lie harms nobody, has its answer); the cloud counts each lie
under its reason; the cloud's memory does not grow after the first few.

    python tests/soak/liars.py --seed N --rounds K       one line: name seed count duration findings; exit code 1 with findings

In:  SPA_BUILD, SPA_MODEL: one whose bits do not depend on company (SmolLM2 in Q4_1 holds). Honest states are made from the bytes of the taps, so one wrong bit down changes every token after it.
"""
import argparse
import hashlib
import pathlib
import random
import re
import struct
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "e2e"))

import device
import system

K = 4                    # --max-bad-states
ANSWER_MS = 300          # --answer-ms: what a silent device has
NEIGHBOURS = 3
TOKENS = 30              # of a neighbour's answer
WARM = 8                 # lies before the cloud has all the memory that it needs
GROWTH_MAX = 8 << 20     # bytes after that
OPTIONS = ("-np", "8", "-c", "8192", "--max-bad-states", str(K), "--answer-ms", str(ANSWER_MS), "--run-ahead-always", "--anchors", "none", "--log-level", "error")


# ---- honest devices ----

def z_of(bulk, d):
    """A state that depends on every bit of the taps."""
    seed = hashlib.sha256(bulk).digest()
    bits = b"".join(hashlib.sha256(seed + struct.pack("<I", i)).digest() for i in range((d + 31) // 32))
    return [(byte - 127.5) / 40 for byte in bits[:d]]


def chat(port, number):
    """One answer: its tokens and its text. Odd neighbours look back, so context rows travel, too."""
    with device.Device(port) as d:
        shape = device.shape_of(port)
        d.hello(device.raw_plugin(shape, context=number % 2 == 1))
        d.generate(1, f"Neighbour {number} asks for a story about the number {number * 37}.", TOKENS, gate="always", run_ahead=8 if number % 2 == 0 else 0)
        ids, text = [], b""
        while True:
            m = d.next()
            if m.type == "TAPS" and m.head["asked"]:
                d.state(m, z_of(m.bulk, shape["d"]))
            elif m.type == "TOKENS":
                ids += m.head["ids"]
                text += m.bulk
            elif m.type == "DONE":
                return ids, text
            elif m.type == "ERROR":
                return [], f"{m.head} {m.bulk}".encode()


# ---- liars ----
# Each takes (device, d, rng) with a request under way and lies until it is cut (device.End) or has its answer.

def answers(d, lie):
    """Lies at each TAPS that asks. Returns when there is nothing left to lie about."""
    while True:
        m = d.next()
        if m.type == "TAPS" and m.head["asked"]:
            lie(m)
        elif m.type == "DONE" or m.type == "ERROR" and m.head["request"]:
            return


def numbers(make):
    def liar(d, n, rng):
        answers(d, lambda m: d.state(m, make(n, rng)))
    return liar


def spoil(n, rng, value):
    z = [0.0] * n
    z[rng.randrange(n)] = value
    return z


def wrong_length(by):
    def liar(d, n, rng):
        answers(d, lambda m: d.state(m, [], bulk=bytes(4 * (n + by))))
    return liar


def wrong_position(d, n, rng):
    answers(d, lambda m: [d.state(m, [0.0] * n, pos=rng.choice((0, m.head["pos"] + 1000, 2**32 - 1))) for _ in range(3)])


def replayed(d, n, rng):
    answers(d, lambda m: [d.state(m, [0.5] * n) for _ in range(4)])


def late(d, n, rng):
    """Says the right thing when nobody waits any more, and says it often."""
    def lie(m):
        d.until("TOKENS")
        for _ in range(12):
            d.state(m, [0.5] * n)
    answers(d, lie)


def early(d, n, rng):
    """States for tokens that nobody has asked for yet."""
    def lie(m):
        for ahead in range(1, 6):
            d.state(m, [0.5] * n, pos=m.head["pos"] + ahead)
        d.state(m, [0.0] * n)
    answers(d, lie)


def flood(d, n, rng):
    m = d.until("TAPS")
    for _ in range(20000):
        d.state(m, [0.5] * n, request=rng.choice((1, 7, 2**31)), epoch=rng.choice((0, 9)))
    d.drain()


def silent(d, n, rng):
    answers(d, lambda m: None)


def drafts(d, n, rng):
    """A draft of the full length with every state, none of it ever said."""
    vocabulary = d.welcome.head["n_vocab"]
    answers(d, lambda m: d.state(m, [0.0] * n, draft_index=0, draft=[1 + rng.randrange(vocabulary) for _ in range(48)]))


def endless_draft(d, n, rng):
    answers(d, lambda m: d.state(m, [0.0] * n, draft_index=0, draft=[1] * 100))


def unknown_draft(d, n, rng):
    answers(d, lambda m: d.state(m, [0.0] * n, draft_index=0, draft=[d.welcome.head["n_vocab"] + 1]))


def requests(d, n, rng):
    """More requests at once than WELCOME allows, again and again."""
    for number in range(2, 400):
        d.generate(number, "hi", 64, gate="never")
    d.drain()


def giant(d, n, rng):
    """A message that is said to be larger than the cloud takes."""
    d.send_frame(2, struct.pack("<BBHI", 8, 0, 4, 1 << 30))
    d.drain()


def garbage(d, n, rng):
    d.send_frame(2, bytes(rng.randrange(256) for _ in range(64)) + b"\xff" * 64)
    d.drain()


UNUSABLE = 'spa_states_unused_total{why="unusable"}'
STRAY = 'spa_states_unused_total{why="stray"}'
LATE = 'spa_states_unused_total{why="late"}'


def cut(why):
    return f'spa_connections_cut_total{{why="{why}"}}'


# name: (how, what ends it: the code of the cloud's goodbye or None for an answer, the counters that grow by it, at least so much)
LIARS = {
    "nan": (numbers(lambda n, rng: spoil(n, rng, float("nan"))), "BAD_STATE", {UNUSABLE: K, cut("states"): 1}),
    "infinity": (numbers(lambda n, rng: spoil(n, rng, float("-inf"))), "BAD_STATE", {UNUSABLE: K, cut("states"): 1}),
    "huge": (numbers(lambda n, rng: [3e38] * n), "BAD_STATE", {UNUSABLE: K, cut("states"): 1}),
    "too large": (numbers(lambda n, rng: [1.1e4] * n), "BAD_STATE", {UNUSABLE: K, cut("states"): 1}),
    "too short": (wrong_length(-1), "BAD_STATE", {UNUSABLE: K, cut("states"): 1}),
    "too long": (wrong_length(7), "BAD_STATE", {UNUSABLE: K, cut("states"): 1}),
    "empty": (lambda d, n, rng: answers(d, lambda m: d.state(m, [], bulk=b"")), "BAD_STATE", {UNUSABLE: K, cut("states"): 1}),
    "wrong position": (wrong_position, "BAD_STATE", {STRAY: 8 * K, cut("states"): 1}),
    "replayed": (replayed, "BAD_STATE", {STRAY: 8 * K, cut("states"): 1}),
    "late": (late, "BAD_STATE", {LATE: 1, STRAY: 8 * K, cut("states"): 1}),
    "early": (early, "BAD_STATE", {STRAY: 8 * K, cut("states"): 1}),
    "flood": (flood, "BAD_STATE", {STRAY: 8 * K, cut("states"): 1}),
    "silent": (silent, "LATE_ANSWER", {LATE: K, cut("silent"): 1}),
    "drafts": (drafts, None, {}),
    "endless draft": (endless_draft, 1, {cut("message"): 1}),
    "unknown draft": (unknown_draft, 1, {cut("message"): 1}),
    "requests": (requests, "BUSY", {'spa_requests_refused_total{why="connection"}': 8 * K, cut("order"): 1}),
    "giant": (giant, "TOO_LARGE", {cut("size"): 1}),
    "garbage": (garbage, 1, {cut("message"): 1}),
}


def lie(port, name, rng):
    """What ended it: a code, or None."""
    how, _, _ = LIARS[name]
    shape = device.shape_of(port)
    try:
        with device.Device(port) as d:
            d.hello(device.raw_plugin(shape))
            d.generate(1, "I lie.", 60, gate="always", late="base", run_ahead=8 if name == "drafts" else 0)
            how(d, shape["d"], rng)
    except device.End as end:
        return end.code
    return None


# ---- the run ----

def values(cloud):
    found = re.findall(r"^(spa_\w+(?:\{[^}]*\})?) (\S+)$", cloud.get("/metrics")[2].decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def grows(cloud, counter, wanted):
    """The last of it is counted a moment after the liar has heard that it is cut."""
    for _ in range(100):
        if values(cloud)[counter] >= wanted:
            return True
        time.sleep(0.1)
    return False


def memory(cloud):
    status = pathlib.Path(f"/proc/{cloud.process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


class Neighbour(threading.Thread):
    """Chats again and again; every answer has to be the one that it had alone."""

    def __init__(self, port, number, alone):
        super().__init__(daemon=True)
        self.port, self.number, self.alone = port, number, alone
        self.enough, self.answers, self.findings = threading.Event(), 0, []

    def run(self):
        while not self.enough.is_set() or self.answers == 0:
            try:
                got = chat(self.port, self.number)
            except (device.End, device.Refused, OSError) as e:
                got = ([], repr(e).encode())
            self.answers += 1
            if got != self.alone:
                self.findings.append(f"neighbour {self.number} was said {got[1][:80]!r} in place of {self.alone[1][:80]!r}")
                return


def run(cloud, seed, rounds, say=lambda line: None):
    """(count of lies, findings); findings are said as they come, since rounds may take hours"""
    findings = []

    def found(*what):
        findings.extend(what)
        for one in what:
            say(f"FINDING: {one}")

    rng = random.Random(seed)
    alone = [chat(cloud.port, n) for n in range(NEIGHBOURS)]
    found(*(f"neighbour {n}: no answer alone, {text!r}" for n, (ids, text) in enumerate(alone) if len(ids) != TOKENS))
    if alone[0] != chat(cloud.port, 0):
        found("a neighbour's answer differs from itself, alone")
    steady, count, began = None, 0, time.monotonic()
    for number in range(rounds):
        neighbours = [Neighbour(cloud.port, n, alone[n]) for n in range(NEIGHBOURS)]
        for neighbour in neighbours:
            neighbour.start()
        for name in rng.sample(list(LIARS), len(LIARS)):
            before = values(cloud)
            ended, wanted, counters = lie(cloud.port, name, rng), *LIARS[name][1:]
            count += 1
            if ended != wanted:
                found(f"{name}: ended with {ended}, not {wanted}")
            found(*(f"{name}: {counter} did not grow by {n}" for counter, n in counters.items() if not grows(cloud, counter, before[counter] + n)))
            if count == WARM:
                steady = memory(cloud)
            say(f"  {time.monotonic() - began:6.1f} s  {name}: {ended or 'answered'}")
        for neighbour in neighbours:
            neighbour.enough.set()
        for neighbour in neighbours:
            neighbour.join(system.PATIENCE_S)
            found(*neighbour.findings)
        system.wait_for(lambda: values(cloud)["spa_connections"] == 0)
        now = memory(cloud)
        say(f"round {number}: {sum(n.answers for n in neighbours)} neighbours' answers, {now / 2**20:.1f} MiB")
        if steady is not None and now > steady + GROWTH_MAX:
            found(f"memory grew from {steady} to {now} bytes by round {number}")
    return count, findings


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="of all lies (50; with --short 1)")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--model", default=system.SMOL)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.short else 50)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        with system.Cloud(pathlib.Path(folder) / "cloud.log", options.model, *OPTIONS) as cloud:
            count, findings = run(cloud, options.seed, options.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"liars {options.seed} {count} {time.monotonic() - began:.0f}s {len(findings)}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
