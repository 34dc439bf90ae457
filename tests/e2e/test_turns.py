"""A chat of several turns: each turn moves and decodes only what is new, and says what it would say from nothing."""
import json
import os
import pty
import subprocess
import time

import pytest

import system

LINES = ["Hello, my name is Ada and I live by the sea.", "What is a river, in one sentence?", "Name three colours.",
         "And which of them is the sea's?"]
GREEDY = ("--temp", "0")
SAMPLED = ("--temp", "0.9", "--seed", "7")


class Chat:
    """spa chat, line by line; every answer is the object that --json prints."""

    def __init__(self, cloud, *options):
        self.process = subprocess.Popen(list(map(str, (system.SPA, "chat", "--json", *cloud.reach(), *options))), env=system.environment,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def say(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.process.stderr.read().decode()
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.process.stdin.close()
        if failure == (None, None, None):
            assert self.process.wait(system.PATIENCE_S) == 0, self.process.stderr.read().decode()
        else:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def both_ways(cloud, *options, lines=LINES):
    """The chat as it is, and again with somebody else's question between the turns: the cloud has one slot and forgets."""
    with Chat(cloud, *options) as chat:
        kept = [chat.say(line) for line in lines]
    forgotten = []
    with Chat(cloud, *options) as chat:
        for line in lines:
            forgotten.append(chat.say(line))
            system.good(system.spa("complete", *cloud.reach(), "-p", "x", "-n", "1"))
    return kept, forgotten


def check_same(kept, forgotten):
    for k, f in zip(kept, forgotten):
        assert k["text"] == f["text"]
        assert k["tokens"] == f["tokens"]
        assert k["by"] == f["by"]
        assert k["stats"]["prompt_tokens"] == f["stats"]["prompt_tokens"]
    assert [f["stats"]["cached_tokens"] for f in forgotten] == [0] * len(forgotten)
    assert kept[0]["stats"]["cached_tokens"] == 0
    for before, k in zip(kept, kept[1:]):
        assert k["stats"]["cached_tokens"] >= before["stats"]["prompt_tokens"]


ROWS = [(f"What is {i}?", f"It is {i}.") for i in range(12)]


@pytest.fixture(scope="module", params=["tiny", "smol"])
def one_slot(request, tmp_path_factory):
    """(a cloud for one, a plugin with basis, context attention and states in I8 that was trained there)"""
    folder = tmp_path_factory.mktemp("turns")
    model = (system.TINY, *system.F32) if request.param == "tiny" else (system.SMOL,)
    with system.Cloud(folder / "cloud.log", *model, "-np", "1", "-c", "2048") as cloud:
        rows, plugin = system.write_rows(folder / "rows.jsonl", ROWS), folder / "mine.gguf"
        system.good(system.spa("train", rows, "-o", plugin, *cloud.reach(), "--epochs", "20", "--general", "0", "--state-dtype", "i8",
                               timeout=900))
        yield cloud, plugin


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("gate", ["never", "auto", "always"])
def test_turns_say_the_same_as_from_nothing(one_slot, how, gate):
    cloud, plugin = one_slot
    check_same(*both_ways(cloud, "--plugin", plugin, "--gate", gate, "-n", "12", *how))


def test_turns_without_context_say_the_same_as_from_nothing(tiny_one, golden_plugins):
    check_same(*both_ways(tiny_one, "--plugin", golden_plugins["add"], "-n", "24", *GREEDY))


@pytest.fixture
def tiny_one(start_cloud):
    return start_cloud(system.TINY, *system.F32, "-np", "1", "-c", "2048")


def test_turns_a_cloud_that_comes_back_without_the_basis_gets_it_again(tiny_one, tmp_path):
    """A chat frees the plugin's basis once the cloud has it."""
    rows, plugin = system.write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "mine.gguf"
    system.good(system.spa("train", rows, "-o", plugin, *tiny_one.reach(), "--epochs", "1", "--general", "0"))
    with Chat(tiny_one, "--plugin", plugin, "--gate", "always", "-n", "8", *GREEDY) as chat:
        before = chat.say(LINES[0])
        tiny_one.kill()
        tiny_one.start_again()
        time.sleep(1)   # the chat notices while nobody asks
        after = chat.say(LINES[1])
    assert before["stats"]["gated"] > 0 and after["stats"]["gated"] > 0
    with Chat(tiny_one, "--plugin", plugin, "--gate", "always", "-n", "8", *GREEDY) as chat:
        assert chat.say(LINES[0])["tokens"] == before["tokens"]
        assert chat.say(LINES[1])["tokens"] == after["tokens"]


def test_turns_bytes_and_decoded_tokens_do_not_grow_with_the_history(one_slot):
    cloud, plugin = one_slot
    if cloud.command[2] == system.TINY:
        pytest.skip("it says bytes that are no text, and what is remembered is another answer")
    kept, forgotten = both_ways(cloud, "--plugin", plugin, "--gate", "always", "--ignore-eos", "-n", "12", *GREEDY, "--run-ahead", "off",
                                lines=["Name a river, please."] * 4)
    check_same(kept, forgotten)
    stats = [k["stats"] for k in kept]
    new = [s["prompt_tokens"] - s["cached_tokens"] for s in stats]
    assert max(new) < 2 * min(new), "an answer whose text has other tokens than it had is decoded again from there"
    down = [s["bytes_down"] for s in stats]
    assert max(down[1:]) < 1.25 * down[1]
    grown = [f["stats"]["bytes_down"] for f in forgotten]
    assert grown == sorted(grown) and grown[3] > 1.5 * max(down)


def test_turns_i8_states_cost_a_byte_a_number_and_a_scale_for_64(one_slot):
    cloud, plugin = one_slot
    d = 64 if cloud.command[2] == system.TINY else 576
    answer, bare = (json.loads(system.good(system.spa(*system.question(cloud.reach(), "What is 3?", plugin, gate=gate, n=4), "--run-ahead", "off")).stdout)
                    for gate in ("always", "never"))
    stats, bare = answer["stats"], bare["stats"]
    assert set(answer["by"]) == {"plugin"}
    message = d + 2 * d // 64
    assert message + 10 <= (stats["bytes_up"] - bare["bytes_up"]) / stats["gated"] <= message + 20


def test_turns_with_a_window_go_on_as_from_nothing(one_slot):
    cloud, plugin = one_slot
    check_same(*both_ways(cloud, "--plugin", plugin, "--gate", "always", "--context-window", "20", "-n", "12", *GREEDY))


def test_turns_window_longer_than_the_text_changes_nothing_and_a_short_one_does(one_slot):
    cloud, plugin = one_slot
    if cloud.command[2] != system.TINY:
        pytest.skip("this plugin says the same from the last words alone")
    changed = 0
    for line in LINES:
        words = (*system.question(cloud.reach(), line, plugin, gate="always", n=24), "--temp", "0.9", "--seed", "7")
        whole, wide, short = (json.loads(system.good(system.spa(*words, *more)).stdout)["tokens"] for more in
                              ((), ("--context-window", "1000"), ("--context-window", "1")))
        assert whole == wide
        changed += whole != short
    assert changed > 0, "what the words before say matters to this plugin"
    none = system.spa(*words, "--context-window", "0")
    assert none.returncode == 2 and "--context-window" in system.one_sentence(none)


LONG = ["Here is a story, please remember it. " + " ".join(f"On day {i} the old sailor saw {i} ships and wrote it down." for i in range(1, 22)),
        "What did he see on day 3? Tell it at length.", "And on the last day?", "Now count all the ships."]


@pytest.fixture(scope="module")
def invariant_one(one_slot, tmp_path_factory):
    """The same plugin on a cloud whose tokens have the bits that they have alone, however they are made."""
    cloud, plugin = one_slot
    if cloud.command[2] == system.TINY:
        pytest.skip("it was made with F32 weights, which --invariant refuses")
    with system.Cloud(tmp_path_factory.mktemp("invariant") / "cloud.log", system.SMOL, "-np", "1", "-c", "2048", "--invariant") as cloud:
        yield cloud, plugin


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("gate", ["never", "always"])
def test_turns_beyond_300_tokens_say_the_same_as_from_nothing_when_invariant(invariant_one, how, gate):
    cloud, plugin = invariant_one
    kept, forgotten = both_ways(cloud, "--plugin", plugin, "--gate", gate, "--ignore-eos", "-n", "40", *how, lines=LONG)
    check_same(kept, forgotten)
    assert kept[0]["stats"]["prompt_tokens"] > 300


def test_invariant_holds_on_a_long_cache_and_says_so(invariant_one):
    cloud, _ = invariant_one
    system.wait_for(lambda: "self-check: a token's bits are the same at widths up to 32" in cloud.log.read_text())


@pytest.mark.parametrize("model, options", [(system.SMOL, ("-ctv", "f16")), (system.TINY, ())], ids=["cache", "weights"])
def test_invariant_refuses_what_does_not_hold(model, options):
    sentence = system.one_sentence(system.finish(subprocess.Popen(
        [str(w) for w in (system.SPA_CLOUD, "-m", model, "--port", "0", "-np", "2", "-c", "2048", "--anchors", "none", "--invariant", *options)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=system.environment)))
    assert "--invariant" in sentence and "Q4_1" in sentence


def test_invariant_stays_within_a_width_that_holds(start_cloud):
    cloud = start_cloud(system.SMOL, "-np", "2", "-c", "1024", "-fa", "off", "--invariant")
    system.wait_for(lambda: "the same at widths up to 2 " in cloud.log.read_text())
    words = [system.question(cloud.reach(), line, n=12) for line in LINES[:2]]
    alone = [json.loads(system.good(system.spa(*w)).stdout)["tokens"] for w in words]
    together = [json.loads(system.good(system.finish(p)).stdout)["tokens"] for p in [system.start(*w) for w in words]]
    assert together == alone


def test_turns_on_a_terminal_have_commands(smol):
    person, terminal = pty.openpty()
    chat = subprocess.Popen([system.SPA, "chat", *smol.reach(), "-n", "4", "--temp", "0"], env=system.environment, stdin=terminal, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    os.close(terminal)
    os.write(person, b"/help\n/nosuchthing\nName a colour.\n/new\n/bye\n")
    out, err = chat.communicate(timeout=system.PATIENCE_S)
    os.close(person)
    assert chat.returncode == 0 and err.count(b"/new forgets") == 3   # at the start, and for what is no command
    assert len(out.strip().splitlines()) >= 1 and b"/" not in out
