"""The feature file: states are asked from the cloud once, whatever happens on the way."""
import re
import threading

import pytest

import capture
import system

ROWS = 150     # more than one group: rows are decoded, and come, group by group


def write(folder, n=ROWS, name="rows.jsonl"):
    """Short, since their tokens are what takes time; their states are large (words below), so that a socket's buffers do not hold all of them."""
    return system.write_rows(folder / name, [(f"Say {i}!", f"{i * i}.") for i in range(n)])


def words(rows, plugin, reach, *more):
    return ["train", rows, "-o", plugin, *reach, "--epochs", "1", "--rank", "8", "--tap-dtype", "f32", "--general", "4", "--csv", "none", "--report", "none", *more]


def train(*how, **options):
    return system.good(system.spa(*words(*how), **options))


def moved(result):
    """Rows that were in the file, and that came from the cloud."""
    return tuple(map(int, re.search(r"features +(\d+) rows were there, (\d+) came from the cloud", result.stderr).groups()))


def nowhere():
    return ["--cloud", f"ws://127.0.0.1:{system.free_port()}"]


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A run that nothing disturbs: its plugin, its feature file and its bytes on the wire."""
    folder = tmp_path_factory.mktemp("first")
    train(write(folder), folder / "head.gguf", tiny.reach())   # fetches the LM head
    with capture.Proxy(tiny.port) as wire:
        result = train(write(folder), folder / "p.gguf", wire.reach())
    assert moved(result) == (0, ROWS + 4)
    return folder / "p.gguf", folder / "p.gguf.features", sum(map(len, wire.down))


def copy(first, folder):
    for path in first[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / first[0].name, folder / first[1].name


def test_features_second_run_moves_nothing_and_needs_no_cloud(first, tmp_path):
    plugin, features = copy(first, tmp_path)
    plugin.unlink()
    result = train(write(tmp_path), plugin, nowhere())
    assert "0 bytes" in re.search(r"^wire .*$", result.stdout, re.M).group()
    assert moved(result) == (ROWS + 4, 0)
    assert plugin.read_bytes() == first[0].read_bytes()
    assert features.read_bytes() == first[1].read_bytes()
    assert first[1].stat().st_mode & 0o777 == 0o600


def test_features_only_new_rows_are_asked_for(first, tiny, tmp_path):
    plugin, features = copy(first, tmp_path)
    with capture.Proxy(tiny.port) as wire:
        result = train(write(tmp_path, ROWS + 5), plugin, wire.reach())
    assert moved(result) == (ROWS + 4, 5)
    up = b"".join(map(bytes, map(capture.payload, wire.up)))
    assert up.count(b"Say ") == 5
    assert sum(map(len, wire.down)) < first[2] / 3
    assert features.read_bytes().startswith(first[1].read_bytes()[:-64])   # the old records, byte by byte
    assert moved(train(write(tmp_path, ROWS + 5), plugin, nowhere())) == (ROWS + 9, 0)


def test_features_equal_rows_are_asked_once(tiny, tmp_path):
    rows = system.write_rows(tmp_path / "rows.jsonl", [("What is it?", "It is this."), ("And that?", "That is that.")] * 20)
    assert moved(train(rows, tmp_path / "p.gguf", tiny.reach(), "--basis", "none", "--general", "0")) == (0, 2)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_features_cloud_that_is_started_again_in_mid_stream_changes_nothing(start_cloud, first, tmp_path, share):
    cloud = start_cloud(system.TINY, *system.F32)
    came_back = threading.Thread(target=cloud.start_again)

    def strike():
        cloud.kill()
        came_back.start()
    with capture.Axe(cloud.port, first[2] * share, strike) as axe:
        result = train(write(tmp_path), tmp_path / "p.gguf", axe.reach())
    came_back.join()
    assert "trying again" in result.stderr
    assert moved(result)[0] == 0 and moved(result)[1] >= ROWS + 4   # a group that was cut is asked again as a whole
    assert (tmp_path / "p.gguf").read_bytes() == first[0].read_bytes()


def test_features_run_that_was_killed_goes_on_where_it_was(tiny, first, tmp_path):
    rows, plugin = write(tmp_path), tmp_path / "p.gguf"
    with capture.Axe(tiny.port, first[2] * 0.7, lambda: victim.kill()) as axe:
        victim = system.start(*words(rows, plugin, axe.reach()))
        victim.communicate()
    assert victim.returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.gguf.features.part", "rows.jsonl"]
    there, came = moved(train(rows, plugin, tiny.reach()))
    assert there > 0 and came > 0 and there + came >= ROWS + 4
    assert plugin.read_bytes() == first[0].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.gguf", "p.gguf.features", "rows.jsonl"]


def test_features_cloud_that_does_not_come_back_costs_no_row(tiny, start_cloud, first, tmp_path):
    rows, plugin = write(tmp_path), tmp_path / "p.gguf"
    cloud = start_cloud(system.TINY, *system.F32)
    with capture.Axe(cloud.port, first[2] * 0.7, cloud.kill) as axe:
        said = system.one_sentence(system.spa(*words(rows, plugin, axe.reach(), "--retry", "2"), timeout=120))
    assert re.search(r"states of [1-9]\d* rows are safe", said) and "goes on from there" in said
    there, came = moved(train(rows, plugin, tiny.reach()))
    assert there > 0 and there + came >= ROWS + 4
    assert plugin.read_bytes() == first[0].read_bytes()


def test_features_full_disk_in_mid_stream_costs_no_row(tiny, first, tmp_path):
    rows, plugin = write(tmp_path), tmp_path / "p.gguf"
    room = first[1].stat().st_size * 3 // 4
    said = system.one_sentence(system.spa(*words(rows, plugin, tiny.reach()), preexec_fn=system.limit_file_size(room), restore_signals=False))
    assert "features.part" in said and "are safe" in said
    there, came = moved(train(rows, plugin, tiny.reach()))
    assert there > 0 and there + came >= ROWS + 4
    assert plugin.read_bytes() == first[0].read_bytes()


def test_features_rows_longer_than_the_context_are_counted_and_named(start_cloud, tmp_path):
    cloud = start_cloud(system.TINY, *system.F32, "-c", "128", "-np", "1")
    rows = write(tmp_path)
    with open(rows, "a") as more:
        for n in (300, 400):
            more.write(rows.read_text().splitlines()[0].replace("Say", "Say " * n) + "\n")
    for reach in (cloud.reach(), nowhere()):   # the second run knows it, too
        result = train(rows, tmp_path / "p.gguf", reach)
        left = re.search(r"^left out .*$", result.stdout, re.M).group()
        assert f"2 of {ROWS + 2} rows: 2 longer than the cloud's context of 128 tokens (first: {rows} line {ROWS + 1})" in left
        assert re.search(rf"^rows +{ROWS},", result.stdout, re.M)
    only_long = tmp_path / "long.jsonl"
    only_long.write_text(rows.read_text().splitlines()[-1] + "\n")
    assert "long.jsonl line 1" in system.one_sentence(system.spa(*words(only_long, tmp_path / "q.gguf", cloud.reach(), "--basis", "none")))
    seen = system.good(system.spa("eval", rows, "--plugin", tmp_path / "p.gguf", *cloud.reach(), "-n", "1"))
    assert "left out: 2 of" in seen.stderr


def damaged(kind, features):
    whole = features.read_bytes()
    if kind == "cut":
        features.write_bytes(whole[:len(whole) // 2])
    elif kind == "flipped":
        features.write_bytes(whole[:-5000] + bytes([whole[-5000] ^ 1]) + whole[-4999:])
    elif kind == "empty":
        features.write_bytes(b"")
    elif kind == "foreign":
        features.write_bytes(b"GGUF" + whole)
    return features.read_bytes()


@pytest.mark.parametrize("kind, what", [("cut", "damaged|cut short"), ("flipped", "damaged"), ("empty", "not a feature file"), ("foreign", "not a feature file")])
def test_features_bad_file_is_refused_when_named_and_replaced_when_ours(first, tiny, tmp_path, kind, what):
    plugin, features = copy(first, tmp_path)
    bad = damaged(kind, features)
    rows = write(tmp_path)
    said = system.one_sentence(system.spa(*words(rows, plugin, tiny.reach(), "--features", features)))
    assert re.search(what, said) and "--fresh" in said
    assert features.read_bytes() == bad and not (tmp_path / "p.gguf.features.part").exists()
    result = train(rows, plugin, tiny.reach())
    assert re.search(f"({what}).*made anew", result.stderr)
    assert features.read_bytes() == first[1].read_bytes()
    damaged(kind, features)
    assert moved(train(rows, plugin, tiny.reach(), "--features", features, "--fresh")) == (0, ROWS + 4)


def test_features_of_another_model_or_shape_are_refused_when_named(first, start_cloud, tiny, tmp_path):
    plugin, features = copy(first, tmp_path)
    rows, bytes_before = write(tmp_path, ROWS + 1), features.read_bytes()   # one row more: the cloud is asked
    model = bytearray(system.TINY.read_bytes())
    model[-2] ^= 1   # a bit of one weight
    (tmp_path / "other.gguf").write_bytes(model)
    other = start_cloud(tmp_path / "other.gguf", *system.F32)
    said = system.one_sentence(system.spa(*words(rows, plugin, other.reach(), "--features", features)))
    assert "other weights" in said and "--fresh" in said
    said = system.one_sentence(system.spa(*words(rows, plugin, tiny.reach(), "--features", features, "--taps", "2")))
    assert "other taps" in said and "--fresh" in said
    assert features.read_bytes() == bytes_before
    result = train(rows, plugin, other.reach())
    assert "made anew" in result.stderr and moved(result) == (0, ROWS + 5)


def test_features_none_and_forget_leave_no_file(tiny, first, tmp_path):
    rows, plugin = write(tmp_path), tmp_path / "p.gguf"
    for option in (["--features", "none"], ["--forget"]):
        train(rows, plugin, tiny.reach(), *option)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["p.gguf", "rows.jsonl"]
        assert plugin.read_bytes() == first[0].read_bytes()


def test_features_are_written_by_one_run_at_a_time(tiny, first, tmp_path):
    rows, plugin = write(tmp_path), tmp_path / "p.gguf"
    at_work, go_on = threading.Event(), threading.Event()

    def hold():
        at_work.set()
        go_on.wait(60)
    with capture.Axe(tiny.port, first[2] * 0.6, hold) as axe:
        one = system.start(*words(rows, plugin, axe.reach()))
        assert at_work.wait(60)
        said = system.one_sentence(system.spa(*words(rows, plugin, tiny.reach())))
        go_on.set()
        system.good(system.finish(one))
    assert "another run" in said
    assert plugin.read_bytes() == first[0].read_bytes()


def test_features_wait_for_the_tokens_of_a_key_and_say_so(start_cloud, tmp_path):
    """More rows than a minute's tokens: the run says how long it takes, the cloud counts it as waiting, and it comes to its end."""
    cloud = start_cloud(system.TINY, *system.F32, "--tokens-per-minute", "3400")
    rows = write(tmp_path, 250)
    run = system.start(*words(rows, tmp_path / "p.gguf", cloud.reach(), "--general", "0"))
    system.wait_for(lambda: run.poll() is not None or b"spa_training_waiting 1" in cloud.get("/metrics")[2])
    result = system.good(system.finish(run))
    assert len(re.findall(r"it gives this key 3400 tokens a minute; the states take about \d+ minutes", result.stderr)) == 1
    assert moved(result) == (0, 250)
