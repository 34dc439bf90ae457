"""Connections break, clouds die: the answer goes on at its next token, and is the one that an unbroken run gives.

SPA_CUTS: how many cuts (30); SPA_SEED: of where they are.
"""
import json
import os
import random
import re
import subprocess
import threading
import time

import openai
import pytest

import device
import local
import system
from cutting_path import CuttingPath
from slow_path import SlowPath

CUTS, SEED = int(os.environ.get("SPA_CUTS", "30")), int(os.environ.get("SPA_SEED", "1"))
GREEDY = ("--temp", "0")
SAMPLED = ("--temp", "0.9", "--top-p", "0.95", "--seed", "11", "--repeat-penalty", "1.15")
PROMPTS = ["What is 3?", "Name three colours.", "Count: one two three four one two three four one two", "Write three emoji and the word Zürich."]
PATIENT = ("--retry", "120", "--ping", "1")
SAME = ("tokens", "by", "text", "finish_reason")


def words(url, prompt, plugin, how, ahead="auto", n=40, gate="always"):
    return ["chat", "--json", "-p", prompt, "--cloud", url, "-n", n, "--run-ahead", ahead, *how,
            *(["--plugin", plugin, "--gate", gate] if plugin else [])]


def answer(*how):
    return json.loads(system.good(system.spa(*how)).stdout)


def same(cut, whole):
    for name in SAME:
        assert cut[name] == whole[name], f"{name}: {cut[name]!r} is not {whole[name]!r}"
    for name in ("tokens", "prompt_tokens", "gated"):
        assert cut["stats"][name] == whole["stats"][name], name


def runs(guessing_plugins):
    """Every mixture of: who answers, greedy or sampled, waiting or run-ahead, a stop string; again and again."""
    dice = random.Random(SEED)
    whole = {}
    while True:
        which, how, ahead = dice.choice(sorted(guessing_plugins)), dice.choice([GREEDY, SAMPLED]), dice.choice(["off", "auto"])
        stop = dice.choice([(), ("--stop", " and the"), ("--stop", "zebra"), ("--ignore-eos",)])
        pad = ("--pad",) if which != "none" and ahead == "off" and dice.random() < 0.3 else ()
        yield whole, (dice.choice(PROMPTS), which, (*how, *stop, *pad), ahead)


def test_resume_after_random_cuts_is_the_uncut_run(guessing, guessing_plugins):
    def brought():
        """How often a request came with tokens that were confirmed before."""
        return int(re.search(r"^spa_requests_resumed_total (\d+)", guessing.get("/metrics")[2].decode(), re.MULTILINE)[1])

    resumed, before = 0, brought()
    with CuttingPath(guessing.port, SEED) as path:
        for whole, key in runs(guessing_plugins):
            if sum(path.cuts.values()) >= CUTS:
                break
            prompt, which, how, ahead = key
            if key not in whole:
                path.arm(0)
                whole[key] = answer(*words(path.url, prompt, guessing_plugins[which], how, ahead)), path.passed
            uncut, spans = whole[key]
            path.arm(4, spans)   # anywhere in what an uncut run says and hears
            cut = answer(*words(path.url, prompt, guessing_plugins[which], (*how, *PATIENT), ahead))
            same(cut, uncut)
            resumed += cut["stats"]["resumed"]
    print(f"\nresume: seed {SEED}, {path.cuts} cuts, {resumed} times an answer went on, {brought() - before} of them behind its first tokens, "
          f"{path.left} connections left before their late bytes came")
    assert brought() > before


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_resume_on_a_cloud_that_was_killed_and_started_again(start_cloud, guessing_plugins, how):
    cloud = start_cloud(system.SMOL)
    asked = words(cloud.url, "Write a long story about the sea.", guessing_plugins["trained"], (*how, "--ignore-eos"), n=450)
    whole = answer(*asked)
    asked.remove("--json")
    process = system.start(*asked, *PATIENT)
    began = system.read_some(process, len(whole["text"].encode()) * 3 // 4)   # beyond 256 tokens, where one alone is computed in another way than many
    cloud.kill()
    cloud.start_again()
    done = system.good(system.finish(process))
    assert (began + done.stdout).rstrip("\n") == whole["text"].rstrip("\n")
    assert "spa_requests_resumed_total 1\n" in cloud.get("/metrics")[2].decode()


def test_resume_on_another_cloud(start_cloud, guessing, guessing_plugins):
    dies = start_cloud(system.SMOL)
    asked = words(guessing.url, "Write a long story about the sea.", guessing_plugins["disturbs"], (*SAMPLED, "--ignore-eos"), n=120)
    whole = answer(*asked)
    asked[asked.index(guessing.url)] = f"{dies.url},{guessing.url}"
    asked.remove("--json")
    process = system.start(*asked, "--retry", "60")
    began = system.read_some(process)
    dies.kill()
    done = system.good(system.finish(process))
    assert (began + done.stdout).rstrip("\n") == whole["text"].rstrip("\n")


def test_resume_not_on_another_model(start_cloud):
    other = start_cloud(system.SMOL)
    process = system.start(*[w for w in words(other.url, "Write a story.", None, GREEDY, n=2000) if w != "--json"], *PATIENT)
    system.read_some(process)
    other.kill()
    other.command[other.command.index(system.SMOL)] = system.TINY
    other.start_again()
    said = system.one_sentence(system.finish(process))
    assert "another model" in said and str(other.port) in said


def test_resume_in_a_conversation_whose_cloud_forgot_it(start_cloud, guessing_plugins):
    """Two turns; between and in the middle of the second the connection breaks."""
    cloud = start_cloud(system.SMOL)
    asked = ["chat", "--cloud", cloud.url, "--plugin", guessing_plugins["trained"], "--gate", "always", "-n", "40", *GREEDY]
    turns = "What is 3?\nAnd what is 4? Say it at length.\n"
    whole = subprocess.run([str(w) for w in (system.SPA, *asked)], input=turns, capture_output=True, text=True, env=system.environment)
    assert whole.returncode == 0
    with CuttingPath(cloud.port, SEED, span=16000, spare=5000, kinds=("rst", "fin")) as path:
        asked[asked.index(cloud.url)] = path.url
        for _ in range(4):
            path.arm(5)
            cut = subprocess.run([str(w) for w in (system.SPA, *asked, *PATIENT)], input=turns, capture_output=True, text=True, env=system.environment)
            assert cut.returncode == 0, cut.stderr
            assert cut.stdout == whole.stdout
        assert sum(path.cuts.values()) > 4


def test_resume_off_fails_with_one_sentence(guessing):
    with CuttingPath(guessing.port, SEED, span=300, kinds=("rst",)) as path:
        path.arm(1)
        said = system.one_sentence(system.spa(*words(path.url, "Write a story.", None, (*GREEDY, "--retry", "0"), n=400)))
        assert path.url.split("//")[1] in said


def test_resume_gives_up_at_the_deadline(start_cloud):
    cloud = start_cloud(system.SMOL)
    process = system.start(*[w for w in words(cloud.url, "Write a story.", None, GREEDY, n=2000) if w != "--json"], "--retry", "2")
    system.read_some(process)
    cloud.kill()
    assert str(cloud.port) in system.one_sentence(system.finish(process))


def test_resume_a_key_that_is_refused_is_not_tried_again(start_cloud, tmp_path):
    """The key is taken away between two lives of the cloud."""
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")
    mine = tmp_path / "mine"
    mine.write_text("sesame\n")
    mine.chmod(0o600)
    cloud = start_cloud(system.SMOL, "--api-key-file", keys)
    process = system.start(*[w for w in words(cloud.url, "Write a story.", None, GREEDY, n=2000) if w != "--json"], "--retry", "600",
                           "--api-key-file", mine)
    system.read_some(process)
    cloud.kill()
    keys.write_text("another\n")
    cloud.start_again()
    assert "API key" in system.one_sentence(system.finish(process))


def test_resume_eval_measures_the_same(guessing, guessing_plugins):
    rows = guessing_plugins["trained"].parent / "rows.jsonl"

    def measured(url, *more):
        found = answer("eval", rows, "--plugin", guessing_plugins["trained"], "--cloud", url, "--json", *more)
        return {name: found[name] for name in ("rows", "exact_match", "base_exact_match", "loss", "base_loss", "gate_rate", "agreement")}

    whole = measured(guessing.url)
    with CuttingPath(guessing.port, SEED, span=60000, kinds=("rst", "fin")) as path:
        for _ in range(2):
            path.arm(5)
            assert measured(path.url, *PATIENT) == whole
        assert sum(path.cuts.values()) > 4


# ---- spa serve ----

@pytest.fixture
def serve(tmp_path, guessing, guessing_plugins):
    with CuttingPath(guessing.port, SEED, span=4000) as path:
        class Reach:
            @staticmethod
            def reach():
                return ["--cloud", path.url]
        with local.Local(tmp_path / "serve.log", Reach, *PATIENT, plugins=[guessing_plugins["trained"]]) as server:
            server.path = path
            yield server


def test_resume_serve_clients_see_one_stream(serve):
    client = openai.OpenAI(base_url=serve.url + "/v1", api_key="none", max_retries=0, timeout=system.PATIENCE_S)
    model = [m.id for m in client.models.list().data][0]

    def stream(prompt, logprobs, **fields):
        text, counts, ids, finish = "", None, [], None
        for chunk in client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], stream=True, max_tokens=40,
                                                    stream_options={"include_usage": True}, **({"logprobs": True, "top_logprobs": 2} if logprobs else {}), **fields):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                if choice.logprobs:
                    ids += [c.token for c in choice.logprobs.content or []]
            counts = chunk.usage or counts
        return text, ids, finish, counts.prompt_tokens, counts.completion_tokens

    asked = [(prompt, logprobs, fields) for prompt in PROMPTS[:2] for logprobs in (False, True)
             for fields in ({"temperature": 0}, {"temperature": 0.9, "seed": 5})]
    whole = [stream(prompt, logprobs, **fields) for prompt, logprobs, fields in asked]
    for (prompt, logprobs, fields), expected in zip(asked, whole):
        # The connections that are there were made before arm(): these are ended by hand, the next ones by plan.
        serve.path.arm(4)
        serve.path.break_all()
        assert stream(prompt, logprobs, **fields) == expected
    # Side by side: all are cut together, and all go on.
    found = {}
    serve.path.arm(6)
    threads = [threading.Thread(target=lambda i=i: found.update({i: stream(asked[i][0], asked[i][1], **asked[i][2])})) for i in range(len(asked))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [found.get(i) for i in range(len(asked))] == whole
    assert serve.metric("spa_serve_requests_resumed_total") > 0


TINY = (system.TINY, *system.F32, "--anchors", "none", "--no-self-check", "--run-ahead", "0", "-c", "2048")
LONG = {"messages": [{"role": "user", "content": "Once upon a time"}], "temperature": 0, "max_tokens": 150, "ignore_eos": True}


def streamed(server):
    """The texts of LONG's answer, as they come: every token is a round trip of a slow path."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=system.PATIENCE_S)
    asked = {**LONG, "extra_body": {"ignore_eos": LONG["ignore_eos"]}}
    del asked["ignore_eos"]
    for chunk in client.chat.completions.create(model=client.models.list().data[0].id, stream=True, **asked):
        yield from (choice.delta.content or "" for choice in chunk.choices)


def test_resume_serve_asks_another_cloud_while_its_own_drains(start_cloud, golden_plugins, tmp_path):
    """A long answer is under way when its cloud is told to stop: it ends there, and meanwhile the next question is answered by the other cloud."""
    going, staying = (start_cloud(*TINY, "-np", "2") for _ in range(2))
    with SlowPath(going.port, 0.05, 0.06) as path:
        class Both:
            @staticmethod
            def reach():
                return ["--cloud", f"{path.url},{staying.url}"]
        with local.Local(tmp_path / "serve.log", Both, "--retry", "300", plugins=[golden_plugins["add"]]) as server:
            stream = streamed(server)
            said = next(stream) + next(stream)
            going.process.terminate()
            system.wait_for(lambda: going.get("/health")[0] == 503)
            server.say("hi", max_tokens=2)
            assert going.process.poll() is None, "the long answer is still under way there"
            assert staying.get("/metrics")[2].decode().count('spa_requests_total{end="length"} 1\n') == 1
            said += "".join(stream)
            assert going.process.wait(system.PATIENCE_S) == 0
            assert "spa_requests_resumed_total 0\n" in staying.get("/metrics")[2].decode(), "nothing was cut"
            assert said == server.chat(LONG["messages"], **LONG)["choices"][0]["message"]["content"]


def test_resume_serve_a_second_break_in_the_queue_has_time_of_its_own(start_cloud, golden_plugins, tmp_path):
    """What goes on has to wait for a slot for longer than --retry; then its connection breaks again."""
    cloud = start_cloud(*TINY, "-np", "1")

    def waiting():
        return "spa_queue_requests 1\n" in cloud.get("/metrics")[2].decode()
    with SlowPath(cloud.port, 0.02, 0.04) as slow, CuttingPath(int(slow.url.rsplit(":", 1)[1]), SEED) as path, device.Device(cloud.port) as other:
        class Reach:
            @staticmethod
            def reach():
                return ["--cloud", path.url]
        with local.Local(tmp_path / "serve.log", Reach, "--retry", "5", plugins=[golden_plugins["add"]]) as server:
            other.hello(device.raw_plugin(device.shape_of(cloud.port)))
            stream = streamed(server)
            said = next(stream) + next(stream)
            other.generate(1, "hold", 8, gate="always", answer_ms=600000)
            system.wait_for(waiting)
            path.break_all()
            other.until("TAPS")
            system.wait_for(waiting)
            time.sleep(6)
            path.break_all()
            other.send("CANCEL", {"request": 1})
            said += "".join(stream)
            assert server.metric("spa_serve_requests_resumed_total") == 2
            assert said == server.chat(LONG["messages"], **LONG)["choices"][0]["message"]["content"]
