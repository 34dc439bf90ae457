"""The short forms of tests/soak: what they look at, each of them says. The long ones: make soak."""
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
