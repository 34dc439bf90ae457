"""Eight sessions with eight different plugins at once, over TLS: each gets the tokens that it gets alone, in shared decode calls."""
import json

import pytest

import plugins
import system

N = 8
PROMPTS = ["Hello, how are you?", "Tell me a story about a mountain.", "What is a river?", "Name three colours.",
           "Why is the sky blue?", "Write a poem.", "How do I cook rice?", "What is seven times eight?"]


def answers(processes):
    return [json.loads(system.good(system.finish(process)).stdout) for process in processes]


def run_alone_and_together(cloud, files, n):
    words = [system.question(cloud.reach(), prompt, plugin, n=n) for prompt, plugin in zip(PROMPTS, files)]
    alone = [answers([system.start(*w)])[0] for w in words]
    together = answers([system.start(*w) for w in words])
    return alone, together


def check(alone, together):
    for a, t in zip(alone, together):
        assert t["tokens"] == a["tokens"]
        assert t["by"] == a["by"]
    assert sum("plugin" in a["by"] for a in alone) == N, "every plugin has spoken"
    assert len({tuple(a["tokens"]) for a in alone}) == N, "eight plugins, eight answers"
    assert all(a["stats"]["shared_steps"] == 0 for a in alone)
    assert all(t["stats"]["shared_steps"] > 0 for t in together)


@pytest.fixture
def serve(start_cloud, tmp_path):
    """A cloud for eight, over TLS, under an authority that only --ca-file names."""
    authority = system.Authority(tmp_path / "ca")

    def serve(model, *options):
        return start_cloud(model, "-np", N, *options, authority=authority, certificate=authority.issue())
    return serve


def test_eight_plugins_on_the_golden_model_answer_as_alone(serve, tmp_path):
    cloud = serve(system.TINY, *system.F32)
    files = [plugins.perturbed(tmp_path, seed) for seed in range(N)]
    check(*run_alone_and_together(cloud, files, n=200))


def test_eight_plugins_on_smollm_answer_as_alone(serve, tmp_path):
    cloud = serve(system.SMOL)
    files = [plugins.random_checkpoint(tmp_path, seed, d=576, n_layers=30, r=8, strength=0.3) for seed in range(N)]
    check(*run_alone_and_together(cloud, files, n=48))
