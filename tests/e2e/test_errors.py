"""Whatever goes wrong: one clear sentence, a non-zero exit, and nothing lost or half-written."""
import json
import os
import re
import shutil
import subprocess
import time

import pytest

import plugins
import system

PROMPT = "Hello, how are you?"


def chat(reach, plugin=None, n=8, **options):
    return system.spa(*system.question(reach, PROMPT, plugin, n=n), **options)


# ---- the way to the cloud ----

@pytest.mark.parametrize("verb", ["chat", "complete", "train", "eval"])
def test_errors_dead_address(tmp_path, verb):
    port = system.free_port()
    reach, rows = ["--cloud", f"ws://127.0.0.1:{port}"], system.EXAMPLES / "facts_eval.jsonl"
    words = {"chat": ["-p", PROMPT], "complete": ["-p", PROMPT], "train": [rows, "-o", tmp_path / "p.gguf"], "eval": [rows]}[verb]
    said = system.one_sentence(system.spa(verb, *words, *reach))
    assert str(port) in said
    assert list(tmp_path.iterdir()) == []


def test_errors_no_such_host():
    assert "nowhere.invalid" in system.one_sentence(chat(["--cloud", "ws://nowhere.invalid:8080"]))


@pytest.mark.parametrize("url", ["", "127.0.0.1", "http://127.0.0.1:1", "ws://", "ws://127.0.0.1:99999"])
def test_errors_address_that_is_none(url):
    system.one_sentence(chat(["--cloud", url]))


def test_errors_wrong_key_and_no_key(start_cloud, tmp_path):
    keys, right, wrong = tmp_path / "keys", tmp_path / "right", tmp_path / "wrong"
    keys.write_text("first-of-two-keys\nopen-sesame\n")
    right.write_text("open-sesame\n")
    wrong.write_text("open-barley\n")
    for path in (keys, right, wrong):
        path.chmod(0o600)
    cloud = start_cloud(system.TINY, *system.F32, "--api-key-file", keys)
    system.good(chat([*cloud.reach(), "--api-key-file", right]))
    for result in (chat([*cloud.reach(), "--api-key-file", wrong]), chat(cloud.reach())):
        assert "key" in system.one_sentence(result)
        assert not {"sesame", "barley", "first-of"} & set(re.findall("sesame|barley|first-of", result.stderr + cloud.said())), "keys are not for logs"


def test_errors_untrusted_expired_and_foreign_certificates(start_cloud, tmp_path):
    mine, other = system.Authority(tmp_path / "ca"), system.Authority(tmp_path / "other", "somebody else")
    good = start_cloud(system.TINY, *system.F32, authority=mine, certificate=mine.issue())
    system.good(chat(good.reach()))
    for reach in (["--cloud", good.url], ["--cloud", good.url, "--ca-file", other.cert]):
        assert "trusted" in system.one_sentence(chat(reach))
    expired = start_cloud(system.TINY, *system.F32, authority=mine, certificate=mine.issue(days=-1))
    assert "expired" in system.one_sentence(chat(expired.reach()))
    foreign = start_cloud(system.TINY, *system.F32, authority=mine, certificate=mine.issue("example.invalid"))
    assert "name" in system.one_sentence(chat(foreign.reach()))


def test_errors_tls_spoken_to_a_cloud_without_and_the_other_way_round(start_cloud, tiny, tmp_path):
    system.one_sentence(chat(["--cloud", tiny.url.replace("ws:", "wss:")]))
    authority = system.Authority(tmp_path / "ca")
    tls = start_cloud(system.TINY, *system.F32, authority=authority, certificate=authority.issue())
    system.one_sentence(chat(["--cloud", tls.url.replace("wss:", "ws:")]))
    system.good(chat(tls.reach()))


# ---- plugin files ----

def test_errors_plugin_of_another_shape(smol, golden_plugins):
    system.one_sentence(chat(smol.reach(), golden_plugins["add"]))


def test_errors_plugin_of_another_model_of_the_same_shape(start_cloud, tiny, tmp_path):
    rows = system.write_rows(tmp_path / "rows.jsonl", [(f"What is {i}?", f"It is {i}.") for i in range(12)])
    plugin = tmp_path / "p.gguf"
    system.good(system.spa("train", rows, "-o", plugin, *tiny.reach(), "--epochs", "1"))
    model = bytearray(system.TINY.read_bytes())
    model[-2] ^= 1   # a bit of one weight
    other = tmp_path / "other.gguf"
    other.write_bytes(model)
    cloud = start_cloud(other, *system.F32)
    said = system.one_sentence(chat(cloud.reach(), plugin))
    assert "model" in said
    system.good(chat(tiny.reach(), plugin))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.9999])
@pytest.mark.parametrize("verb", ["chat", "inspect", "eval", "convert"])
def test_errors_truncated_plugin(tiny, golden_plugins, tmp_path, share, verb):
    whole = golden_plugins["add"].read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:int(len(whole) * share)])
    words = {"chat": system.question(tiny.reach(), PROMPT, cut), "inspect": ["inspect", cut],
             "eval": ["eval", system.EXAMPLES / "facts_eval.jsonl", "--plugin", cut, *tiny.reach()],
             "convert": ["convert", cut, tmp_path / "out.safetensors"]}[verb]
    assert "cut.gguf" in system.one_sentence(system.spa(*words))
    assert os.listdir(tmp_path) == ["cut.gguf"]


@pytest.mark.parametrize("path", ["nothing.gguf", ".", "/dev/null"])
def test_errors_plugin_that_is_no_file(tiny, tmp_path, path):
    system.one_sentence(chat(tiny.reach(), path, cwd=tmp_path))


# ---- a full disk ----

@pytest.fixture
def older(tmp_path):
    """A folder of its own with rows beside it and an older plugin in it, that training is to replace."""
    system.write_rows(tmp_path / "rows.jsonl", [(f"What is {i}?", f"It is {i}.") for i in range(8)])
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "p.gguf").write_bytes(b"older" * 100)
    return folder / "p.gguf"


def check_unharmed(older):
    assert older.read_bytes() == b"older" * 100
    assert os.listdir(older.parent) == ["p.gguf"]


def test_errors_file_size_limit_while_training(tiny, older):
    rows = older.parent.parent / "rows.jsonl"
    system.good(system.spa("train", rows, "-o", older.parent.parent / "first.gguf", *tiny.reach(), "--epochs", "1"))   # head is cached
    result = system.spa("train", rows, "-o", older, *tiny.reach(), "--epochs", "1",
                        preexec_fn=system.limit_file_size(4096), restore_signals=False)
    system.one_sentence(result)
    check_unharmed(older)


def may_mount():
    return shutil.which("unshare") and subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"],
                                                      capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="this machine lets us mount no small disk; the file size limit stands for it")
def test_errors_full_disk_while_training(tiny, older):
    """A disk of 16 kB, in a mount namespace that ends with the command; what is left on it is copied out."""
    base = older.parent.parent
    script = """set -e
        mount -t tmpfs -o size=16k none "$1/disk"
        cp "$1/out/p.gguf" "$1/disk/p.gguf"
        shift_base="$1"; shift
        set +e
        "$@"
        rc=$?
        ls "$shift_base/disk" > "$shift_base/left"
        cp "$shift_base/disk/p.gguf" "$shift_base/after"
        exit $rc"""
    (base / "disk").mkdir()
    command = ["unshare", "-rm", "sh", "-c", script, "sh", base, system.SPA, "train", base / "rows.jsonl", "-o",
               base / "disk" / "p.gguf", *tiny.reach(), "--epochs", "1"]
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=system.environment, timeout=system.PATIENCE_S)
    system.one_sentence(done)
    assert (base / "left").read_text() == "p.gguf\n"
    assert (base / "after").read_bytes() == b"older" * 100


@pytest.mark.parametrize("target", ["no/such/folder/p.gguf", ".", "/proc/p.gguf"])
def test_errors_place_that_takes_no_file_is_said_before_training(tiny, older, target):
    began = time.monotonic()
    result = system.spa("train", "../rows.jsonl", "-o", target, *tiny.reach(), cwd=older.parent)
    system.one_sentence(result)
    check_unharmed(older)
    assert time.monotonic() - began < 30


# ---- a cloud that goes ----

def test_errors_cloud_killed_in_mid_answer(start_cloud):
    cloud = start_cloud(system.SMOL)
    answer = system.start("chat", "-p", "Write a long story about the sea.", "--temp", "0", "-n", "2000", "--retry", "1", *cloud.reach())
    system.read_some(answer)
    cloud.kill()
    said = system.one_sentence(system.finish(answer, timeout=60))
    assert str(cloud.port) in said


def test_errors_cloud_killed_while_training(start_cloud, older, tmp_path):
    """Killed as soon as the conversation has begun; the features of so many rows take longer."""
    cloud = start_cloud(system.SMOL)
    training = system.start("train", system.EXAMPLES / "facts.jsonl", "-o", older, *cloud.reach())
    time.sleep(2.5)
    assert training.poll() is None
    cloud.kill()
    result = system.finish(training, timeout=120)
    assert str(cloud.port) in system.one_sentence(result)
    unfinished = older.parent / "p.gguf.features.part"   # there when rows had come already
    assert unfinished.exists() == ("are safe" in result.stderr)
    unfinished.unlink(missing_ok=True)
    check_unharmed(older)


# ---- rows ----

OK_ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
BAD_ROWS = {
    "not JSON": ('{"messages": [', ""),
    "a number": ("17", ""),
    "no messages": ('{"rows": []}', "messages"),
    "messages of no list": ('{"messages": "hello"}', "messages"),
    "no role": ('{"messages": [{"content": "x"}]}', "role"),
    "unknown role": ('{"messages": [{"role": "wizard", "content": "x"}]}', "role"),
    "content of no text": ('{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "x"}]}', "content"),
    "no answer": ('{"messages": [{"role": "user", "content": "x"}]}', "assistant"),
    "alpaca without output": ('{"instruction": "x", "input": ""}', "output"),
    "alpaca with a number": ('{"instruction": 5, "output": "x"}', "instruction"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("verb", ["train", "eval"])
def test_errors_bad_row_is_named_by_file_line_and_field(tiny, tmp_path, name, verb):
    text, field = BAD_ROWS[name]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f"{json.dumps(OK_ROW)}\n{json.dumps(OK_ROW)}\n{text}\n")
    words = ["train", rows, "-o", tmp_path / "p.gguf"] if verb == "train" else ["eval", rows]
    said = system.one_sentence(system.spa(*words, *tiny.reach()))
    assert "rows.jsonl" in said and "3" in said and field in said
    assert os.listdir(tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"[]", b"\xff\xfe\x00"])
def test_errors_files_without_rows(tiny, tmp_path, content):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(content)
    assert "rows.jsonl" in system.one_sentence(system.spa("train", rows, "-o", tmp_path / "p.gguf", *tiny.reach()))


def test_errors_alpaca_rows_train_like_messages(tiny, tmp_path):
    """As a JSON array and as JSONL; the same rows in either form give the same plugin."""
    rows = [{"instruction": f"What is {i}?", "input": "", "output": f"It is {i}."} for i in range(12)]
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    system.write_rows(tmp_path / "messages.jsonl", [(row["instruction"], row["output"]) for row in rows])
    made = []
    for name in ("array.json", "lines.jsonl", "messages.jsonl"):
        system.good(system.spa("train", tmp_path / name, "-o", tmp_path / f"{name}.gguf", *tiny.reach(), "--epochs", "1"))
        made.append((tmp_path / f"{name}.gguf").read_bytes())
    assert made[0] == made[1] == made[2]


# ---- the cloud's own start ----

@pytest.mark.parametrize("options", [["-m", "nothing.gguf"], [], ["-m", system.TINY, "--port", "1"], ["-m", system.TINY, "--nonsense"],
                                     ["-m", system.TINY, "--ssl-key-file", "nothing.pem", "--ssl-cert-file", "nothing.pem"],
                                     ["-m", system.TINY, "--api-key-file", "nothing"]])
def test_errors_cloud_that_cannot_start_says_why(options, tmp_path):
    if "1" in options and os.geteuid() == 0:
        options = [option if option != "1" else "99999" for option in options]
    done = subprocess.run([system.SPA_CLOUD, *map(str, options)], capture_output=True, text=True, cwd=tmp_path, timeout=60,
                          stdin=subprocess.DEVNULL, env=system.environment)
    system.one_sentence(done)


def test_errors_port_in_use(tiny):
    done = subprocess.run([system.SPA_CLOUD, "-m", system.TINY, "--port", str(tiny.port)], capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL, env=system.environment)
    assert str(tiny.port) in system.one_sentence(done)
