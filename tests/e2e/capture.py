"""Listening on the wire: a proxy that keeps both directions in clear, WebSocket frames taken apart, a search for secrets."""
import contextlib
import socket
import struct
import threading

RUN = 16   # bytes in a row that count as a leak


class Proxy:
    """Forwards loopback connections to a port and keeps what passed: up[i] and down[i] are connection i's raw bytes."""

    def __init__(self, port):
        self.target = port
        self.up, self.down, self.threads = [], [], []

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.accepting = threading.Thread(target=self.accept)
        self.accepting.start()
        return self

    def __exit__(self, *_):
        # accept() does not notice a close in another thread; a last connection wakes it.
        self.target = None
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.accepting.join()
        self.listener.close()
        for thread in self.threads:
            thread.join(10)

    def accept(self):
        while True:
            device, _ = self.listener.accept()
            if self.target is None:
                device.close()
                return
            try:
                cloud = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                device.close()
                continue
            for source, sink, kept in ((device, cloud, self.up), (cloud, device, self.down)):
                kept.append(bytearray())
                thread = threading.Thread(target=self.pump, args=(source, sink, kept[-1]))
                thread.start()
                self.threads.append(thread)

    def reach(self):
        return ["--cloud", f"ws://127.0.0.1:{self.port}"]

    def pump(self, source, sink, kept):
        try:
            while data := source.recv(1 << 16):
                kept += data
                self.passing()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:   # the other side went first: what it said is kept
            for side in (source, sink):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)   # nobody is left to wait for a ping that is not answered

    def passing(self):
        """Called before bytes are passed on."""


class Axe(Proxy):
    """Does something once, when so many bytes have come down; the bytes that made them so many are lost, and the connection breaks."""

    def __init__(self, port, after, strike):
        super().__init__(port)
        self.after, self.strike, self.lock = after, strike, threading.Lock()

    def passing(self):
        with self.lock:
            if self.strike and sum(map(len, self.down)) >= self.after:
                strike, self.strike = self.strike, None
                strike()
                raise OSError


def unmask(data, mask):
    key = (mask * (len(data) // 4 + 1))[:len(data)]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(len(data), "little")


def mask_frame(payload, mask=b"\x5a\xa5\x3c\xc3"):
    """A client's binary frame."""
    return struct.pack(">BBQ", 0x82, 0xFF, len(payload)) + mask + unmask(payload, mask)


def frames(stream):
    """The WebSocket frames behind a direction's HTTP head: the first byte, the length on the line, data unmasked."""
    at = stream.find(b"\r\n\r\n") + 4
    while at + 2 <= len(stream):
        begin, first, length, masked = at, stream[at], stream[at + 1] & 0x7F, stream[at + 1] & 0x80
        at += 2
        if length == 126:
            length, at = struct.unpack_from(">H", stream, at)[0], at + 2
        elif length == 127:
            length, at = struct.unpack_from(">Q", stream, at)[0], at + 8
        mask = bytes(stream[at:at + 4]) if masked else None
        at += 4 if masked else 0
        data = bytes(stream[at:at + length])
        at += length
        yield first, at - begin, unmask(data, mask) if mask else data


def payload(stream):
    """The bytes that a direction of one connection carried: its HTTP head, then what the data frames hold, unmasked."""
    head_end = stream.find(b"\r\n\r\n") + 4
    assert head_end >= 4, "no HTTP head"
    assert b"permessage-deflate" not in stream[:head_end].lower(), "compressed frames cannot be searched"
    # continuation, text, binary; the others are ping, pong and close
    return bytes(stream[:head_end]) + b"".join(data for first, _, data in frames(stream) if first & 0x0F in (0, 1, 2))


def is_telling(run):
    """Zeros, a constant and the like may be anywhere without being anybody's secret."""
    return len(set(run)) >= 4


def runs_of(tensors):
    """Every run of RUN bytes of the weights as they stand in the file and in memory (F32), and rounded to F16."""
    runs = set()
    for data in tensors:
        numbers = struct.unpack(f"<{len(data) // 4}f", data)
        for form in (data, struct.pack(f"<{len(numbers)}e", *numbers)):
            runs.update(form[i:i + RUN] for i in range(len(form) - RUN + 1))
    return {run for run in runs if is_telling(run)}


def find_runs(runs, captured):
    """Offsets in captured at which one of the runs begins."""
    return [i for i in range(len(captured) - RUN + 1) if captured[i:i + RUN] in runs]
