"""A line between a device and its cloud that breaks: as a network, a proxy or a machine that dies would break it."""
import contextlib
import random
import socket
import struct
import threading
import time

KINDS = {"rst": 2, "fin": 2, "stall": 1, "half-open": 1, "late": 1}   # with weights: what nobody is told of takes seconds to be noticed
LATE_MAX_S = 15
LEFT = (7, 8)   # states of a TCP socket whose peer has gone: TCP_CLOSE, after a reset, and TCP_CLOSE_WAIT


class CuttingPath:
    """A TCP proxy. Of the connections that come, the next `budget` are cut, each after so many bytes in one of both directions, all drawn from a seed:

    rst        both ends get a reset
    fin        both ends get an orderly end, in the middle of a message or not
    stall      nothing passes any more, in neither direction, and nobody is told
    half-open  one end, drawn from the seed, gets a reset; the other stays open and silent, and is told nothing
    late       nothing passes, until a moment after the next connection has come, which is when the device has gone on (or after LATE_MAX_S):
               then all of it does, in both directions. left counts those that the device had left by then

    How many is drawn from 1 to `span` or, by direction, to what arm() is told. The first connection after arm() lives at least `spare` bytes down, since
    a device does not try again what never was. at_cut is called after each; cuts counts them by kind; passed: bytes by direction since arm().
    """

    def __init__(self, port, seed, span=6000, spare=1500, kinds=KINDS, at_cut=None):
        self.port, self.dice, self.span, self.spare, self.kinds, self.at_cut = port, random.Random(seed), span, spare, kinds, at_cut
        self.budget, self.first, self.cuts, self.left, self.lock = 0, False, dict.fromkeys(KINDS, 0), 0, threading.Lock()
        self.next_one, self.spans, self.passed = threading.Event(), None, {"up": 0, "down": 0}
        self.sockets, self.listener = [], socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def arm(self, budget, spans=None):
        self.budget, self.first, self.spans, self.passed = budget, True, spans, {"up": 0, "down": 0}

    def break_all(self):
        """Ends what is connected now."""
        for s in self.sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                near.close()
                continue
            self.sockets += [near, far]
            self.next_one.set()
            self.next_one = threading.Event()
            Connection(self, near, far)

    def plan(self):
        """Direction, bytes, kind, end and seconds of the next connection's cut, or nothing. The end: half-open's reset; the seconds: late's moment."""
        with self.lock:
            first, self.first = self.first, False
            if self.budget == 0:
                return None
            self.budget -= 1
            down = first or self.dice.random() < 0.6
            kind = self.dice.choices(list(self.kinds), [KINDS[kind] for kind in self.kinds])[0]
            direction = "down" if down else "up"
            least, most = self.spare if first else 1, self.spans[direction] if self.spans else self.span
            return direction, least + self.dice.randrange(max(1, most - least)), kind, self.dice.randrange(2), self.dice.random()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for s in [self.listener, *self.sockets]:
            s.close()


class Connection:
    def __init__(self, path, near, far):
        self.path, self.near, self.far, self.plan, self.over, self.held = path, near, far, path.plan(), threading.Event(), None
        for s in (near, far):   # both before either line: its first byte may be the one that closes them
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for a, b, direction in ((near, far, "up"), (far, near, "down")):
            threading.Thread(target=self.line, args=(a, b, direction), daemon=True).start()

    def line(self, a, b, direction):
        left = self.plan[1] if self.plan and self.plan[0] == direction else None
        with contextlib.suppress(OSError):
            while True:
                piece = a.recv(1 << 16)
                if self.over.is_set():
                    return
                self.wait()
                if not piece:
                    b.shutdown(socket.SHUT_WR)
                    return
                before, behind = (piece, b"") if left is None else (piece[:left], piece[left:])
                b.sendall(before)
                self.path.passed[direction] += len(before)
                if left is None:
                    continue
                left -= len(before)
                if left == 0:
                    left = None
                    self.cut()
                    if self.over.is_set():
                        return
                    self.wait()
                    b.sendall(behind)

    def cut(self):
        kind, end = self.plan[2:4]
        if kind == "late":
            self.held = self.path.next_one
        else:
            self.over.set()
        for s in (self.near, self.far):
            try:
                if kind == "rst" or kind == "half-open" and s is (self.near, self.far)[end]:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    s.shutdown(socket.SHUT_RD)   # wakes the other thread's recv
                    s.close()
                elif kind == "fin":
                    s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self.path.lock:
            self.path.cuts[kind] += 1
        if self.path.at_cut:
            self.path.at_cut(kind)

    def wait(self):
        """While what passes is held back."""
        held = self.held
        if held is None:
            return
        held.wait(LATE_MAX_S)
        time.sleep(self.plan[4])
        with self.path.lock:
            if self.held is not None:
                self.held = None
                self.path.left += self.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in LEFT
