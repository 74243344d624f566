"""Servers that tests of several folders talk to."""

import contextlib

from faulty_s3 import free_port, moto

from finepseudo.storage import store

__all__ = ["free_port", "s3_server"]


@contextlib.contextmanager
def s3_server(host="127.0.0.1", **settings):
    """Environment that reaches an S3 server, a process of its own with these settings in its environment."""
    with moto(host, **settings) as (_, url):
        store._filesystem.cache_clear()  # one client a process: that of an earlier server reaches this one no more
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
