"""The short forms of tests/soak: what they look at, each of them says. The long ones: make soak. And that these do not pass for less than they were to do."""
import os
import subprocess
import sys

import pytest

import proxy
import system

SOAK = system.HERE.parent / "soak"


@pytest.mark.parametrize("name", ["crowd", "replicas", "websocket"])
def test_soak_short_form_finds_nothing(name):
    if name == "replicas" and not proxy.program():
        pytest.skip("THERE IS NO HAPROXY, so clouds were not killed behind one: run tools/setup")
    done = subprocess.run([sys.executable, str(SOAK / f"{name}.py"), "--short"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200)
    words = done.stdout.splitlines()[-1].split()
    print("\n" + " ".join(words))
    assert done.returncode == 0, done.stderr[-4000:]
    assert words[0] == name and len(words) == 5 and words[4] == "0"


@pytest.fixture
def bare(tmp_path):
    """A build with the two programs and nothing else."""
    for program in (system.SPA, system.SPA_CLOUD):
        (tmp_path / program.name).symlink_to(program)
    return tmp_path


def long_form(name, build):
    """The five words, and what it said."""
    done = subprocess.run([sys.executable, str(SOAK / f"{name}.py")], env={**os.environ, "SPA_BUILD": str(build)}, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=600)
    return done.stdout.splitlines()[-1].split(), done.stderr


@pytest.mark.parametrize("name", ["lies", "faults"])
def test_soak_long_form_wants_sanitizers(bare, name):
    words, said = long_form(name, bare)
    assert words[0] == name and words[4] == "1"
    assert f"there is no {bare}/sanitize/" in said


@pytest.mark.parametrize("reused, findings", [(9999, "1"), (10000, "0")])
def test_soak_isolation_tells_what_was_done(bare, reused, findings):
    (bare / "tests").mkdir()
    program = bare / "tests" / "test_isolation"
    program.write_text(f"#!/bin/sh\necho isolation: seed 1, {reused} slots used again >&2\n")
    program.chmod(0o755)
    words, _ = long_form("isolation", bare)
    assert words[2] == f"{reused}reuses" and words[4] == findings
