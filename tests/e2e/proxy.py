"""HAProxy in front of clouds, with the files of deploy/haproxy: addresses and certificates are put in, nothing else is changed.

In: clouds, a folder. Out: Proxy, whose url devices may use.
"""
import os
import pathlib
import re
import shutil
import subprocess
import time

import system

DEPLOY = system.HERE.parent.parent / "deploy"


def program():
    """tools/setup unpacks one where the system has none."""
    for place in (shutil.which("haproxy"), "/usr/sbin/haproxy", os.path.join(os.environ.get("SPA_CACHE", ""), "haproxy", "run")):
        if place and os.access(place, os.X_OK):
            return place
    return None


def version():
    return subprocess.run([program(), "-v"], capture_output=True, text=True).stdout.split(" ")[2]


def replaced(text, pattern, by):
    text, n = re.subn(pattern, by, text)
    assert n, f"there is no '{pattern}' any more"
    return text


def configured(passes_through, folder, port, clouds, authority):
    """The file's text for clouds on loopback; the name that devices use is localhost."""
    text = (DEPLOY / "haproxy" / ("haproxy-passthrough.cfg" if passes_through else "haproxy.cfg")).read_text()
    if passes_through:
        text = replaced(text, r"bind :443", f"bind 127.0.0.1:{port}")
        text = replaced(text, r"/etc/haproxy/cloud-ca\.pem", str(authority.cert))
        text = replaced(text, r"cloud\.example", "localhost")
    else:
        pair, pem = authority.issue("localhost"), pathlib.Path(folder) / "spa.pem"
        pem.write_text(pathlib.Path(pair.cert).read_text() + pathlib.Path(pair.key).read_text())
        text = replaced(text, r"bind :443 ssl crt \S+", f"bind 127.0.0.1:{port} ssl crt {pem}")
    servers = "".join(f"    server cloud{i} 127.0.0.1:{cloud.port}\n" for i, cloud in enumerate(clouds))
    return replaced(replaced(text, r"    server cloud1 .*\n", servers), r"    server cloud[23] 127\.0\.0\.1:809\d.*\n", "")


class Proxy:
    def __init__(self, folder, clouds, authority, passes_through=False):
        self.folder, self.port, self.authority = pathlib.Path(folder), system.free_port(), authority
        self.file = self.folder / f"haproxy{self.port}.cfg"
        self.file.write_text(configured(passes_through, folder, self.port, clouds, authority))
        self.url = f"wss://localhost:{self.port}"

    def reach(self):
        return ["--cloud", self.url, "--ca-file", self.authority.cert]

    def __enter__(self):
        with open(self.folder / f"haproxy{self.port}.log", "w") as log:
            self.process = subprocess.Popen([program(), "-db", "-f", str(self.file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        time.sleep(0.2)
        assert self.process.poll() is None, (self.folder / f"haproxy{self.port}.log").read_text()
        return self

    def __exit__(self, *failure):
        self.process.terminate()
        self.process.wait()
