"""spa serve against its own OpenAPI file, by schemathesis: what it makes up is answered, with no server error and no hang. SPA_SCHEMA_EXAMPLES
is the number of made-up requests an operation and phase (12: some hundred in all; 120: more than two thousand)."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

import local
import system

SCHEMA = pathlib.Path(__file__).resolve().parent.parent.parent / "serve" / "openapi.json"
EXAMPLES = os.environ.get("SPA_SCHEMA_EXAMPLES", "12")
# The library answers TRACE itself, and whether a valid prompt is too long is for the model's context to say.
LEFT_OUT = "unsupported_method,positive_data_acceptance"


@pytest.fixture(scope="module")
def served(tiny, golden_plugins, tmp_path_factory):
    with local.Local(tmp_path_factory.mktemp("schema") / "log", tiny, plugins=[f"mine={golden_plugins['add']}"]) as server:
        yield server


def test_the_file_that_is_served_is_the_one_in_the_repository(served):
    assert served.get("/openapi.json")[2] == SCHEMA.read_bytes()


def test_made_up_requests_meet_no_server_error_and_no_hang(served, tmp_path):
    tool = pathlib.Path(sys.executable).parent / "st"
    done = subprocess.run([tool, "run", SCHEMA, "--url", served.url, "-n", EXAMPLES, "--seed", "1", "--request-timeout", "60", "--no-color",
                           "--continue-on-failure", "--generation-database", "none", "--generation-allow-x00", "false", "--exclude-checks", LEFT_OUT],
                          cwd=tmp_path, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cases = int(re.search(r"(\d+) generated", done.stdout).group(1))
    print(f"schemathesis: {cases} cases, seed 1")
    assert cases > 100
    assert served.get("/health")[0] == 200
    page = served.get("/metrics")[2].decode()
    assert not re.search(r'requests_total\{[^}]*code="5', page)
    assert served.metric("spa_serve_requests_open") == 0
