"""Servers that tests of several folders talk to."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request

from finepseudo.storage import store

START_LIMIT_S = 60


def free_port(host="127.0.0.1"):
    with socket.socket() as free:
        free.bind((host, 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def s3_server(host="127.0.0.1", **settings):
    """Environment that reaches an S3 server, a process of its own with these settings in its environment."""
    port = free_port(host)
    url = f"http://{host}:{port}"
    server = [os.path.join(os.path.dirname(sys.executable), "moto_server"), "-H", host, "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(server, env={**os.environ, **settings}, **quiet) as process:
        ends = time.monotonic() + START_LIMIT_S
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < ends, "the S3 server did not start"
                time.sleep(0.2)
        store._filesystem.cache_clear()  # one client a process: that of an earlier server reaches this one no more
        try:
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ACCESS_KEY_ID": "tester",
                "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            process.kill()
