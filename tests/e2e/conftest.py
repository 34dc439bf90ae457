"""What the tests share: a folder for caches, a cloud with each model, and one plugin trained on examples/facts.jsonl."""
import contextlib
import itertools
import os

import pytest

import plugins
import system


def pytest_configure(config):
    system.check_environment()


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """The LM head that training fetches is kept by hash: here, not in the user's home."""
    folder = tmp_path_factory.mktemp("cache")
    system.environment.update(XDG_CACHE_HOME=str(folder), HOME=str(folder))
    return folder


@pytest.fixture
def start_cloud(tmp_path_factory):
    """Makes clouds that end with the test, also when it fails."""
    folder = tmp_path_factory.mktemp("clouds")
    with contextlib.ExitStack() as opened:
        numbers = itertools.count()
        yield lambda model, *options, **how: opened.enter_context(
            system.Cloud(folder / f"cloud{next(numbers)}.log", model, *options, **how))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The golden base model in the setting that parity needs."""
    with system.Cloud(tmp_path_factory.mktemp("tiny") / "cloud.log", system.TINY, *system.F32) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def smol(tmp_path_factory):
    """SmolLM2 as the demo runs it. Its anchors, which take a minute or two to make, are kept with the model."""
    folder = tmp_path_factory.mktemp("smol")
    with system.Cloud(folder / "cloud.log", system.SMOL, "--anchors", os.environ.get("SPA_CACHE", folder)) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def golden_plugins(tmp_path_factory):
    """The authors' checkpoint as a plugin file, by mode."""
    folder = tmp_path_factory.mktemp("golden")
    return {mode: plugins.convert(plugins.CHECKPOINT, folder / f"{mode}.gguf", mode) for mode in ("replace", "add")}


@pytest.fixture(scope="session")
def facts_plugin(smol, tmp_path_factory):
    """Trained once with every default."""
    plugin = tmp_path_factory.mktemp("facts") / "facts.gguf"
    system.good(system.spa("train", system.EXAMPLES / "facts.jsonl", "-o", plugin, *smol.reach(), timeout=900))
    return plugin


@pytest.fixture(scope="session")
def guessing(tmp_path_factory):
    """A cloud that runs ahead also where that does not pay."""
    with system.Cloud(tmp_path_factory.mktemp("guessing") / "cloud.log", system.SMOL, "-np", "8", "-c", "8192", "--run-ahead", "16",
                      "--run-ahead-always") as cloud:
        yield cloud


@pytest.fixture(scope="session")
def guessing_plugins(guessing, tmp_path_factory):
    """One that was trained (its rows lie beside it) and looks back; one that disturbs the base a little, so that guesses are right now and then; none."""
    folder = tmp_path_factory.mktemp("guessing-plugins")
    rows = system.write_rows(folder / "rows.jsonl", [(f"What is {i}?", f"It is {i}, and {i} it is.") for i in range(12)])
    system.good(system.spa("train", rows, "-o", folder / "mine.gguf", *guessing.reach(), "--epochs", "10", "--general", "0", timeout=900))
    return {"trained": folder / "mine.gguf", "disturbs": plugins.random_checkpoint(folder, 3, d=576, n_layers=30, r=8, strength=0.05), "none": None}
