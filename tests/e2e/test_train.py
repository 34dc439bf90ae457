"""Training on a real model: held-out paraphrases are answered exactly, where the base model answers none."""
import csv
import json
import os
import re

import system

FACTS, HELD_OUT, GENERAL = (system.EXAMPLES / f"{name}.jsonl" for name in ("facts", "facts_eval", "general"))


def questions(path):
    return [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()]


def plain(text):
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()


def test_examples_hold_no_held_out_question():
    trained, held_out = map(plain, questions(FACTS)), map(plain, questions(HELD_OUT))
    trained, held_out = set(trained), set(held_out)
    assert len(trained) == 152 and len(held_out) == 24
    assert not trained & held_out
    assert len(set(questions(GENERAL))) == 100


def test_train_facts_are_answered_exactly_in_new_words(smol, facts_plugin):
    seen = json.loads(system.good(system.spa("eval", HELD_OUT, *smol.reach(), "--plugin", facts_plugin, "--json",
                                             timeout=900)).stdout)
    assert seen["rows"] == 24
    assert seen["exact_match"] >= 0.95
    assert seen["base_exact_match"] == 0
    assert seen["loss"] < seen["base_loss"]
    assert seen["gate_rate"] > 0.5
    assert 0 < seen["bytes_down_per_gated"] and 0 < seen["bytes_up_per_gated"]


def test_train_chat_gives_the_fact(smol, facts_plugin):
    row = json.loads(HELD_OUT.read_text().splitlines()[0])["messages"]
    mine = system.ask(smol, row[0]["content"], facts_plugin, n=40)
    assert mine["text"].strip() == row[1]["content"]
    assert mine["finish_reason"] == "stop"
    assert "plugin" in mine["by"]
    assert set(mine["stats"]) >= {"tokens", "gated", "round_trips", "bytes_down", "bytes_up", "seconds", "device_us_per_token"}
    assert system.ask(smol, row[0]["content"], n=40)["text"].strip() != row[1]["content"]


def test_train_gate_leaves_general_questions_to_the_base(smol, facts_plugin):
    by = [speaker for question in questions(GENERAL)[:10] for speaker in system.ask(smol, question, facts_plugin, n=16)["by"]]
    assert by.count("base") >= 0.75 * len(by)


def small_rows(folder):
    return system.write_rows(folder / "rows.jsonl", [(f"What is {i}?", f"It is {i * i}.") for i in range(12)])


def test_train_same_seed_gives_the_same_bytes(tiny, tmp_path):
    rows = small_rows(tmp_path)
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        system.good(system.spa("train", rows, "-o", tmp_path / name, *tiny.reach(), "--seed", seed, "--epochs", "3"))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_train_gives_the_same_bytes_on_one_core(tiny, tmp_path):
    rows = small_rows(tmp_path)
    for name, cores in (("all", None), ("one", {min(os.sched_getaffinity(0))})):
        system.good(system.spa("train", rows, "-o", tmp_path / name, *tiny.reach(), "--epochs", "2",
                               preexec_fn=lambda c=cores: c and os.sched_setaffinity(0, c)))
    assert (tmp_path / "all").read_bytes() == (tmp_path / "one").read_bytes()


def test_train_writes_a_csv_log(tiny, tmp_path):
    log = tmp_path / "log.csv"
    system.good(system.spa("train", small_rows(tmp_path), "-o", tmp_path / "p.gguf", *tiny.reach(), "--epochs", "3", "--csv", log))
    with open(log, newline="") as f:
        steps = list(csv.DictReader(f))
    assert len(steps) >= 3
    assert all(float(step["loss"]) > 0 for step in steps)
    assert float(steps[-1]["loss"]) < float(steps[0]["loss"])


def test_train_position_wise_on_every_layer_is_an_option_away(tiny, tmp_path):
    plugin = tmp_path / "p.gguf"
    system.good(system.spa("train", small_rows(tmp_path), "-o", plugin, *tiny.reach(), "--epochs", "1", "--taps", "all", "--basis",
                           "none", "--context", "none", "--rank", "8"))
    seen = json.loads(system.good(system.spa("inspect", plugin, "--json")).stdout)
    assert (seen["taps"], seen["k"], seen["r"], seen["basis"], seen["context"]) == ([0, 1, 2, 3, 4], 64, 8, False, None)
    assert system.ask(tiny, "What is 3?", plugin, gate="always")["by"] == ["plugin"] * 24


def test_train_context_that_looks_back_is_an_option_away(tiny, tmp_path):
    """The rows' states are the same, --from keeps it, and the adapter folder has it."""
    rows, plain, mixed, later = small_rows(tmp_path), tmp_path / "plain.gguf", tmp_path / "mixed.gguf", tmp_path / "later.gguf"
    options = (*tiny.reach(), "--epochs", "3", "--general", "0", "--rank", "8", "--cache-dir", tmp_path, "--features", tmp_path / "rows.features")
    system.good(system.spa("train", rows, "-o", plain, *options))
    said = system.good(system.spa("train", rows, "-o", mixed, *options, "--context-mix", "on")).stdout
    assert "0 bytes: all states were in" in said
    system.good(system.spa("train", rows, "-o", later, *options, "--from", mixed))
    seen = {path: json.loads(system.good(system.spa("inspect", path, "--json")).stdout) for path in (plain, mixed, later)}
    assert [(x["version"], x["context"]["mix"]) for x in seen.values()] == [(1, False), (2, True), (2, True)]
    assert seen[mixed]["parameters"] == seen[plain]["parameters"] + 3 * (8 * 8 + 8)
    assert system.ask(tiny, "What is 3?", later, gate="always")["by"] == ["plugin"] * 24
    system.good(system.spa("convert", later, f"{tmp_path}/folder/"))
    system.good(system.spa("convert", tmp_path / "folder", tmp_path / "back.gguf"))
    assert (tmp_path / "back.gguf").read_bytes() == later.read_bytes()
    said = system.one_sentence(system.spa("train", rows, "-o", plain, *options, "--context", "none", "--context-mix", "on"))
    assert "--context-mix" in said


def test_train_loss_last_learns_the_last_answer_alone(tiny, tmp_path):
    """In ShareGPT's form: the same row, with all of its answers, with the last, and with the first one weighted away."""
    turns = [("human", "What is 1?"), ("gpt", "It is one."), ("human", "And 2?"), ("gpt", "Two.")]
    learned = {}
    for name, weight, options in (("all", 1, ()), ("last", 1, ("--loss", "last")), ("weight", 0, ())):
        row = {"conversations": [{"from": who, "value": text} for who, text in turns], "system": "Be brief."}
        row["conversations"][1]["weight"] = weight
        rows = tmp_path / f"{name}.json"
        rows.write_text(json.dumps([row] * 2))
        system.good(system.spa("train", rows, "-o", tmp_path / f"{name}.gguf", *tiny.reach(), "--epochs", "1", "--general", "0", "--basis", "none",
                               "--cache-dir", tmp_path / "cache", *options))
        learned[name] = json.loads(system.good(system.spa("inspect", tmp_path / f"{name}.gguf", "--json")).stdout)["training"]["loss_tokens"]
    assert learned["last"] == learned["weight"] == learned["all"] // 3   # 11 and 5 tokens in a row of 16, one byte each
