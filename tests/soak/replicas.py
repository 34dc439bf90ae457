"""replicas - three clouds behind HAProxy; one at random is killed (SIGKILL), again and again, then drained, while devices chat.

Each device is a `spa serve` with a plugin of its own, asked by the official openai client in two streams at once. Every answer must be, text, tokens, finish and
counts, what the same device said before anything was killed; no client may see an error. While clouds are drained (SIGTERM) and started again no answer
may be cut: no cloud must be asked to go on with one.
"""
import contextlib
import pathlib
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("replicas", __doc__, kills=(200, 2), drains=(20, 1), devices=(8, 4), tokens=(48, 16))

import openai

import local
import plugins
import proxy
import system

SAMPLED = {"temperature": 0.9, "seed": 5}
PROMPTS = ["What is 3?", "Name three colours.", "Write a story about the sea.", "Count from one to twenty."]
WAYS = [{"temperature": 0}, SAMPLED]
CLOUD = ("-np", "8", "-c", "8192", "-t", "1", "--anchors", "none", "--drain-time", "120", "--run-ahead-always")
STREAMS = 2  # of a device: while a cloud drains under one, the next question of the other has to go elsewhere
UP_S = 2.5   # until the proxy uses a cloud that is up again: two checks


class Device:
    def __init__(self, number, server):
        self.number, self.server, self.said, self.answers, self.lock = number, server, {}, 0, threading.Lock()
        self.client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=system.PATIENCE_S)
        self.model = [m.id for m in self.client.models.list().data][0]

    def ask(self, messages, how, logprobs):
        text, tokens, finish, counts = "", [], None, None
        for chunk in self.client.chat.completions.create(model=self.model, messages=messages, stream=True, max_tokens=run.tokens,
                                                         stream_options={"include_usage": True}, **({"logprobs": True} if logprobs else {}), **how):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                tokens += [c.token for c in choice.logprobs.content or []] if choice.logprobs else []
            counts = chunk.usage or counts
        return text, tokens, finish, counts.prompt_tokens, counts.completion_tokens

    def learn(self):
        """What it says when nobody dies. A second turn follows every first one."""
        for i, prompt in enumerate(PROMPTS[:2 if run.short else None]):
            how, logprobs = WAYS[(self.number + i) % 2], (self.number + i) % 4 < 2
            first = [{"role": "user", "content": prompt}]
            said = self.ask(first, how, logprobs)
            second = [*first, {"role": "assistant", "content": said[0]}, {"role": "user", "content": "Say it in other words."}]
            self.said[prompt] = (first, second, how, logprobs, said, self.ask(second, how, logprobs))

    def chat(self, dice, over):
        while not over.is_set():
            first, second, how, logprobs, *expected = self.said[dice.choice(sorted(self.said))]
            for messages, whole in zip((first, second), expected):
                try:
                    found = self.ask(messages, how, logprobs)
                except Exception as error:   # any at all is one that a user sees
                    run.found(f"device {self.number} sees {type(error).__name__}: {error}")
                    return
                with self.lock:
                    self.answers += 1
                if found != whole:
                    run.found(f"device {self.number}: {found!r} is not {whole!r}")


def together(devices, what, *more):
    threads = [threading.Thread(target=what, args=(d, *more)) for d in devices]
    for t in threads:
        t.start()
    return threads


def resumed(clouds):
    """Answers that clouds were asked to go on with."""
    total = 0
    for cloud in clouds:
        lines = cloud.get("/metrics")[2].decode().splitlines()
        total += sum(int(float(line.split()[1])) for line in lines if line.startswith("spa_requests_resumed_total "))
    return total


def kill(cloud):
    cloud.kill()
    time.sleep(run.dice.uniform(0, 1))
    cloud.start_again()
    time.sleep(UP_S + run.dice.uniform(0, 1))


def drain(cloud, others):
    before = resumed(others)
    cloud.process.send_signal(signal.SIGTERM)
    code = cloud.process.wait(system.PATIENCE_S)
    if code != 0:
        run.found(f"a drained cloud ended with {code}")
    cloud.start_again()
    time.sleep(UP_S + run.dice.uniform(0, 1))
    cuts = resumed(others) - before + resumed([cloud])   # by now: a device that was cut is back after 0.1 s and a handshake
    if cuts:
        run.found(f"{cuts} answers were cut by a drain")


with run, contextlib.ExitStack() as opened:
    system.environment.update(HOME=str(run.folder), XDG_CACHE_HOME=str(run.folder))
    if not proxy.program():
        raise RuntimeError("there is no HAProxy; run tools/setup")
    authority = system.Authority(run.folder / "ca")
    clouds = [opened.enter_context(system.Cloud(run.folder / f"cloud{i}.log", system.SMOL, *CLOUD)) for i in range(3)]
    front = opened.enter_context(proxy.Proxy(run.folder, clouds, authority))
    time.sleep(UP_S)
    devices = []
    for i in range(run.devices):
        plugin = plugins.random_checkpoint(run.folder, 1000 * run.seed + i, d=576, n_layers=30, r=8, strength=0.05)
        devices.append(Device(i, opened.enter_context(local.Local(run.folder / f"serve{i}.log", front, "--retry", "300", "--ping", "2", plugins=[plugin]))))
    run.say(f"HAProxy {proxy.version()}, {len(devices)} devices say what they say undisturbed")
    for t in together(devices, Device.learn):
        t.join()
    run.say("now they are disturbed")
    over = threading.Event()
    threads = [t for stream in range(STREAMS) for t in together(devices, lambda d, stream: d.chat(soak.random.Random(f"{run.seed} {d.number} {stream}"), over), stream)]
    killed = drained = 0
    while killed < run.kills and not run.findings:
        kill(run.dice.choice(clouds))
        killed += 1
        if killed % 10 == 0:
            run.say(f"{killed} kills, {sum(d.answers for d in devices)} answers, {sum(d.server.metric('spa_serve_requests_resumed_total') for d in devices):.0f} went on")
    went_on = sum(d.server.metric("spa_serve_requests_resumed_total") for d in devices)
    while drained < run.drains and not run.findings:
        cloud = run.dice.choice(clouds)
        drain(cloud, [c for c in clouds if c is not cloud])
        drained += 1
    run.say(f"{killed} kills, {drained} drains; the last answers")
    over.set()
    for t in threads:
        t.join(system.PATIENCE_S)
        if t.is_alive():
            run.found("an answer never ended")
    answers = sum(d.answers for d in devices)
    if went_on == 0 and killed:
        run.found("no kill hit an answer: nothing was tested")
    run.count = f"{killed}kills+{drained}drains+{answers}answers+{went_on:.0f}resumed"
