"""A slow line between a device and its cloud."""
import random
import socket
import threading
import time


class SlowPath:
    """A TCP proxy: every piece of bytes arrives `least` to `most` seconds after it was sent, in order; the times are drawn from a seed."""

    def __init__(self, port, least, most, seed=1):
        self.target, self.least, self.most, self.seed = port, least, most, seed
        self.sockets, self.listener = [], socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [near, far]
            for number, (a, b) in enumerate([(near, far), (far, near)]):
                a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.line(a, b, random.Random(f"{self.seed} {len(self.sockets)} {number}"))

    def line(self, a, b, dice):
        """Reading and writing apart, so that many pieces may be on their way."""
        pieces, there = [], threading.Condition()

        def read():
            last = 0
            while True:
                try:
                    piece = a.recv(1 << 16)
                except OSError:
                    piece = b""
                last = max(last, time.monotonic() + dice.uniform(self.least, self.most))
                with there:
                    pieces.append((last, piece))
                    there.notify()
                if not piece:
                    return

        def write():
            while True:
                with there:
                    there.wait_for(lambda: pieces)
                    when, piece = pieces.pop(0)
                time.sleep(max(0, when - time.monotonic()))
                try:
                    if not piece:
                        b.shutdown(socket.SHUT_WR)
                        return
                    b.sendall(piece)
                except OSError:
                    return

        threading.Thread(target=read, daemon=True).start()
        threading.Thread(target=write, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for s in [self.listener, *self.sockets]:
            s.close()
