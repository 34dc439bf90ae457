"""spa serve from Node and from a browser: the official npm client, and the chat page in headless Chromium. The page's screenshots stay
in the folder shots of the build."""
import json
import os
import pathlib
import shutil
import subprocess

import pytest

import local
import system

NODE = pathlib.Path(__file__).resolve().parent.parent / "node"
MODULES = os.environ.get("SPA_NODE_MODULES", "")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(not shutil.which("node") or not os.path.isdir(MODULES), reason="node or the tests' npm packages are missing")


def node(script, *words, timeout=system.PATIENCE_S):
    done = subprocess.run(["node", str(NODE / script), *map(str, words)], env={**os.environ, "NODE_PATH": MODULES}, timeout=timeout,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def served(smol, facts_plugin, tmp_path_factory):
    with local.Local(tmp_path_factory.mktemp("node") / "log", smol, plugins=[f"mine={facts_plugin}"]) as server:
        yield server


def test_the_npm_client_streams_the_same_text(served):
    said = json.loads(node("client.js", served.url + "/v1", "mine"))
    expected = served.chat("Why is the sky blue?", temperature=0.8, seed=5)
    assert said["text"] == said["helper"] == said["whole"] == expected["choices"][0]["message"]["content"]
    assert said["finish"] == expected["choices"][0]["finish_reason"] and said["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]
    assert said["continued"] and said["code"] == "model_not_found"
    system.wait_for(lambda: served.metric("spa_serve_requests_open") == 0)
    assert served.metric("spa_serve_requests_cancelled_total") >= 1


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is missing")
def test_the_page_in_a_browser(served):
    shots = system.BUILD / "shots"
    shots.mkdir(exist_ok=True)
    said = node("page.js", served.url, shots, CHROMIUM)
    assert "page: all well" in said and "answer: Your dog" in said   # a personal answer
    assert len(list(shots.glob("*.png"))) >= 6
