"""Run-ahead: the cloud guesses while a state is on its way, and says token for token what it says when it waits."""
import json

import pytest

import system
from slow_path import SlowPath

GREEDY = ("--temp", "0")
SAMPLED = ("--temp", "0.8", "--top-p", "0.95", "--seed", "7")
PROMPTS = ["What is 3?", "Name three colours.", "Count: one two three four one two three four one two", "Why is the sky blue?"]


def answers(url, plugin, how, gate, ahead, n=32):
    started = [system.start("chat", "--json", "-p", prompt, "--cloud", url, "--plugin", plugin, "--gate", gate, "-n", n, "--run-ahead", ahead, *how)
               for prompt in PROMPTS]
    return [json.loads(system.good(system.finish(process)).stdout) for process in started]


@pytest.mark.parametrize("which", ["trained", "disturbs"])
@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_ahead_says_what_waiting_says(guessing, guessing_plugins, which, how):
    plugin = guessing_plugins[which]
    guessed = right = wasted = drafted = 0
    for gate in ("always", "auto"):
        waiting = [answers(guessing.url, plugin, how, gate, "off")]
        with SlowPath(guessing.port, 0.005, 0.03) as path:
            for url, ahead in ((guessing.url, "auto"), (path.url, "2"), (path.url, "16")):
                for w, a in zip(waiting[0], answers(url, plugin, how, gate, ahead)):
                    assert a["tokens"] == w["tokens"]
                    assert a["by"] == w["by"]
                    assert a["text"] == w["text"]
                    assert a["finish_reason"] == w["finish_reason"]
                    assert a["stats"]["waits"] <= a["stats"]["gated"] == w["stats"]["gated"] == w["stats"]["waits"]
                    guessed += a["stats"]["guessed_base"] + a["stats"]["guessed_text"]
                    right += a["stats"]["right_base"] + a["stats"]["right_text"]
                    wasted += a["stats"]["wasted_steps"]
                    drafted += a["stats"]["guessed_draft"]
    assert guessed >= right > 0
    assert (drafted > 0) == (which == "trained"), "its answers are in the file of features beside it"
    assert wasted > 0


def test_ahead_where_it_pays_says_what_waiting_says(start_cloud, guessing_plugins):
    cloud = start_cloud(system.SMOL, "-np", "8", "-c", "8192")
    waiting = answers(cloud.url, guessing_plugins["trained"], SAMPLED, "always", "off")
    with SlowPath(cloud.port, 0.03, 0.06) as path:
        for url in (cloud.url, path.url):
            ahead = answers(url, guessing_plugins["trained"], SAMPLED, "always", "auto")
            assert [a["tokens"] for a in ahead] == [w["tokens"] for w in waiting]
            assert [a["by"] for a in ahead] == [w["by"] for w in waiting]


def test_ahead_off_at_the_cloud_is_off(start_cloud, guessing_plugins):
    cloud = start_cloud(system.SMOL, "--run-ahead", "0")
    for a in answers(cloud.url, guessing_plugins["disturbs"], GREEDY, "always", "16", n=8):
        assert a["stats"]["waits"] == a["stats"]["gated"]
        assert a["stats"]["guessed_base"] == a["stats"]["guessed_text"] == a["stats"]["wasted_steps"] == 0


def test_ahead_drafts_can_be_switched_off_and_a_wrong_file_is_named(guessing, guessing_plugins, tmp_path):
    plugin = guessing_plugins["trained"]
    words = ["chat", "--json", "-p", "What is 3?", "--plugin", plugin, "--gate", "always", "-n", 16, *GREEDY]
    with SlowPath(guessing.port, 0.005, 0.01) as path:
        with_them, without = (json.loads(system.good(system.spa(*words, "--cloud", path.url, *more)).stdout) for more in ((), ("--drafts", "off")))
    assert with_them["tokens"] == without["tokens"]
    assert with_them["stats"]["right_draft"] > 0 == without["stats"]["guessed_draft"]
    other = tmp_path / "none.features"
    other.write_text("nothing of the kind")
    assert str(other) in system.one_sentence(system.spa(*words, "--cloud", guessing.url, "--drafts", other))


def test_ahead_a_word_that_is_none_is_refused():
    assert "--run-ahead" in system.one_sentence(system.spa("chat", "-p", "x", "--run-ahead", "far"))
    assert "--run-ahead" in system.one_sentence(system.spa("chat", "-p", "x", "--run-ahead", "32"))
