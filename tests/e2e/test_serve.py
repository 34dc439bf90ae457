"""spa serve against the official Python client: chats and completions, whole and streamed, many at once, and what it says when something
is wrong. Its text is spa chat's for the same seed."""
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess

import openai
import pytest

import local
import plugins
import system

MODEL_SHAPE = {"d": 576, "n_layers": 30, "r": 8}   # of SmolLM2
PROMPTS = ["Name a colour.", "Why is the sky blue?", "Tell me about the sea.", "What is a dog?"]


@pytest.fixture(scope="module")
def random_plugins(tmp_path_factory):
    """Two plugins whose gates open now and then."""
    folder = tmp_path_factory.mktemp("plugins")
    return [plugins.random_checkpoint(folder, seed, **MODEL_SHAPE, strength=8) for seed in (1, 2)]


@pytest.fixture(scope="module")
def served(smol, random_plugins, tmp_path_factory):
    with local.Local(tmp_path_factory.mktemp("serve") / "log", smol, "--sse-ping-interval", "1",
                     plugins=[f"one={random_plugins[0]}", f"two={random_plugins[1]}"]) as server:
        yield server


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=system.PATIENCE_S)


@pytest.fixture
def serve(tmp_path):
    """Makes servers that end with the test."""
    with contextlib.ExitStack() as opened:
        numbers = itertools.count()
        yield lambda cloud, *options, **how: opened.enter_context(local.Local(tmp_path / f"serve{next(numbers)}.log", cloud, *options, **how))


def chat(client, prompt, stream=False, model="one", **fields):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], stream=stream, **fields)


def streamed(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def cli(cloud, verb, prompt, seed, plugin=None, n=24):
    words = [verb, "--json", "-p", prompt, "--seed", seed, "-n", n, *cloud.reach(), *(["--plugin", plugin] if plugin else [])]
    return json.loads(system.good(system.spa(*words)).stdout)


# ---- the same text ----

@pytest.mark.parametrize("which", ["one", "two", "base"])
def test_chat_says_what_spa_chat_says_for_the_same_seed(served, client, smol, random_plugins, which):
    plugin = {"one": random_plugins[0], "two": random_plugins[1], "base": None}[which]
    model = which if plugin else client.models.list().data[-1].id
    for seed, prompt in enumerate(PROMPTS[:2]):
        expected = cli(smol, "chat", prompt, seed, plugin)
        whole = chat(client, prompt, model=model, seed=seed, max_tokens=24)
        assert whole.choices[0].message.content == expected["text"]
        assert whole.choices[0].finish_reason == expected["finish_reason"]
        assert whole.usage.completion_tokens == len(expected["tokens"])
        assert streamed(chat(client, prompt, stream=True, model=model, seed=seed, max_completion_tokens=24)) == expected["text"]


def test_completions_say_what_spa_complete_says(client, smol, random_plugins):
    for seed in (3, 4):
        expected = cli(smol, "complete", "The sea is", seed, random_plugins[0])["text"]
        how = {"model": "one", "prompt": "The sea is", "seed": seed, "max_tokens": 24}
        assert client.completions.create(**how).choices[0].text == expected
        assert "".join(c.choices[0].text for c in client.completions.create(stream=True, **how)) == expected


def test_a_stream_says_who_spoke_and_ends_with_usage(client, smol, random_plugins):
    expected = cli(smol, "chat", PROMPTS[1], 5, random_plugins[0])
    chunks = list(chat(client, PROMPTS[1], stream=True, seed=5, max_tokens=24, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    speakers = [c.spa["by"] for c in chunks if c.choices and c.choices[0].delta.content]
    assert speakers.count("plugin") <= expected["by"].count("plugin") and set(speakers) <= {"plugin", "base"}
    assert ("plugin" in speakers) == ("plugin" in expected["by"])
    assert all(c.usage is None for c in chunks[:-1])
    end, last = chunks[-2], chunks[-1]
    assert end.choices[0].finish_reason == expected["finish_reason"]
    assert end.spa["plugin_tokens"] == expected["by"].count("plugin")
    assert end.spa["bytes_up"] > 0 and end.spa["round_trips"] >= end.spa["plugin_tokens"]
    assert last.choices == [] and last.usage.completion_tokens == len(expected["tokens"])
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


def test_stop_ends_before_the_text(client):
    how = {"model": client.models.list().data[-1].id, "temperature": 0, "max_tokens": 24}   # the base model: its text has words
    text = chat(client, PROMPTS[1], **how).choices[0].message.content
    word = text.split()[3]
    for stop in (word, [word, "never said"]):
        answer = chat(client, PROMPTS[1], stop=stop, **how).choices[0]
        assert answer.message.content == text[:text.index(word)] and answer.finish_reason == "stop"


def test_sixteen_at_once_over_one_connection_say_what_each_says_alone(served, client):
    prompts = [f"{p} Answer {i}." for i, p in enumerate(PROMPTS * 4)]
    alone = [chat(client, p, temperature=0, max_tokens=12).choices[0].message.content for p in prompts]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        streams = list(pool.map(lambda p: streamed(chat(client, p, stream=True, temperature=0, max_tokens=12)), prompts))
    assert streams == alone
    assert served.metric("spa_serve_cloud_reconnects_total") == 0


def test_a_conversation_goes_on_and_sends_only_what_is_new(served, client):
    messages = [{"role": "user", "content": PROMPTS[0]}]
    for question in ("And another one?", "Which of the two is brighter?"):
        before = client.chat.completions.create(model="one", messages=messages, temperature=0, max_tokens=16)
        messages += [{"role": "assistant", "content": before.choices[0].message.content}, {"role": "user", "content": question}]
    went_on = client.chat.completions.create(model="one", messages=messages, temperature=0, max_tokens=16)
    assert went_on.usage.prompt_tokens_details.cached_tokens > 20
    fresh = client.chat.completions.create(model="two", messages=messages, temperature=0, max_tokens=1)
    assert fresh.usage.prompt_tokens_details.cached_tokens < went_on.usage.prompt_tokens_details.cached_tokens


def test_logprobs_are_those_of_the_tokens_that_were_said(client, served):
    how = {"temperature": 0, "max_tokens": 8, "seed": 1}
    plain = chat(client, PROMPTS[1], **how).choices[0]
    assert plain.logprobs is None
    asked = chat(client, PROMPTS[1], logprobs=True, top_logprobs=3, **how).choices[0]
    assert asked.message.content == plain.message.content
    tokens = asked.logprobs.content
    assert len(tokens) == 8
    assert b"".join(bytes(t.bytes) for t in tokens).decode(errors="replace").startswith(asked.message.content[:4])
    for t in tokens:
        assert len(t.top_logprobs) == 3 and t.logprob <= 0
        assert t.top_logprobs[0].logprob == t.logprob and t.top_logprobs[0].token == t.token   # greedy says the likeliest
        assert [x.logprob for x in t.top_logprobs] == sorted((x.logprob for x in t.top_logprobs), reverse=True)
    chunks = chat(client, PROMPTS[1], stream=True, logprobs=True, **how)
    streamed_tokens = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.token for t in streamed_tokens] == [t.token for t in tokens] and not streamed_tokens[0].top_logprobs
    raw = client.completions.create(model="one", prompt="The sea is", logprobs=2, temperature=0, max_tokens=6).choices[0]
    assert len(raw.logprobs.tokens) == len(raw.logprobs.token_logprobs) == len(raw.logprobs.text_offset) == 6
    assert raw.logprobs.text_offset[0] == 0 and all(len(top) <= 2 for top in raw.logprobs.top_logprobs)


def test_null_is_as_good_as_absent_and_unknown_fields_are_ignored(served):
    body = {"model": None, "messages": [{"role": "user", "content": [{"type": "text", "text": "Name "}, {"type": "text", "text": "a colour."}], "name": "x"}],
            "temperature": 0, "max_tokens": 8, "stop": None, "seed": None, "stream": None, "tools": [], "n": 1, "logit_bias": {},
            "user": "u", "store": False, "no_such_field": {"a": 1}, "frequency_penalty": 0}
    status, _, answer = served.request("POST", "/v1/chat/completions", body)
    assert status == 200 and json.loads(answer)["choices"][0]["message"]["content"] == served.say("Name a colour.", max_tokens=8)


# ---- what is wrong ----

WRONG = [
    ({"messages": "hello"}, "messages"), ({"messages": []}, "messages"), ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"), ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ({"temperature": "hot"}, "temperature"), ({"temperature": -1}, "temperature"), ({"top_p": 2}, "top_p"), ({"seed": 1.5}, "seed"),
    ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": "8"}, "max_tokens"), ({"stop": ["x"] * 17}, "stop"), ({"stop": ""}, "stop"),
    ({"stop": 1}, "stop"), ({"n": 2}, "n"), ({"stream": "yes"}, "stream"), ({"stream_options": 1}, "stream_options"), ({"model": 1}, "model"),
    ({"tools": [{"type": "function"}]}, "tools"), ({"frequency_penalty": 1}, "frequency_penalty"), ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"), ({"top_logprobs": 3}, "top_logprobs"),
]


@pytest.mark.parametrize("fields,param", WRONG, ids=[f"{json.dumps(f)[:40]}" for f, _ in WRONG])
def test_wrong_fields_are_400_and_named(client, fields, param):
    known = {"model": "one", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    with pytest.raises(openai.BadRequestError) as said:
        client.post("/chat/completions", body={**known, **fields}, cast_to=object)
    assert said.value.param == param and said.value.type == "invalid_request_error" and len(said.value.message.split()) > 3


def test_unknown_model_is_404_with_its_code(client):
    with pytest.raises(openai.NotFoundError) as said:
        chat(client, "x", model="three")
    assert said.value.code == "model_not_found" and "three" in said.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("three")
    assert client.models.retrieve("two").id == "two"


def test_a_prompt_longer_than_the_context_is_400(client):
    with pytest.raises(openai.BadRequestError) as said:
        chat(client, "word " * 9000, stream=True)
    assert said.value.code == "context_length_exceeded"


BODIES = [b"", b"{", b"[]", b"null", b"{\"messages\":[{\"role\":\"user\",\"content\":\"\\u0000\"}]}", b"\xff\xfe", b"[" * 100000, b"{\"messages\":" + b"[" * 3000,
          b"{\"messages\":[{\"role\":\"user\",\"content\":\"\xc3\x28\"}]}", b"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"seed\":99999999999999999999999}"]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_bodies_that_are_no_request_are_400(served, path, body):
    status, headers, answer = served.request("POST", path, body, {"Content-Type": "application/json"})
    assert status == 400, answer
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}
    assert served.get("/health")[0] == 200


def test_heads_that_are_no_request(served):
    ask = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1}'
    json_type = {"Content-Type": "application/json"}

    def status(method, path, body=None, **headers):
        return served.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})[0]

    assert status("POST", "/v1/chat/completions", ask, Content_Type="text/plain") == 415
    assert status("POST", "/v1/chat/completions", ask) == 415
    assert status("GET", "/v1/chat/completions") == 405
    assert status("DELETE", "/v1/models") == 405
    assert status("POST", "/nothing", ask, **json_type) == 404
    assert status("POST", "/v1/chat/completions", b" " * (5 << 20), **json_type) == 413
    assert status("POST", "/v1/chat/completions", iter([ask]), **json_type) == 411      # chunked
    assert status("GET", "/health", Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABkAAQAAP__") == 400
    assert served.request("HEAD", "/v1/models")[2] == b""
    assert served.get("/health")[0] == 200


def test_an_old_client_gets_its_stream_without_chunks(served):
    body = json.dumps({"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 4, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=system.PATIENCE_S) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        said = b"".join(iter(lambda: s.recv(4096), b""))
    head, _, events = said.partition(b"\r\n\r\n")
    assert b" 200 " in head and b"chunked" not in head and b"connection: close" in head
    events = events.replace(b": keep-alive\n\n", b"")   # come when the machine is slow
    assert events.startswith(b"data: {") and events.endswith(b"data: [DONE]\n\n")


def test_other_sites_and_other_names_are_refused(served):
    own = f"127.0.0.1:{served.port}"
    for headers, status in [({"Host": "evil.example"}, 403), ({"Host": f"evil.example:{served.port}"}, 403), ({"Host": ""}, 403),
                            ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": f"http://{own}.evil.example"}, 403),
                            ({"Origin": f"http://{own}"}, 200), ({"Host": f"localhost:{served.port}"}, 200), ({"Host": "[::1]"}, 200)]:
        got, answered, _ = served.request("GET", "/v1/models", headers=headers)
        assert got == status, headers
        assert not any(name.lower().startswith("access-control") for name in answered)


def test_a_key_is_asked_for_everywhere_but_where_nothing_is_said(serve, tiny, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsecret-one\nsecret-two\n")
    server = serve(tiny, "--client-key-file", keys)
    for path, status in [("/v1/models", 401), ("/metrics", 401), ("/health", 200), ("/", 200), ("/openapi.json", 200)]:
        assert server.get(path)[0] == status
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.url + "/v1", api_key="secret-three", max_retries=0).models.list()
    assert openai.OpenAI(base_url=server.url + "/v1", api_key="secret-two", max_retries=0).models.list().data


def test_beyond_this_machine_only_with_key_and_tls_or_force(tiny, tmp_path):
    assert "reachable from outside" in local.failed(tiny, "--host", "0.0.0.0")
    pair = system.Authority(tmp_path / "authority").issue()
    assert "reachable from outside" in local.failed(tiny, "--host", "0.0.0.0", "--ssl-key-file", pair.key, "--ssl-cert-file", pair.cert)
    assert "cannot read" in local.failed(tiny, "--ssl-key-file", tmp_path / "none", "--ssl-cert-file", pair.cert)


def test_tls_on_both_sides(serve, start_cloud, golden_plugins, tmp_path):
    authority = system.Authority(tmp_path / "authority")
    pair, keys = authority.issue(), tmp_path / "keys"
    keys.write_text("secret\n")
    cloud = start_cloud(system.TINY, *system.F32, authority=authority, certificate=pair)
    server = serve(cloud, "--host", "127.0.0.1", "--client-key-file", keys, plugins=[golden_plugins["add"]], certificate=pair)
    http_client = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(authority.cert)))
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0, http_client=http_client)
    how = {"model": "add", "temperature": 0, "max_tokens": 24}
    assert streamed(chat(client, "hello", stream=True, **how)) == chat(client, "hello", **how).choices[0].message.content
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:   # no TLS: no answer, no harm
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")
    assert server.get("/health")[0] == 200


def test_start_fails_in_one_sentence(tiny, smol, served, golden_plugins, tmp_path):
    assert "is the port taken" in local.failed(tiny, "--port", str(served.port))
    assert "none.gguf" in local.failed(tiny, "--plugin", tmp_path / "none.gguf")
    assert "two plugins" in local.failed(tiny, "--plugin", golden_plugins["add"], "--plugin", golden_plugins["add"])
    local.failed(smol, "--plugin", golden_plugins["add"])                    # for another model
    system.one_sentence(system.spa("serve", "--cloud", "ws://127.0.0.1:1", "--port", "0"))


# ---- clients, files and clouds that go ----

def ask_and_leave(server, **fields):
    """Reads the first bytes of a long answer, then closes the socket."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=system.PATIENCE_S)
    body = json.dumps({"messages": [{"role": "user", "content": "Tell a long story."}], "ignore_eos": True, "max_tokens": 4000, **fields})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    if fields.get("stream"):
        assert connection.getresponse().read(10)
    else:
        system.wait_for(lambda: server.metric("spa_serve_requests_open") > 0)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_its_request(served, stream):
    before = served.metric("spa_serve_requests_cancelled_total")
    ask_and_leave(served, stream=stream)
    system.wait_for(lambda: served.metric("spa_serve_requests_cancelled_total") == before + 1)
    system.wait_for(lambda: served.metric("spa_serve_requests_open") == 0)   # the cloud has said its last word on it


def test_too_many_at_once_are_429(serve, smol):
    server = serve(smol, "--parallel", "1")
    first = http.client.HTTPConnection("127.0.0.1", server.port, timeout=system.PATIENCE_S)
    first.request("POST", "/v1/chat/completions", json.dumps({"messages": [{"role": "user", "content": "Tell a long story."}], "ignore_eos": True,
                                                              "max_tokens": 4000, "stream": True}), {"Content-Type": "application/json"})
    assert first.getresponse().read(10)
    status, headers, answer = server.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    assert status == 429 and json.loads(answer)["error"]["type"] == "rate_limit_error" and headers["retry-after"]
    first.close()
    system.wait_for(lambda: server.metric("spa_serve_requests_open") == 0)
    assert server.say("Name a colour.", max_tokens=4)


def test_a_silent_stream_gets_comments(serve, start_cloud):
    server = serve(start_cloud(system.SMOL, "-np", "1", "--no-self-check"), "--sse-ping-interval", "1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        busy = pool.submit(server.chat, "Tell a long story.", ignore_eos=True, max_tokens=600)
        system.wait_for(lambda: server.metric("spa_serve_requests_open") == 1)
        body = {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 4, "stream": True}
        status, headers, said = server.request("POST", "/v1/chat/completions", body)
        assert status == 200 and headers["content-type"].startswith("text/event-stream")
        assert said.startswith(b": keep-alive\n\n") and said.endswith(b"data: [DONE]\n\n")
        busy.result()


def test_a_plugin_file_that_is_replaced_is_taken_up_and_a_broken_one_is_not(serve, smol, random_plugins, tmp_path):
    first, second = ((p, system.ask(smol, "hello", p)["text"]) for p in random_plugins)
    assert first[1] != second[1]
    plugin = tmp_path / "mine.gguf"

    def replace(by):
        other = tmp_path / "other"
        other.write_bytes(by)
        os.replace(other, plugin)

    shutil.copy(first[0], plugin)
    server = serve(smol, plugins=[plugin])
    assert json.loads(server.get("/v1/models")[2])["data"][0]["id"] == "mine"
    assert server.say("hello") == first[1]
    replace(second[0].read_bytes())
    assert server.say("hello") == second[1]
    replace(b"GGUF and then nothing")
    for _ in range(2):
        assert server.say("hello") == second[1]
    assert server.said().count("cannot be used and the old one stays") == 1
    plugin.unlink()
    assert server.say("hello") == second[1]
    shutil.copy(first[0], plugin)
    assert server.say("hello") == first[1]
    assert server.metric("spa_serve_plugin_reloads_total") == 2 and server.metric("spa_serve_plugin_reloads_refused_total") == 1


def test_a_plugin_file_for_another_model_leaves_the_old_one(serve, tiny, golden_plugins, random_plugins, tmp_path):
    plugin = tmp_path / "mine.gguf"
    shutil.copy(golden_plugins["add"], plugin)
    server = serve(tiny, plugins=[plugin])
    expected = server.say("hello")
    shutil.copy(random_plugins[0], tmp_path / "other")
    os.replace(tmp_path / "other", plugin)
    assert server.say("hello") == expected and server.say("hello") == expected
    assert server.metric("spa_serve_plugin_reloads_refused_total") == 1


def test_a_cloud_that_goes_and_comes_back(serve, start_cloud, golden_plugins):
    cloud = start_cloud(system.TINY, *system.F32)
    server = serve(cloud, "--retry", "1", plugins=[golden_plugins["add"]])
    expected = server.say("hello")
    cloud.kill()
    system.wait_for(lambda: server.get("/health")[0] == 503)
    status, headers, answer = server.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
    assert status == 503 and json.loads(answer)["error"]["code"] == "cloud_unavailable"
    cloud.start_again()
    system.wait_for(lambda: server.get("/health")[0] == 200)
    assert server.say("hello") == expected


def test_a_cloud_that_is_killed_ends_a_stream_with_an_error(serve, start_cloud):
    cloud = start_cloud(system.SMOL, "--no-self-check")
    server = serve(cloud, "--retry", "1")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=system.PATIENCE_S)
    stream = chat(client, "Tell a long story.", stream=True, model="", max_tokens=4000, extra_body={"ignore_eos": True})
    next(stream)
    cloud.kill()
    with pytest.raises(openai.APIError):
        list(stream)


def test_sigterm_lets_a_running_answer_end(serve, smol):
    server = serve(smol)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.chat, "Tell a story.", ignore_eos=True, max_tokens=100)
        system.wait_for(lambda: server.metric("spa_serve_requests_open") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert answer.result()["usage"]["completion_tokens"] == 100
    assert server.process.wait(30) == 0


# ---- the documents ----

def readme_commands():
    """The two lines of README that start a server and ask it."""
    lines = (system.HERE.parent.parent / "README.md").read_text().splitlines()
    found = [line.strip().split("   #")[0] for line in lines if line.startswith(("    build/spa serve ", "    curl "))]
    assert len(found) >= 2
    return found[0], found[1]


def test_readme_commands_do_what_they_say(smol, random_plugins, tmp_path):
    start, ask = readme_commands()
    shutil.copy(random_plugins[0], tmp_path / "facts.gguf")
    port = str(system.free_port())
    words = start.replace("build/spa", str(system.SPA)).split() + ["--cloud", smol.url, "--port", port]
    server = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, env=system.environment)
    try:
        assert b"serves facts" in server.stderr.readline()
        said = subprocess.run(["sh", "-c", ask.replace("8081", port)], capture_output=True, text=True, timeout=system.PATIENCE_S)
        assert json.loads(said.stdout)["choices"][0]["message"]["role"] == "assistant", said.stdout + said.stderr
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_the_page_may_load_nothing_from_elsewhere(served):
    headers = served.get("/")[1]
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert served.get("/app.js")[1]["content-type"].startswith("text/javascript")
    assert b"http" not in served.get("/style.css")[2] and b"//" not in served.get("/")[2]
