"""What stands beside the conversation on spa-cloud's port: health, models, and an orderly end."""
import json
import signal
import socket

import pytest

import system

LONG = 200   # tokens: seconds of work


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


def test_loopback_means_this_address_alone(tiny):
    with socket.socket() as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", tiny.port)) != 0
    assert tiny.get("/health")[0] == 200


def test_start_says_in_one_line_what_is_served_and_where(start_cloud):
    cloud = start_cloud(system.TINY, *system.F32)
    lines = [line for line in cloud.said().splitlines() if str(cloud.port) in line]
    assert len(lines) == 1


def test_sigterm_lets_a_running_answer_end_and_takes_nobody_new(start_cloud):
    cloud = start_cloud(system.SMOL)
    words = ["chat", "-p", "Write a long story about the sea.", "--temp", "0", "-n", LONG, *cloud.reach()]
    whole = system.good(system.spa(*words)).stdout
    answer = system.start(*words)
    begin = system.read_some(answer)
    cloud.process.send_signal(signal.SIGTERM)
    system.one_sentence(system.spa(*system.question(cloud.reach(), "Hello", n=4)))
    assert begin + system.good(system.finish(answer)).stdout == whole
    assert cloud.process.wait(30) == 0
