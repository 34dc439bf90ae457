"""A line between a device and its cloud that breaks: as a network, a proxy or a machine that dies would break it."""
import contextlib
import random
import socket
import struct
import threading

KINDS = {"rst": 2, "fin": 2, "stall": 1}   # with weights: a stall takes seconds to be noticed


class CuttingPath:
    """A TCP proxy. Of the connections that come, the next `budget` are cut, each after so many bytes in one of both directions, all drawn from a seed:

    rst    both ends get a reset
    fin    both ends get an orderly end, in the middle of a message or not
    stall  nothing passes any more, in neither direction, and nobody is told

    The first connection after arm() lives at least `spare` bytes down, since a device does not try again what never was. at_cut is called after
    each; cuts counts them by kind.
    """

    def __init__(self, port, seed, span=6000, spare=1500, kinds=KINDS, at_cut=None):
        self.port, self.dice, self.span, self.spare, self.kinds, self.at_cut = port, random.Random(seed), span, spare, kinds, at_cut
        self.budget, self.first, self.cuts, self.lock = 0, False, dict.fromkeys(KINDS, 0), threading.Lock()
        self.sockets, self.listener = [], socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def arm(self, budget):
        self.budget, self.first = budget, True

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
            Connection(self, near, far)

    def plan(self):
        """Direction, bytes and kind of the next connection's cut, or nothing."""
        with self.lock:
            first, self.first = self.first, False
            if self.budget == 0:
                return None
            self.budget -= 1
            down = first or self.dice.random() < 0.6
            return ("down" if down else "up", (self.spare if first else 1) + self.dice.randrange(self.span), self.dice.choices(list(self.kinds), [KINDS[kind] for kind in self.kinds])[0])

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for s in [self.listener, *self.sockets]:
            s.close()


class Connection:
    def __init__(self, path, near, far):
        self.path, self.near, self.far, self.plan, self.over = path, near, far, path.plan(), threading.Event()
        for s in (near, far):   # both before either line: its first byte may be the one that closes them
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for a, b, direction in ((near, far, "up"), (far, near, "down")):
            threading.Thread(target=self.line, args=(a, b, direction), daemon=True).start()

    def line(self, a, b, direction):
        left = self.plan[1] if self.plan and self.plan[0] == direction else None
        while True:
            try:
                piece = a.recv(1 << 16)
                if self.over.is_set():
                    return
                if not piece:
                    b.shutdown(socket.SHUT_WR)
                    return
                b.sendall(piece if left is None else piece[:left])
            except OSError:
                return
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    self.cut()
                    return

    def cut(self):
        kind = self.plan[2]
        self.over.set()
        for s in (self.near, self.far):
            try:
                if kind == "rst":
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
