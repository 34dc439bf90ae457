"""House prompts on a real model: later users start behind them, and everybody says what would be said without them."""
import json
import subprocess
import sys

import pytest

import system

HOUSE = ("You are the assistant of a small library by the sea. " + " ".join(f"Shelf {i} holds the books of year {1900 + i}." for i in range(1, 9)) +
         " Answer in one short sentence, name the shelf when you know it, and never invent a book.")
QUESTIONS = ["Which shelf holds 1903?", "Hello!", "Who are you?"]
ROWS = [(f"What is {i}?", f"It is {i}.") for i in range(12)]


def ask(cloud, question, how, plugin=None, instructions=HOUSE):
    words = ["chat", "--json", "-p", question, "-sys", instructions, "-n", "16", *how, *cloud.reach(),
             *(["--plugin", plugin, "--gate", "always"] if plugin else [])]
    return json.loads(system.good(system.spa(*words)).stdout)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(a cloud with the house prompt, one without, a plugin that looks back)"""
    folder = tmp_path_factory.mktemp("house")
    prompt = folder / "library.txt"
    prompt.write_text(HOUSE + "\n")
    small = ("-np", "2", "-c", "1024")
    with system.Cloud(folder / "with.log", system.SMOL, *small, "--house-prompt", prompt) as with_it, \
            system.Cloud(folder / "without.log", system.SMOL, *small) as without:
        rows, plugin = system.write_rows(folder / "rows.jsonl", ROWS), folder / "mine.gguf"
        system.good(system.spa("train", rows, "-o", plugin, *without.reach(), "--epochs", "4", "--general", "0", timeout=900))
        yield with_it, without, plugin


@pytest.mark.parametrize("with_plugin", [False, True], ids=["plain", "plugin"])
def test_house_says_the_same_as_without_one(both, with_plugin):
    with_it, without, plugin = both
    cached = []
    for question in QUESTIONS:
        how = ("--temp", "0")
        a, b = (ask(cloud, question, how, plugin if with_plugin else None) for cloud in (with_it, without))
        assert a["tokens"] == b["tokens"] and a["by"] == b["by"]
        assert a["stats"]["prompt_tokens"] == b["stats"]["prompt_tokens"]
        assert b["stats"]["cached_tokens"] == 0
        cached.append(a["stats"]["cached_tokens"])
    assert cached[1] >= 96 and cached[1] % 32 == 0 and cached[2] == cached[1]
    # The first device that looks back has the taps made, for itself and for those who come.
    assert cached[0] == (0 if with_plugin else cached[1])


def test_house_other_instructions_share_nothing(both):
    with_it, _, _ = both
    for _ in range(2):
        assert ask(with_it, QUESTIONS[0], ("--temp", "0"), instructions="Sing. " + HOUSE)["stats"]["cached_tokens"] == 0


def test_house_prompt_that_cannot_be_is_one_sentence(tmp_path):
    short, missing = tmp_path / "short.txt", tmp_path / "none.txt"
    short.write_text("Sing.")
    for path, said in ((short, "micro-batches"), (missing, "none.txt")):
        words = (system.SPA_CLOUD, "-m", system.TINY, *system.F32, "--port", "0", "--anchors", "none", "--no-self-check", "-ub", "64", "--house-prompt", path)
        sentence = system.one_sentence(system.finish(subprocess.Popen([str(w) for w in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                                                      stderr=subprocess.PIPE, env=system.environment)))
        assert said in sentence


def test_bench_house_compares_both(tmp_path):
    bench = system.HERE.parent.parent / "bench" / "house"
    done = subprocess.run([sys.executable, bench, "--users", "2", "--tokens", "100", "--model", system.TINY, "--build", system.BUILD],
                          capture_output=True, text=True, env=system.environment, timeout=system.PATIENCE_S)
    assert done.returncode == 0, done.stderr + done.stdout
    with_it = next(line.split() for line in done.stdout.splitlines() if line.startswith("with --house-prompt"))
    assert int(with_it[2]) >= 32
    assert "the same tokens: yes, all" in done.stdout
