"""No weight of the plugin crosses the wire, in a whole train-and-chat run that is captured in clear in both directions."""
import json
import signal
import struct

import pytest

import capture
import local
import plugins
import system

SECRET = "What is my dog's name?"   # a training question; the cloud has to see it


@pytest.fixture(scope="module", params=["tiny", "smol"])
def run(request, tmp_path_factory):
    """(the trained plugin, what the device said, what the cloud said)"""
    cloud = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("secrecy")
    plugin, rows = folder / "mine.gguf", system.EXAMPLES / "facts.jsonl"
    if request.param == "tiny":
        rows = system.write_rows(folder / "rows.jsonl", [(SECRET, "Tumbler.")] + [(f"What is {i}?", f"It is {i}.") for i in range(11)])
    with capture.Proxy(cloud.port) as proxy:
        system.good(system.spa("train", rows, "-o", plugin, *proxy.reach(), "--epochs", "2", timeout=900))
        answer = system.good(system.spa(*system.question(proxy.reach(), SECRET, plugin, gate="always")))
        assert '"plugin"' in answer.stdout
    assert len(proxy.up) == len(proxy.down) >= 2
    return plugin, [capture.payload(s) for s in proxy.up], [capture.payload(s) for s in proxy.down], proxy


def test_secrecy_no_run_of_ladder_weights_is_on_the_wire(run):
    plugin, up, down, proxy = run
    runs = capture.runs_of(plugins.ladder_tensors(plugin).values())
    assert len(runs) > 10_000
    for stream in (*up, *down, *map(bytes, proxy.up)):
        assert capture.find_runs(runs, stream) == []


def test_secrecy_the_capture_holds_what_may_cross(run):
    """The search would see the ladder if it were there: the text and the gate, which the cloud needs, are found."""
    plugin, up, _down, _proxy = run
    assert sum(SECRET.encode() in stream for stream in up) == 2, "once to train, once to chat"
    tensors = plugins.read_gguf(plugin)
    weights = tensors["spa.gate.weight"]
    n = len(weights) // 8
    quiet, ask = struct.unpack(f"<{n}f", weights[:4 * n]), struct.unpack(f"<{n}f", weights[4 * n:])
    direction = struct.pack(f"<{n}f", *(b - a for a, b in zip(quiet, ask)))
    assert direction in up[-1]


@pytest.mark.parametrize("form", ["f32", "f16"])
def test_secrecy_a_planted_run_is_found(run, form):
    """16 bytes in a masked frame at the end of a copy of the device's stream, at an odd offset."""
    plugin, _up, _down, proxy = run
    tensors = plugins.ladder_tensors(plugin)
    runs = capture.runs_of(tensors.values())
    weights = tensors["spa.W.1"][40:72]
    if form == "f16":
        weights = struct.pack("<8e", *struct.unpack("<8f", weights))
    planted = bytes(proxy.up[-1]) + capture.mask_frame(b"odd" + weights[:capture.RUN] + b"end")
    clear = capture.payload(planted)
    at = clear.index(weights[:capture.RUN])
    hits = capture.find_runs(runs, clear)
    assert at in hits and all(abs(hit - at) <= 3 for hit in hits), hits   # a neighbour by chance: "odd" or "end" may go on as the weights do
    assert capture.find_runs(runs, planted) == [], "it must be the unmasking that shows it"


@pytest.mark.parametrize("form", [(), ("--log-json",)], ids=["text", "json"])
def test_secrecy_the_log_holds_no_word_of_anybody(start_cloud, golden_plugins, tmp_path, form):
    """At its most talkative, over training, chats, a refused key, a failing request and a state that is late."""
    key, wrong, word = "key-4711-right", "key-4712-wrong", "Tumblerish"
    (tmp_path / "right").write_text(key + "\n")
    (tmp_path / "wrong").write_text(wrong + "\n")
    cloud = start_cloud(system.TINY, *system.F32, "--api-key-file", tmp_path / "right", "--log-level", "debug", "-v", *form)
    reach = [*cloud.reach(), "--api-key-file", tmp_path / "right"]
    rows = system.write_rows(tmp_path / "rows.jsonl", [(f"What is {word} {i}?", f"{word} is {i}.") for i in range(12)])
    plugin = tmp_path / "mine.gguf"
    system.good(system.spa("train", rows, "-o", plugin, *reach, "--epochs", "2", "--general", "0", timeout=900))
    said = json.loads(system.good(system.spa(*system.question(reach, f"What is {word} 3?", plugin, gate="always"))).stdout)["text"]
    system.good(system.spa(*system.question(reach, f"{word} ", verb="complete", gate="never")))
    assert system.spa("chat", "-p", word, *cloud.reach(), "--api-key-file", tmp_path / "wrong").returncode != 0
    assert system.spa(*system.question(reach, f"{word} " * 300, plugin)).returncode != 0, "longer than the context"
    system.spa(*system.question(reach, word, plugin, gate="always"), "--answer-ms", "1", "--late", "error")
    system.wait_for(lambda: cloud.log.read_text(errors="replace").count("closed") >= 5)
    pages = [cloud.get(path, {"Authorization": f"Bearer {key}"})[2].decode() for path in ("/metrics", "/health", "/v1/models", f"/{word}")]
    assert "spa_tokens_total" in pages[0]
    log = cloud.log.read_text()
    lines = log.splitlines()
    if form:
        lines = [json.loads(line)["message"] for line in lines]
    for event in ("hello, with a plugin", "asks:", "ended:", "refused:", "a wrong one", "a basis was fitted"):
        assert any(event in line for line in lines), f"it does log: {event}"
    for secret in (word, key, wrong, "What is", "is 3."):
        assert not any(secret in line for line in lines), secret
        assert not any(secret in page for page in pages), secret
    assert len(said) >= 8 and not any(said[:8] in line for line in [*lines, *pages])


def test_secrecy_the_local_servers_log_holds_no_word_of_anybody(start_cloud, golden_plugins, tmp_path):
    """`spa serve` has one log, without levels. Over answers whole and streamed, refused and failing requests, keys read again, a plugin that is broken,
    a cloud that goes and comes; and all that it serves to who asks for no answer."""
    word, cloud_key, mine, wrong = "Tumblerish", "key-4711-cloud", "key-4712-mine", "key-4713-wrong"
    for name, key in ("cloud", cloud_key), ("mine", mine):
        (tmp_path / name).write_text(key + "\n")
        (tmp_path / name).chmod(0o600)
    plugin = tmp_path / "mine.gguf"
    plugin.write_bytes(golden_plugins["add"].read_bytes())
    cloud = start_cloud(system.TINY, *system.F32, "--api-key-file", tmp_path / "cloud", "--anchors", "none")
    auth, said = {"Authorization": f"Bearer {mine}"}, []
    options = ("--api-key-file", tmp_path / "cloud", "--client-key-file", tmp_path / "mine", "--retry", "300")
    with local.Local(tmp_path / "serve.log", cloud, *options, plugins=[f"mine={plugin}"]) as server:
        def ask(content, status, headers=auth, path="/v1/chat/completions", **fields):
            body = {"messages": [{"role": "user", "content": content}], "prompt": content, "model": "mine", "max_tokens": 24, "temperature": 0, **fields}
            del body["prompt" if "chat" in path else "messages"]
            got, _, answer = server.request("POST", path, body, headers)
            assert got == status, answer
            return answer.decode()

        def logged(what):
            system.wait_for(lambda: what in server.log.read_text(errors="replace"))

        said.append(json.loads(ask(f"What is {word} 3?", 200))["choices"][0]["message"]["content"])
        said.append(json.loads(ask(f"{word} ", 200, path="/v1/completions"))["choices"][0]["text"])
        assert "[DONE]" in ask(f"Say {word}.", 200, stream=True)
        ask(word, 401, {"Authorization": f"Bearer {wrong}"})
        ask(word, 404, model=word)
        ask(word, 400, temperature=word)
        assert server.request("POST", "/v1/completions", f'{{"prompt": "{word}', {**auth, "Content-Type": "application/json"})[0] == 400
        ask(f"{word} " * 3000, 400)
        (tmp_path / "mine").write_text(f"sha256:{mine}\n")
        server.process.send_signal(signal.SIGHUP)
        logged("line 1")
        (tmp_path / "mine").write_text(mine + "\n")
        server.process.send_signal(signal.SIGHUP)
        logged("1 keys from now on")
        plugin.write_bytes(f"{word} is no plugin".encode())
        ask(f"And {word} 4?", 200)
        logged("model 'mine'")
        cloud.kill()
        cloud.start_again()
        ask(f"And {word} 5?", 200)
        pages = [server.get(path, auth)[2].decode() for path in ("/metrics", "/health", "/v1/models", "/", "/openapi.json", f"/{word}", f"/v1/models/{word}")]
    assert 'spa_serve_tokens_total{by="plugin"}' in pages[0]
    log = server.log.read_text(errors="replace")
    assert "plain text" in log
    for secret in (word, cloud_key, mine, wrong, "What is", "is 3"):
        assert secret not in log, secret
        assert not any(secret in page for page in pages[:5]), secret
    assert not any(key in page for key in (cloud_key, mine, wrong) for page in pages)
    for text in said:
        assert len(text) >= 8 and not any(text[:8] in page for page in [log, *pages])
