"""spa serve as a user runs it: started on a free port in front of a cloud, asked over plain HTTP, ended by its own id.

In:  a cloud (system.Cloud), plugins. Out: Local, and what it says.
"""
import http.client
import json
import pathlib

import system


class Local(system.Cloud):
    """spa serve, ready when the block begins; at its end it must end well."""

    def __init__(self, log, cloud, *options, plugins=(), port=None, certificate=None):
        self.log, self.port, self.tls, self.killed = pathlib.Path(log), port or system.free_port(), certificate is not None, False
        chosen = [word for plugin in plugins for word in ("--plugin", plugin)]
        self.command = [system.SPA, "serve", *cloud.reach(), "--port", str(self.port), *chosen, *options]
        if self.tls:
            self.command += ["--ssl-key-file", certificate.key, "--ssl-cert-file", certificate.cert]

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, headers=None, timeout=system.PATIENCE_S):
        """Status, headers and body. A dict goes out as JSON."""
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def chat(self, prompt, **fields):
        body = {"messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, "temperature": 0, "max_tokens": 24, **fields}
        status, _, answer = self.request("POST", "/v1/chat/completions", body)
        assert status == 200, answer
        return json.loads(answer)

    def say(self, prompt, **fields):
        return self.chat(prompt, **fields)["choices"][0]["message"]["content"]

    def metric(self, name):
        for line in self.get("/metrics")[2].decode().splitlines():
            if line.split(" ")[0] == name:
                return float(line.split(" ")[1])
        raise AssertionError(f"no metric {name}")


def failed(cloud, *options):
    """The sentence of a spa serve that must not start."""
    return system.one_sentence(system.spa("serve", *cloud.reach(), "--port", "0", *options))
