"""websocket - spa-cloud's WebSocket against Autobahn's cases (kosoku runs them), and HELLO cut into frames in every way.

The cases speak to an echo server; a cloud is none, it has a sub-protocol of its own and takes only its own messages. So a relay puts the sub-protocol into the
opening handshake, and a case counts as

    passed    as the suite says
    refused   it sends whole data messages and wants them back. The cloud took the frames, said ERROR in its protocol (no spa message) and closed with 1002: right
    waits     it sends less than the 8 bytes that a message of ours begins with, which may be cut anywhere: the cloud waits for the rest
    content   it breaks a rule after data that is no spa message: the cloud has refused that before it could see the rule broken (1002 in place of 1007)
    known     KNOWN below says what is so, and why it does no harm

and as a finding otherwise. Not run: 9 (speed and sizes of echoes), 12 and 13 (compression, which the cloud never agrees to). That data is put together rightly from
fragments, with control frames in between, is then tried with the message that the cloud does take.
"""
import asyncio
import contextlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "lib"))
import soak

run = soak.begin("websocket", __doc__, hellos=(20000, 500))

import kosoku

import system

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
TRIES = 4
PREFIX = 8              # bytes of a message of ours before its head
ERROR, WELCOME = 11, 2   # types of WIRE.md
# libwebsockets keeps one ping to be answered; of ten at once the first gets its pong, where RFC 6455 (5.5.3) lets a server choose the last alone. Devices ping when a
# cloud was silent for --ping, once, and any byte counts as an answer.
KNOWN = {"2.10", "2.11"}
HELLO_HEAD = bytes([8, 1, 18, 5]) + b"hello" + bytes([24, 0x80, 0x80, 0x40])
HELLO = bytes([1, 0, len(HELLO_HEAD), 0, 0, 0, 0, 0]) + HELLO_HEAD


async def pump(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def relay(port):
    """The sub-protocol goes into the request and out of the answer."""
    async def one(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
            head = await reader.readuntil(b"\r\n\r\n")
            up_writer.write(head[:-2] + b"Sec-WebSocket-Protocol: spa\r\n\r\n")
            answer = await up_reader.readuntil(b"\r\n\r\n")
            writer.write(b"\r\n".join(line for line in answer.split(b"\r\n") if not line.lower().startswith(b"sec-websocket-protocol:")))
            await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
            up_writer.close()
        writer.close()
    return await asyncio.start_server(one, "127.0.0.1", 0)


def messages(events):
    return [bytes(e[1]) if isinstance(e[1], (bytes, bytearray)) else e[1].encode("utf-8", "surrogateescape") for e in events if e[0] == "message"]


def judged(case):
    if case.passed:
        return "passed"
    said, wants = messages(case.received or []), [messages(events) for events in (case.expected or {}).values()]
    if case.case_id in KNOWN:
        return "known"
    if not said and any(wants) and all(len(b"".join(w)) < PREFIX for w in wants) and case.remote_close_code in (1000, None):
        return "waits"
    if not said or any(m[:1] != bytes([ERROR]) for m in said) or case.remote_close_code not in (1002, None):
        return "finding"
    return "refused" if any(wants) else "content"


async def cases(port):
    """Verdict and result by number. The suite gives a peer one second: on a machine that is busy a case may need another try, alone."""
    server, found = await relay(port), {}
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: None)   # cases break connections off
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/spa"
        wanted = CASES
        for attempt in range(TRIES):
            try:
                results = await kosoku.run_fuzzingclient(url, wanted, concurrency=1 if attempt else 8)
            except kosoku.FailureError as failure:
                results = failure.results
            found.update((r.case_id, (judged(r), r)) for r in results)
            wanted = [case for case, (verdict, _) in found.items() if verdict == "finding"]
            if not wanted:
                break
    return found


def frames(dice):
    """HELLO as a client may send it: fragments of any length, empty ones too, pings and pongs between them. And what the pings held."""
    out, at, pings, first = b"", 0, [], True
    while at < len(HELLO) or first:
        n = dice.choice([0, 1, 1, 2, 3, 7, len(HELLO)])
        piece, at = HELLO[at:at + n], min(at + n, len(HELLO))
        mask = bytes(dice.randrange(256) for _ in range(4))
        fin = at == len(HELLO) and (dice.random() < 0.7 or first)
        out += bytes([(0x80 if fin else 0) | (2 if first else 0), 0x80 | len(piece)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(piece))
        first = False
        if fin:
            return out, pings
        if at == len(HELLO):   # the end comes in an empty fragment
            return out + bytes([0x80, 0x80]) + mask, pings
        if dice.random() < 0.4:
            body = bytes(dice.randrange(256) for _ in range(dice.choice([0, 1, 125])))
            out += bytes([0x89, 0x80 | len(body)]) + bytes(4) + body
            pings.append(body)
        if dice.random() < 0.2:
            out += bytes([0x8A, 0x80]) + bytes(4)
    return out, pings


async def hello(port, dice):
    sent, pings = frames(dice)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /v1/spa HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                     b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: spa\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        while sent:
            n = dice.choice([1, 5, len(sent)])
            writer.write(sent[:n])
            sent = sent[n:]
            await writer.drain()
        pongs, welcomed = [], False
        while not welcomed:
            first, length = await asyncio.wait_for(reader.readexactly(2), 30)
            size = int.from_bytes(await reader.readexactly(2), "big") if length == 126 else length
            body = await reader.readexactly(size)
            if first == 0x8A:
                pongs.append(body)
            elif first == 0x82 and body[0] == WELCOME:
                welcomed = True
            else:
                return f"frame {first:#x} with {body[:40]!r}"
        # Not every ping has a pong (KNOWN): but each pong is a ping's, in order, and the first ping has one.
        left = iter(pings)
        return None if all(p in left for p in pongs) and pongs[:1] == pings[:len(pongs[:1])] else f"pongs {pongs!r} for pings {pings!r}"
    except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
        return repr(error)
    finally:
        writer.close()


with run, contextlib.ExitStack() as opened:
    system.environment.update(HOME=str(run.folder), XDG_CACHE_HOME=str(run.folder))
    cloud = opened.enter_context(system.Cloud(run.folder / "cloud.log", system.TINY, *system.F32, "--anchors", "none", "--log-level", "error"))
    verdicts = {}
    for verdict, case in asyncio.run(cases(cloud.port)).values():
        verdicts.setdefault(verdict, []).append(case.case_id)
        if verdict == "finding":
            run.found(f"case {case.case_id}: {case.behavior.value}, {case.behavior_close.value}, close code {case.remote_close_code}: {case.result} {case.result_close}; "
                      f"expected {case.expected!r:.200}, received {case.received!r:.200}")
    for verdict in ("known", "waits", "content", "refused"):
        run.say(f"{verdict}: {' '.join(verdicts.get(verdict, []))}")
    for i in range(run.hellos):
        wrong = asyncio.run(hello(cloud.port, soak.random.Random(f"{run.seed} {i}")))
        if wrong:
            run.found(f"HELLO {i} in fragments: {wrong}")
    run.count = "+".join(f"{len(verdicts[v])}{v}" for v in ("passed", "refused", "waits", "content", "known") if v in verdicts) + f"+{run.hellos}hellos"
