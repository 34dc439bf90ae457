"""Devices that lie, in short: each kind once. The long form: tests/soak/liars.py."""
import pathlib
import sys

import system

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "soak"))
import liars  # noqa: E402


def test_liars_are_cut_and_nobody_else_notices(start_cloud):
    cloud = start_cloud(system.SMOL, *liars.OPTIONS)
    count, findings = liars.run(cloud, seed=4, rounds=1)
    assert findings == []
    assert count == len(liars.LIARS)
