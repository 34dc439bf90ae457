"""crowd - one cloud with many idle connections, many clients whose request heads come byte by byte, and users who chat.

All streams of those who chat must be what they were without the crowd. The cloud's memory: a line through its resident size after warm-up (the first quarter of
the time), by least squares, must rise by less than 1 MiB an hour; a short form only prints it. Its file descriptors: as many as there are connections while the crowd is
there (never more), and as in the beginning when it has gone.
"""
import asyncio
import contextlib
import json
import os
import pathlib
import resource
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("crowd", __doc__, idle=(2000, 200), slow=(500, 50), users=(64, 8), seconds=(1200, 10))

import local
import plugins
import system

SLOW_BYTE_S = 1.0
SLOPE_MIB_H = 1.0
MORE_FDS = 16          # a few on their way in or out
HEAD = (b"GET /v1/spa HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: spa\r\n\r\n")
# HELLO (WIRE.md): version 1, client "crowd", messages of up to 1 MiB, no plugin.
HELLO_HEAD = bytes([8, 1, 18, 5]) + b"crowd" + bytes([24, 0x80, 0x80, 0x40])
HELLO = bytes([1, 0, len(HELLO_HEAD), 0, 0, 0, 0, 0]) + HELLO_HEAD


def frame(opcode, payload):
    """A client's frame, masked with zeros."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


class Crowd:
    """On a thread and an event loop of its own."""

    def __init__(self, port):
        self.port, self.over, self.greeted, self.lost, self.cut, self.open_slow = port, False, 0, 0, 0, 0
        self.thread = threading.Thread(target=lambda: asyncio.run(self.all()), daemon=True)

    async def idle(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(HEAD)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 101 " not in head.split(b"\r\n")[0]:
                raise OSError(f"no upgrade: {head[:40]!r}")
            writer.write(frame(2, HELLO))
            while True:
                first, length = await reader.readexactly(2)
                size = int.from_bytes(await reader.readexactly({126: 2, 127: 8}[length]), "big") if length > 125 else length
                payload = await reader.readexactly(size)
                self.greeted += first & 15 == 2
                if first & 15 == 9:
                    writer.write(frame(10, payload))
                if first & 15 == 8:
                    raise OSError("closed")
        except (OSError, asyncio.IncompleteReadError):
            self.lost += not self.over
        finally:
            writer.close()

    async def slow(self, dice):
        while not self.over:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                self.open_slow += 1
                try:
                    for i in range(len(HEAD)):
                        writer.write(HEAD[i:i + 1])
                        await writer.drain()
                        with contextlib.suppress(asyncio.TimeoutError):
                            await asyncio.wait_for(reader.read(1), SLOW_BYTE_S * dice.uniform(0.5, 1.5))
                            break   # anything that comes, an end too, is the cloud's last word
                    self.cut += 1
                finally:
                    self.open_slow -= 1
                    writer.close()

    async def all(self):
        tasks = []
        for i in range(max(run.idle, run.slow)):
            if i < run.idle:
                tasks.append(asyncio.create_task(self.idle()))
            if i < run.slow:
                tasks.append(asyncio.create_task(self.slow(soak.random.Random(f"{run.seed} {i}"))))
            if i % 50 == 0:
                await asyncio.sleep(0.05)   # a listening socket's queue is short
        while not self.over:
            await asyncio.sleep(0.2)
        for t in tasks:
            t.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])


def slope(points):
    """Of the least-squares line through (seconds, KiB), in MiB an hour."""
    n = len(points)
    x, y = sum(p[0] for p in points) / n, sum(p[1] for p in points) / n
    below = sum((p[0] - x) ** 2 for p in points)
    return sum((p[0] - x) * (p[1] - y) for p in points) / below * 3600 / 1024 if below else 0.0


class User:
    def __init__(self, number, server):
        self.number, self.server, self.answers = number, server, 0
        self.fields = {"model": "mine", "max_tokens": 16 + 8 * (number % 3), **({"temperature": 0} if number % 2 else {"temperature": 0.8, "seed": number})}
        self.prompt = f"What is {number}?"

    def ask(self):
        body = {"messages": [{"role": "user", "content": self.prompt}], "stream": True, **self.fields}
        status, _, stream = self.server.request("POST", "/v1/chat/completions", body)
        choices = [json.loads(line[6:])["choices"][0] for line in stream.decode().splitlines() if line.startswith("data: {") and '"choices":[{' in line]
        return status, "".join(c["delta"].get("content") or "" for c in choices), [c["finish_reason"] for c in choices][-1:]

    def chat(self, until):
        while time.monotonic() < until and not run.findings:
            try:
                found = self.ask()
            except Exception as error:
                run.found(f"user {self.number} sees {type(error).__name__}: {error}")
                return
            self.answers += 1
            if found != self.whole:
                run.found(f"user {self.number}: {found!r} is not {self.whole!r}")


with run, contextlib.ExitStack() as opened:
    system.environment.update(HOME=str(run.folder), XDG_CACHE_HOME=str(run.folder))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    cloud = opened.enter_context(system.Cloud(run.folder / "cloud.log", system.SMOL, "-np", str(run.users), "-c", str(256 * run.users), "--anchors", "none",
                                              "--max-connections", "4096", "--log-level", "warn"))
    plugin = plugins.random_checkpoint(run.folder, run.seed, d=576, n_layers=30, r=8, strength=0.05)
    servers = [opened.enter_context(local.Local(run.folder / f"serve{i}.log", cloud, plugins=[f"mine={plugin}"])) for i in range((run.users + 7) // 8)]
    users = [User(i, servers[i // 8]) for i in range(run.users)]
    for u in users:
        u.whole = u.ask()
        if u.whole[0] != 200:
            raise RuntimeError(f"{u.whole}")
    fds_before = fds(cloud.process.pid)
    crowd = Crowd(cloud.port)
    crowd.thread.start()
    system.wait_for(lambda: crowd.greeted >= run.idle or crowd.lost)
    run.say(f"{crowd.greeted} idle devices are greeted, {crowd.open_slow} slow clients are there")
    began = time.monotonic()
    until = began + run.seconds
    threads = [threading.Thread(target=u.chat, args=(until,)) for u in users]
    for t in threads:
        t.start()
    points, most_fds = [], 0
    while time.monotonic() < until and not run.findings:
        time.sleep(min(5.0, run.seconds / 20))
        at = time.monotonic() - began
        if at > run.seconds / 4:
            points.append((at, resident_kib(cloud.process.pid)))
        most_fds = max(most_fds, fds(cloud.process.pid))
    for t in threads:
        t.join()
    if crowd.lost:
        run.found(f"{crowd.lost} idle connections were lost")
    if most_fds > fds_before + run.idle + 2 * run.slow + MORE_FDS:   # a slow client that was cut comes again at once
        run.found(f"{most_fds} file descriptors, {fds_before} before the crowd came")
    grows = slope(points) if len(points) > 1 else 0.0
    if not run.short and grows > SLOPE_MIB_H:
        run.found(f"the cloud's memory grows by {grows:.2f} MiB an hour")
    crowd.over = True
    crowd.thread.join(60)
    try:
        deadline = time.monotonic() + 60
        while fds(cloud.process.pid) > fds_before and time.monotonic() < deadline:
            time.sleep(0.1)
        if fds(cloud.process.pid) > fds_before:
            run.found(f"{fds(cloud.process.pid)} file descriptors are left, {fds_before} before the crowd came")
    except OSError as error:
        run.found(f"the cloud is gone: {error}")
    (run.folder / "resident.txt").write_text("".join(f"{at:.0f} {kib}\n" for at, kib in points))
    later = points[len(points) // 2:]
    run.say(f"the second half of these alone: {slope(later) if len(later) > 1 else 0.0:.2f} MiB an hour")
    run.say(f"resident {points[0][1] if points else 0} to {points[-1][1] if points else 0} KiB, {grows:.2f} MiB an hour; descriptors {fds_before}, at most {most_fds}; "
            f"{crowd.cut} slow clients were cut")
    run.count = f"{run.idle}idle+{run.slow}slow+{run.users}users+{sum(u.answers for u in users)}answers,{grows:+.2f}MiB/h"
