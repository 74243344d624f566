"""A store that misbehaves: what is tried again, what is said at once, and that no more than one line is said."""

import errno
import io
import threading
import time
import uuid
from dataclasses import replace

import aiohttp
import botocore.exceptions as boto
import pytest
from faulty_s3 import Cut, FaultyS3, Reset, Slow, Status
from s3fs.errors import translate_boto_error
from servers import free_port, s3_server

from finepseudo.errors import OutageError, StorageError
from finepseudo.storage import artefacts, store
from finepseudo.storage.check import check_store
from finepseudo.storage.faults import Kind, kind_of, steadily
from finepseudo.storage.store import Store


def said_by_s3(status, code):
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(boto.ClientError(answer, "GetObject"))


class AnswerError(Exception):
    """As clients of other stores raise it."""

    def __init__(self, status):
        self.status = status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (said_by_s3(404, "NoSuchKey"), Kind.ABSENT),
        (said_by_s3(404, "NoSuchBucket"), Kind.ABSENT),
        (FileNotFoundError("x"), Kind.ABSENT),
        (OSError(errno.ENAMETOOLONG, "too long"), Kind.ABSENT),
        (said_by_s3(403, "AccessDenied"), Kind.REFUSED),
        (said_by_s3(403, "RequestTimeTooSkewed"), Kind.REFUSED),
        (said_by_s3(400, "ExpiredToken"), Kind.REFUSED),
        (said_by_s3(400, "AuthorizationHeaderMalformed"), Kind.REFUSED),
        (boto.NoCredentialsError(), Kind.REFUSED),
        (boto.ProfileNotFound(profile="x"), Kind.REFUSED),
        (boto.SSLError(endpoint_url="x", error="certificate"), Kind.REFUSED),
        (ValueError("Invalid endpoint: localhost:9000"), Kind.REFUSED),
        (PermissionError(errno.EACCES, "denied"), Kind.REFUSED),
        (AnswerError(401), Kind.REFUSED),
        (said_by_s3(500, "InternalError"), Kind.AWAY),
        (said_by_s3(503, "SlowDown"), Kind.AWAY),
        (said_by_s3(502, "Bad Gateway"), Kind.AWAY),
        (said_by_s3(400, "RequestTimeout"), Kind.AWAY),
        (said_by_s3(409, "OperationAborted"), Kind.AWAY),
        (boto.EndpointConnectionError(endpoint_url="x"), Kind.AWAY),
        (boto.ConnectTimeoutError(endpoint_url="x"), Kind.AWAY),
        (boto.ReadTimeoutError(endpoint_url="x"), Kind.AWAY),
        (boto.ConnectionClosedError(endpoint_url="x"), Kind.AWAY),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), Kind.AWAY),
        (aiohttp.ClientPayloadError("cut"), Kind.AWAY),
        (TimeoutError(), Kind.AWAY),
        (ConnectionResetError(), Kind.AWAY),
        (OSError(errno.ESTALE, "Stale file handle"), Kind.AWAY),
        (AnswerError(429), Kind.AWAY),
        (AnswerError(504), Kind.AWAY),
        (said_by_s3(507, "XMinioStorageFull"), Kind.FULL),
        (OSError(errno.ENOSPC, "full"), Kind.FULL),
        (TypeError("a mistake"), Kind.OTHER),
        (KeyError("a mistake"), Kind.OTHER),
    ],
)
def test_what_an_error_of_a_client_says(error, kind):
    assert kind_of(error) is kind


def test_a_mistake_in_code_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        steadily("read", "x", 10, lambda: 1 // 0)


@pytest.fixture(scope="module")
def faulty():
    with s3_server() as environment, FaultyS3(environment["AWS_ENDPOINT_URL"]) as s3:
        yield s3, {**environment, "AWS_ENDPOINT_URL": s3.url}


@pytest.fixture
def away(faulty, monkeypatch):
    """A store in a new bucket, and the server that can be made to misbehave."""
    import s3fs

    s3, environment = faulty
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    s3.fault = None
    store._filesystem.cache_clear()
    name = f"faults-{uuid.uuid4()}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    yield s3, Store(f"s3://{name}/run")
    s3.fault = None
    store._filesystem.cache_clear()


def verbs(where):
    """All of them, and what they are to give."""
    body = bytes(range(256)) * 400
    where.write("x/one", body)
    assert where.read("x/one") == body
    assert where.read_start("x/one", 5) == body[:5]
    with where.open("x/one") as file:
        file.seek(1000)
        assert file.read(50) == body[1000:1050]
        assert file.read() == body[1050:]
        assert file.seek(0, 2) == len(body)
        file.seek(0)
        assert io.TextIOWrapper(file, "latin-1", newline="").read() == body.decode("latin-1")
    assert where.exists("x/one")
    assert not where.exists("x/two")
    assert where.list("x") == ["one"]
    assert where.sizes("x") == {"one": len(body)}
    assert list(where.walk()) == ["x/one"]
    assert where.tag("x/one") == where.tag("x/one")
    artefacts.ensure(where, "made", {"of": 1}, lambda: {"part": body})
    assert artefacts.read_part(where, "made", "part") == body
    where.delete("x")
    assert where.list("x") == []


@pytest.mark.parametrize("fault", [Status(503, 0.3), Status(500, 0.3), Reset(0.3), Reset(0.2, after=True), Cut(0.4)])
def test_what_passes_is_ridden_out_by_every_verb(away, fault):
    s3, where = away
    s3.fault, before = fault, s3.wronged
    for number in range(2):
        verbs(where.child(f"{number}"))
    assert s3.wronged > before + 2


def test_an_outage_that_ends_in_time_is_not_noticed(away):
    s3, where = away
    where.write("x", b"1")
    s3.fault = Status(503)
    threading.Timer(1.5, lambda: setattr(s3, "fault", None)).start()
    assert where.read("x") == b"1"


@pytest.mark.parametrize("fault", [Status(503), Reset(), Cut()])
def test_an_outage_that_does_not_end_is_one_line_after_the_deadline(away, fault):
    s3, where = away
    where.write("x", b"12")
    s3.fault, began = fault, time.monotonic()
    with pytest.raises(OutageError, match=r"run/x: cannot be read, tried again for \d+ s: .* same command"):
        replace(where, patience_s=2).read("x")
    assert 0.3 < time.monotonic() - began < 30


@pytest.mark.parametrize("verb", ["read", "list", "exists", "delete", "open", "tag", "sizes", "write"])
def test_a_refusal_is_said_at_once_and_is_no_absence(away, verb):
    s3, where = away
    where.write("x/one", b"1")
    s3.fault, before = Status(403), s3.asked
    arguments = {"write": ("x/one", b"2")}.get(verb, ("x/one",))
    with pytest.raises(StorageError, match=r"^s3://.*/run/x/one: cannot be .*; check address, credentials") as caught:
        getattr(where, verb)(*arguments)
    assert type(caught.value) is StorageError
    assert "secret-of-the-test" not in str(caught.value)
    assert s3.asked - before <= 3, "a refusal was asked for again"


def test_a_store_without_room_is_said(away):
    s3, where = away
    s3.fault = Status(507, method="PUT")
    with pytest.raises(StorageError, match="no room left .* start the same command again"):
        where.write("x", b"1")


def test_a_deletion_that_is_refused_is_not_taken_for_done(away):
    """s3fs itself says nothing of keys that it was not allowed to delete."""
    s3, where = away
    where.write("x/one", b"1")
    s3.fault = Status(403, method="DELETE")
    with pytest.raises(StorageError, match="cannot be deleted"):
        where.delete("x")
    s3.fault = None
    assert where.exists("x/one")


def lose_next_answer(s3):
    s3.fault, before = Reset(after=True), s3.wronged

    def once():
        while s3.wronged == before:
            time.sleep(0.01)
        s3.fault = None

    threading.Thread(target=once, daemon=True).start()


def test_what_is_created_when_the_answer_is_lost_is_there(away):
    s3, where = away
    lose_next_answer(s3)
    assert where.put_new("x", b"1") is False, "the second attempt finds what the first has put"
    assert where.read("x") == b"1"


def test_a_store_is_not_found_wanting_when_the_answer_to_a_creation_is_lost(away, monkeypatch):
    s3, where = away
    put_new, created = Store.put_new, []

    def lost(self, path, data):
        lose_next_answer(s3)
        created.append(put_new(self, path, data))
        return created[-1]

    monkeypatch.setattr(Store, "put_new", lost)
    assert check_store(where, "probe")
    assert created == [False, False]
    assert where.list() == []


def test_names_are_no_patterns(away):
    _, where = away
    for name in ("run[1]", "run1", "a*", "ab", "q?", "qq"):
        where.write(f"{name}/part", name.encode())
    for name in ("run[1]", "a*", "q?"):
        assert where.read(f"{name}/part") == name.encode()
        assert where.list(name) == ["part"]
        where.delete(name)
    assert where.list() == ["ab", "qq", "run1"]


def test_marks_of_folders_are_no_files(away):
    import s3fs

    _, where = away
    where.write("train/x/history/step-1/part", b"1")
    bucket = where.root.split("/")[2]
    marks = ("train/x/history/", "train/x/history/step-1/", "train/x/history_$folder$", "train/x/history/a_$folder$")
    for mark in marks:
        s3fs.S3FileSystem(skip_instance_cache=True).call_s3("put_object", Bucket=bucket, Key=f"run/{mark}")
    assert where.list("train/x/history") == ["step-1"]
    assert where.list("train/x") == ["history"]
    assert where.sizes("train/x/history") == {}
    assert list(where.walk("train")) == ["train/x/history/step-1/part"]
    where.delete("train/x/history")
    assert list(where.walk("train")) == []


@pytest.mark.parametrize("endpoint", ["localhost:9000", "http://127.0.0.1:{free}", "http://no-such-host.invalid:1"])
def test_a_wrong_address_is_one_line_soon(endpoint, monkeypatch):
    names = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**names, "AWS_ENDPOINT_URL": endpoint.format(free=free_port())}.items():
        monkeypatch.setenv(name, value)
    store._filesystem.cache_clear()
    began = time.monotonic()
    with pytest.raises(StorageError, match="^s3://b/run/probe/probe: cannot be written") as caught:
        check_store(Store("s3://b/run"), "probe")
    store._filesystem.cache_clear()
    assert type(caught.value) is StorageError
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60


def test_a_slow_store_is_waited_for(away):
    s3, where = away
    s3.fault = Slow(0.3)
    where.write("x", b"1")
    assert where.read("x") == b"1"


def test_a_disk_without_hard_links_creates_a_file_once(tmp_path, monkeypatch):
    def refuses(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuses)
    where = Store(str(tmp_path))
    assert where.put_new("x/one", b"1")
    assert not where.put_new("x/one", b"2")
    assert where.read("x/one") == b"1"
    assert where.list("x") == ["one"]
