"""/metrics as Prometheus reads it, and the dashboard that is drawn from it. promtool, which tools/setup unpacks, has the last word on both."""
import json
import os
import re
import shutil
import subprocess

import pytest

import system
from slow_path import SlowPath

DEPLOY = system.HERE.parent.parent / "deploy"
SAMPLE = re.compile(r'^(spa_[a-z_]+)(\{[^}]*\})? (\S+)$')


@pytest.fixture(scope="module")
def promtool():
    found = shutil.which("promtool") or shutil.which("promtool", path=os.environ.get("SPA_CACHE", ""))
    if not found:
        pytest.skip("THERE IS NO PROMTOOL, so nothing of Prometheus' own has read the page or the queries: run tools/setup")
    return found


def page(cloud, **how):
    status, headers, body = cloud.get("/metrics", **how)
    assert status == 200, body
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return body.decode()


def values(cloud):
    return {name + (labels or ""): float(value) for name, labels, value in map(match, page(cloud).splitlines()) if name}


def match(line):
    if line.startswith("#"):
        return None, None, None
    found = SAMPLE.match(line)
    assert found, f"no sample: {line!r}"
    return found.groups()


def grown(cloud, before):
    now = values(cloud)
    assert set(now) == set(before), "which series there are never changes"
    return {name: now[name] - before[name] for name in now}


def settled(cloud):
    """Values once every connection of an earlier test is closed."""
    system.wait_for(lambda: values(cloud)["spa_connections"] == 0)
    return values(cloud)


def test_metrics_promtool_finds_no_fault(tiny, golden_plugins, promtool):
    system.ask(tiny, "hi", golden_plugins["add"], n=8)
    text = page(tiny)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    broken = subprocess.run([promtool, "check", "metrics"], input=text.replace("spa_batch_tokens_count", "spa_batch_count"), capture_output=True, text=True)
    assert broken.returncode != 0, "it would have said so"


def test_metrics_every_family_has_help_and_type(tiny):
    lines = page(tiny).splitlines()
    helped = [line.split()[2] for line in lines if line.startswith("# HELP ")]
    typed = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _, _ in map(match, lines) if name}
    assert helped == typed and len(set(typed)) == len(typed)
    assert named == set(typed)


def test_metrics_count_an_answer_as_its_statistics_do(tiny, golden_plugins):
    before = settled(tiny)
    mine = system.ask(tiny, "hi", golden_plugins["add"], n=20, gate="always")
    base = system.ask(tiny, "hello", n=10, gate="never")
    system.wait_for(lambda: values(tiny)["spa_connections"] == 0)
    more = grown(tiny, before)
    by = [*mine["by"], *base["by"]]
    assert more['spa_tokens_total{speaker="plugin"}'] == by.count("plugin") > 0
    assert more['spa_tokens_total{speaker="base"}'] == by.count("base") > 0
    assert more["spa_gated_tokens_total"] == mine["stats"]["gated"]
    assert sum(more[f'spa_requests_total{{end="{end}"}}'] for end in ("stop", "length")) == 2
    assert more["spa_connections_opened_total"] == 2
    assert more["spa_answer_seconds_count"] >= mine["stats"]["gated"]
    assert more["spa_received_bytes_total"] > mine["stats"]["bytes_up"]
    assert more["spa_decode_seconds_total"] > 0 and more["spa_head_seconds_total"] > 0 and more["spa_batch_tokens_count"] > 0
    assert before["spa_slots"] == 8 and values(tiny)["spa_slots_busy"] == 0


def test_metrics_count_late_answers_and_who_went_away(start_cloud, golden_plugins):
    cloud = start_cloud(system.TINY, *system.F32)
    before = settled(cloud)
    with SlowPath(cloud.port, 0.1, 0.1) as path:
        question = system.question(["--cloud", path.url], "hi", golden_plugins["add"], n=3, gate="always")
        answer = json.loads(system.good(system.spa(*question, "--answer-ms", "20", "--late", "base", "--run-ahead", "off")).stdout)
        failed = system.spa(*question, "--answer-ms", "20", "--late", "error")
        assert failed.returncode != 0
        leaves = system.start(*system.question(["--cloud", path.url], "hi", golden_plugins["add"], n=200, gate="always"))
        system.wait_for(lambda: values(cloud)["spa_slots_busy"] == 1)
        leaves.kill()
        leaves.communicate()
    system.wait_for(lambda: values(cloud)["spa_connections"] == 0)
    more = grown(cloud, before)
    assert answer["stats"]["late"] == 3
    assert more['spa_states_unused_total{why="late"}'] == 4
    assert more["spa_gated_tokens_total"] >= 3 == more['spa_tokens_total{speaker="base"}']
    assert more['spa_requests_total{end="failed"}'] == 1
    assert more['spa_requests_total{end="gone"}'] == 1


def test_metrics_count_refused_requests(start_cloud):
    cloud = start_cloud(system.TINY, *system.F32, "--max-queue", "0")
    refused = system.spa(*system.question(cloud.reach(), "hi", n=3, gate="never"), "--retry", "0")
    assert refused.returncode != 0 and "queue" in refused.stderr
    assert values(cloud)['spa_requests_total{end="refused"}'] == 1


def test_metrics_count_training(tiny, tmp_path):
    before = settled(tiny)
    rows = system.write_rows(tmp_path / "rows.jsonl", [(f"What is {i}?", f"It is {i}.") for i in range(6)])
    system.good(system.spa("train", rows, "-o", tmp_path / "mine.gguf", *tiny.reach(), "--epochs", "1", "--basis", "none", "--general", "0", timeout=900))
    system.wait_for(lambda: values(tiny)["spa_connections"] == 0)
    more = grown(tiny, before)
    assert more["spa_training_tokens_total"] > 6 * 10
    assert values(tiny)["spa_training_streams"] == 0


def test_metrics_need_the_key_and_health_does_not(start_cloud, tmp_path):
    (tmp_path / "keys").write_text("right\n")
    cloud = start_cloud(system.TINY, *system.F32, "--api-key-file", tmp_path / "keys")
    assert cloud.get("/health")[0] == 200
    for headers in (None, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
        status, _, body = cloud.get("/metrics", headers)
        assert status == 401 and b"spa_tokens" not in body and "key" in json.loads(body)["error"]["message"]
    text = page(cloud, headers={"Authorization": "Bearer right"})
    assert 'spa_connections_refused_total{why="key"} 0' in text
    (tmp_path / "wrong").write_text("wrong\n")
    assert system.spa("chat", "-p", "hi", *cloud.reach(), "--api-key-file", tmp_path / "wrong").returncode != 0
    assert 'spa_connections_refused_total{why="key"} 1' in page(cloud, headers={"Authorization": "Bearer right"})


def queries():
    dashboard = json.loads((DEPLOY / "grafana-spa-cloud.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(found) > 20
    return found, [v["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]


def test_metrics_dashboard_names_only_what_there_is(tiny):
    have, labels = set(), {"instance", "le"}
    for name, label, _ in filter(lambda sample: sample[0], map(match, page(tiny).splitlines())):
        have.add(name)
        labels |= set(re.findall(r'(\w+)="', label or ""))
    exprs, variables = queries()
    for expr in exprs + variables:
        names = re.findall(r"\bspa_\w+", expr)
        assert names and set(names) <= have, f"{set(names) - have} in {expr}"
        used = set(re.findall(r'[{,]\s*(\w+)\s*=', expr)) | {word for group in re.findall(r"by \(([^)]*)\)", expr) for word in group.split(", ")}
        assert used <= labels, f"{used - labels} in {expr}"
    families = {line.split()[2] for line in page(tiny).splitlines() if line.startswith("# TYPE ")}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for expr in exprs for name in re.findall(r"\bspa_\w+", expr)}
    assert families == shown, f"not on the dashboard: {families - shown}"


def test_metrics_dashboard_and_scrape_file_are_what_prometheus_takes(promtool, tmp_path):
    exprs, _ = queries()
    filled = [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in exprs]
    rules = {"groups": [{"name": "dashboard", "rules": [{"record": f"panel:q{i}", "expr": expr} for i, expr in enumerate(filled)]}]}
    (tmp_path / "rules.yml").write_text(json.dumps(rules))   # YAML holds JSON
    done = subprocess.run([promtool, "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    config = tmp_path / "prometheus.yml"
    key = tmp_path / "key"
    key.write_text("right")
    config.write_text((DEPLOY / "prometheus.yml").read_text().replace("/etc/prometheus/spa-cloud.key", str(key)))
    done = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
