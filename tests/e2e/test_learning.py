"""What a training leaves behind and how it goes on: checkpoints, --resume, --from, the threshold's trade, the report, the paper's form."""
import html.parser
import json
import os
import re
import signal
import stat
import time

import pytest

import system


def rows(folder, name="rows.jsonl", of=range(12)):
    return system.write_rows(folder / name, [(f"What is {i}?", f"It is {i * i}.") for i in of])


def train(cloud, *words, **how):
    return system.good(system.spa("train", *words, *cloud.reach(), **how))


def kill_when(process, path):
    """SIGKILL as soon as the file is there."""
    deadline = time.monotonic() + system.PATIENCE_S
    while not path.exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("when", [".features.part", ".features", ".checkpoint"])
def test_learning_killed_and_resumed_gives_the_same_bytes(tiny, tmp_path, when):
    lines = rows(tmp_path, of=range(200))
    how = ["--epochs", "12", "--seed", "3", "--eval", "0.1", "--checkpoint", "0"]
    train(tiny, lines, "-o", tmp_path / "whole", *how)
    cut = tmp_path / "cut"
    kill_when(system.start("train", lines, "-o", cut, *tiny.reach(), *how), tmp_path / f"cut{when}")
    assert not cut.exists()
    said = train(tiny, lines, "-o", cut, *how, "--resume").stderr
    assert cut.read_bytes() == (tmp_path / "whole").read_bytes()
    assert (", from step " in said) == (when == ".checkpoint")
    assert not (tmp_path / "cut.checkpoint").exists()
    steps = [line.split(",")[0] for line in (tmp_path / "cut.csv").read_text().splitlines()[1:]]
    assert steps == [str(i + 1) for i in range(len(steps))]


def test_learning_members_answer_together_and_resume_in_the_second(tiny, tmp_path):
    """Killed in the second member: the first is not trained again, and --from takes both apart and trains them on."""
    lines = rows(tmp_path, of=range(200))
    how = ["--epochs", "12", "--seed", "3", "--rank", "8", "--features", tmp_path / "rows.features", "--cache-dir", tmp_path]
    train(tiny, lines, "-o", tmp_path / "one", *how)
    train(tiny, lines, "-o", tmp_path / "whole", *how, "--members", "2")
    cut, log = tmp_path / "cut", tmp_path / "cut.csv"
    process = system.start("train", lines, "-o", cut, *tiny.reach(), *how, "--members", "2", "--checkpoint", "0")
    deadline = time.monotonic() + system.PATIENCE_S
    while not log.exists() or log.read_text().count("\n") < 125:   # 120 steps a member
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    said = train(tiny, lines, "-o", cut, *how, "--members", "2", "--resume").stderr
    assert cut.read_bytes() == (tmp_path / "whole").read_bytes()
    assert int(re.search(r"2 members of 12 epochs, 240 steps, from step (\d+) on", said)[1]) > 120
    one, both = (json.loads(system.good(system.spa("inspect", tmp_path / name, "--json")).stdout) for name in ("one", "whole"))
    assert (both["r"], both["context"]["e"], both["context"]["heads"]) == (2 * one["r"], 2 * one["context"]["e"], 2 * one["context"]["heads"])
    assert set(system.ask(tiny, "What is 3?", cut, gate="always")["by"]) == {"plugin"}
    said = train(tiny, lines, "-o", tmp_path / "later", *how[2:], "--members", "2", "--from", cut).stderr
    assert "2 members of 16 epochs, 320 steps" in said
    said = system.one_sentence(system.spa("train", lines, "-o", tmp_path / "no", *tiny.reach(), *how, "--members", "2", "--from", tmp_path / "one"))
    assert "--members 2" in said and "one" in said


def test_learning_resume_refuses_another_training(tiny, tmp_path):
    lines, out = rows(tmp_path, of=range(100)), tmp_path / "p"
    how = ["--epochs", "200", "--checkpoint", "0"]
    kill_when(system.start("train", lines, "-o", out, *tiny.reach(), *how), tmp_path / "p.checkpoint")
    said = system.one_sentence(system.spa("train", lines, "-o", out, *tiny.reach(), *how, "--lr", "0.001", "--resume"))
    assert "p.checkpoint" in said and "other rows or options" in said
    checkpoint = tmp_path / "p.checkpoint"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    assert "damaged" in system.one_sentence(system.spa("train", lines, "-o", out, *tiny.reach(), *how, "--resume"))


def test_learning_from_an_old_plugin_replays_its_rows(tiny, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    train(tiny, rows(tmp_path), "-o", old, "--epochs", "2")
    said = train(tiny, rows(tmp_path, "more.jsonl", range(20, 24)), "-o", new, "--from", old, "--epochs", "1")
    assert re.search(r"^replayed +12 rows", said.stdout, re.M), said.stdout
    assert re.search(r"^rows +16,", said.stdout, re.M), said.stdout
    none = train(tiny, rows(tmp_path, "more.jsonl", range(20, 24)), "-o", tmp_path / "bare", "--from", old, "--epochs", "1", "--replay", "0")
    assert "replayed" not in none.stdout and re.search(r"^rows +4,", none.stdout, re.M)
    shapes = [json.loads(system.good(system.spa("inspect", path, "--json")).stdout) for path in (old, new)]
    assert all(shapes[0][key] == shapes[1][key] for key in ("taps", "k", "r"))


def test_learning_from_held_back_rows_are_never_replayed(tiny, tmp_path):
    old = tmp_path / "old"
    train(tiny, rows(tmp_path, of=range(20)), "-o", old, "--epochs", "1", "--eval", "0.25")
    said = train(tiny, rows(tmp_path, "more.jsonl", range(30, 32)), "-o", tmp_path / "new", "--from", old, "--epochs", "1").stdout
    assert re.search(r"^replayed +15 rows", said, re.M), said


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert tag != "script"
        assert not any(name in ("src", "href") for name, _ in attrs)

    def handle_data(self, data):
        self.text.append(data)


def test_learning_leaves_a_log_and_a_private_page(tiny, tmp_path):
    out = tmp_path / "p.gguf"
    said = train(tiny, rows(tmp_path, of=range(20)), "-o", out, "--epochs", "2", "--eval", "0.2").stdout
    page = Page()
    page.feed((tmp_path / "p.gguf.html").read_text())
    assert "svg" in page.tags and "table" in page.tags
    assert any("What is " in text for text in page.text), "no example"
    assert stat.S_IMODE((tmp_path / "p.gguf.html").stat().st_mode) == 0o600
    assert (tmp_path / "p.gguf.csv").read_text().startswith("step,epoch,lr,loss,penalty,grad_norm,seconds\n")
    assert "chosen" in said and "threshold" in said
    train(tiny, rows(tmp_path), "-o", tmp_path / "q", "--epochs", "1", "--csv", "none", "--report", "none")
    assert not (tmp_path / "q.csv").exists() and not (tmp_path / "q.html").exists()


def test_learning_papers_form_is_one_flag_away(tiny, tmp_path):
    out = tmp_path / "p"
    said = train(tiny, rows(tmp_path), "-o", out, "--paper", "--rank", "8").stdout
    assert re.search(r"1 epochs", said)
    seen = json.loads(system.good(system.spa("inspect", out, "--json")).stdout)
    assert (seen["taps"], seen["k"], seen["r"], seen["m"]) == ([0, 1, 2, 3, 4], 64, 8, 64)
    assert (seen["mode"], seen["basis"], seen["context"]) == ("replace", False, None)


def test_learning_that_diverges_names_its_step_and_keeps_the_last_good_one(tiny, tmp_path):
    out, lines = tmp_path / "p", rows(tmp_path, of=range(100))
    result = system.spa("train", lines, "-o", out, *tiny.reach(), "--epochs", "60", "--lr", "10", "--weight-decay", "10", "--checkpoint", "0",
                        "--mode", "replace")
    if result.returncode == 0:
        pytest.skip("it did not diverge")
    said = system.one_sentence(result)
    assert re.search(r"step \d+ of \d+", said) and "p.checkpoint" in said
    assert not out.exists() and (tmp_path / "p.checkpoint").exists()


def test_learning_answers_in_eight_bits(tiny, tmp_path):
    out = tmp_path / "p"
    train(tiny, rows(tmp_path), "-o", out, "--epochs", "2", "--state-dtype", "i8")
    assert system.ask(tiny, "What is 3?", out, gate="always")["by"] == ["plugin"] * 24


def test_learning_progress_has_no_escape_sequences_in_a_pipe(tiny, tmp_path):
    said = train(tiny, rows(tmp_path), "-o", tmp_path / "p", "--epochs", "1").stderr
    assert "\x1b" not in said and os.linesep in said
