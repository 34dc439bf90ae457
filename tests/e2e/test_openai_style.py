"""What stands beside the conversation on spa-cloud's port: health, models, and an orderly end."""
import json
import signal
import time

import pytest

import system

LONG = 400   # tokens: seconds of work


def test_health_and_models_are_json(tiny):
    for path in ("/health", "/v1/models"):
        status, headers, body = tiny.get(path)
        assert status == 200
        assert headers["content-type" if "content-type" in headers else "Content-Type"].startswith("application/json")
        json.loads(body)
    models = json.loads(tiny.get("/v1/models")[2])
    assert models["object"] == "list"
    assert models["data"][0]["object"] == "model" and models["data"][0]["id"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/../etc/passwd"])
def test_unknown_paths_are_404(tiny, path):
    assert tiny.get(path)[0] == 404


def test_an_upgrade_to_http2_is_refused(tiny):
    status, _, _ = tiny.get("/health", {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__"})
    assert status >= 400
    assert tiny.get("/health")[0] == 200


def test_start_says_in_one_line_what_is_served_and_where(start_cloud):
    cloud = start_cloud(system.TINY, *system.F32)
    lines = [line for line in cloud.said().splitlines() if str(cloud.port) in line]
    assert len(lines) == 1


def test_sigterm_lets_a_running_answer_end(start_cloud):
    cloud = start_cloud(system.SMOL)
    answer = system.start(*system.question(cloud.reach(), "Write a long story about the sea.", n=LONG))
    time.sleep(1.0)
    assert answer.poll() is None, "the answer is too short for this test"
    cloud.process.send_signal(signal.SIGTERM)
    got = json.loads(system.good(system.finish(answer)).stdout)
    assert len(got["tokens"]) == LONG or got["finish_reason"] == "stop"
    assert cloud.process.wait(30) == 0


def test_sigterm_takes_nobody_new(start_cloud):
    cloud = start_cloud(system.SMOL)
    answer = system.start(*system.question(cloud.reach(), "Write a long story about the sea.", n=LONG))
    time.sleep(1.0)
    cloud.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    system.one_sentence(system.spa(*system.question(cloud.reach(), "Hello", n=4)))
    system.good(system.finish(answer))
    assert cloud.process.wait(30) == 0
