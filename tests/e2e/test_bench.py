"""The benchmarks run and read what spa prints; their figures are none of the tests' business, but for tokens that differ."""
import csv
import json
import subprocess
import sys
import xml.etree.ElementTree

import pytest

import system

LEARNING = system.HERE.parent.parent / "bench" / "learning"


def smoke(task, folder, *words, train="--epochs 2"):
    out = folder / "results.json"
    done = subprocess.run([sys.executable, LEARNING, task, "--smoke", "--build", system.BUILD, "--model", system.TINY, "--train",
                           train, "--json", out, *words], capture_output=True, text=True, env=system.environment, timeout=system.PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


@pytest.mark.parametrize("task", ["facts", "facts100"])
def test_bench_learning_reads_every_figure_that_train_prints(task, tmp_path):
    said, (result,) = smoke(task, tmp_path)
    assert said.splitlines()[0].startswith("who  seed  epochs  exact %")
    assert result["epochs"] == 2 and result["seconds"] > 0 and result["rss_mb"] > 0
    assert result["down_mb"] is not None and result["up_mb"] is not None
    assert {"states", "training", "gate"} <= set(result["parts"])
    assert all(0 <= seen["exact_match"] <= 1 for seen in result["scores"].values())


def test_bench_more_asks_for_old_and_new_facts(tmp_path):
    said, (result,) = smoke("more", tmp_path)
    assert said.splitlines()[0].startswith("seed  old facts, before %")
    assert all(0 <= result[key] <= 1 for key in ("before", "after", "old_at_once", "new", "new_at_once")) and result["seconds"] > 0


def test_bench_routing_puts_a_request_of_each_domain_in_front(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Request {i}", "output": "WEB" if i % 2 else "MAPS"}) + "\n" for i in range(1008)))

    def down(*words):
        _, (result,) = smoke("routing", tmp_path, "--data", rows, "--rows", "8", "--gate", "always", *words, train="--epochs 1 --basis task:4 --general 0")
        return result["scores"]["held"]["bytes_down_per_gated"]

    assert down("--shots") > 1.2 * down()   # prompts included


def test_bench_harm_counts_who_spoke(tmp_path):
    said, (result,) = smoke("harm", tmp_path)
    assert "identical answers %" in said.splitlines()[0]
    assert result["answers"] == 3
    assert 0 <= result["identical"] <= 1 and 0 <= result["spoken_by_base"] <= 1
    assert result["same_until_first_difference"] <= 1


def test_spa_bench_measures_what_was_asked_for(tiny, golden_plugins):
    seen = json.loads(system.good(system.spa("bench", *tiny.reach(), "--plugin", golden_plugins["add"], "-n", 6, "-r", 2, "--json")).stdout)
    assert list(seen["modes"]) == ["base alone", "gate auto", "gate always"] and seen["repetitions"] == 2 and seen["connect_ms"] > 0
    asked = {name: mode["asked_share"]["median"] for name, mode in seen["modes"].items()}
    assert asked["base alone"] == 0 and asked["gate always"] == 1
    for mode in seen["modes"].values():
        assert 0 < mode["tokens_per_second"]["lowest"] <= mode["tokens_per_second"]["median"] <= mode["tokens_per_second"]["highest"]
    alone = system.good(system.spa("bench", *tiny.reach(), "-n", 6, "-r", 1)).stdout
    assert "base alone" in alone and "gate" not in alone


def test_bench_all_leaves_tables_numbers_and_pictures(tmp_path):
    done = subprocess.run([sys.executable, LEARNING.parent / "all", "--smoke", "--build", system.BUILD, "--model", system.TINY, "--out", tmp_path],
                          capture_output=True, text=True, env=system.environment, timeout=5 * system.PATIENCE_S)
    assert done.returncode == 0, done.stderr + done.stdout
    names = [line.split(" | ")[0].lstrip("| ") for line in (tmp_path / "index.md").read_text().splitlines()[2:]]
    assert names == ["crowd", "ahead", "device", "wire", "taps", "same", "house", "ladder", "curves"]
    for name in names:
        assert (tmp_path / f"{name}.txt").stat().st_size > 0
        tables = list(tmp_path.glob(f"{name}*.csv"))
        assert tables, name
        for table in tables:
            head, *rows = csv.reader(table.read_text().splitlines())
            assert rows and all(len(row) == len(head) for row in rows), table
    for picture in ("crowd", "ahead", "device", "curves-users", "curves-bytes_down", "curves-ladder_us"):
        xml.etree.ElementTree.parse(tmp_path / f"{picture}.svg")
    with open(tmp_path / "same.csv", encoding="utf-8", newline="") as f:
        runs = list(csv.DictReader(f))
    assert len(runs) == 16 and all(int(run["tokens"]) > 0 and run["differ"] == "0" for run in runs)
