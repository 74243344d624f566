"""Files are whole or absent, exclusive where asked for, and a full disk loses nothing."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from finepseudo.errors import StorageError
from finepseudo.storage.store import Store, read_uri


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"))


def python(code, *arguments, **more):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, **more)


def every_file(folder):
    return sorted(name for _, _, names in os.walk(folder) for name in names)


def test_readers_in_a_thread_never_see_a_part_of_a_file(store):
    bodies = [bytes([letter]) * 2_000_000 for letter in b"ab"]
    store.write("x/file", bodies[0])
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            seen.add(store.read("x/file"))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(40):
        store.write("x/file", bodies[number % 2])
    done.set()
    reader.join()
    assert seen
    assert seen <= set(bodies)
    assert every_file(store.root) == ["file"]


def test_readers_in_another_process_never_see_a_part_of_a_file(store):
    code = (
        "import sys; from finepseudo.storage.store import Store\n"
        "store, seen = Store(sys.argv[1]), set()\n"
        "print('ready', flush=True)\n"
        "while not store.exists('done'): seen.add(store.read('file'))\n"
        "print(sorted((len(data), len(set(data))) for data in seen))"
    )
    store.write("file", b"0" * 1_000_000)
    reader = python(code, store.root)
    assert reader.stdout.readline() == b"ready\n"
    for number in range(40):
        store.write("file", b"%d" % (number % 10) * 1_000_000)
    store.write("done", b"")
    answer = reader.communicate(timeout=60)[0].decode().strip()
    assert set(eval(answer)) == {(1_000_000, 1)}


def test_a_writer_that_is_killed_leaves_the_old_file_and_no_visible_name(store):
    """Whole or absent, also when the process ends in the middle of a write."""
    store.write("x/file", b"old")
    code = (
        "import os, sys; from finepseudo.storage import store\n"
        "os.fsync = lambda _: (print('written', flush=True), __import__('time').sleep(60))\n"
        "store.Store(sys.argv[1]).write('x/file', b'new' * 1000)"
    )
    writer = python(code, store.root)
    assert writer.stdout.readline() == b"written\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=60)
    assert store.read("x/file") == b"old"
    assert store.list("x") == ["file"]
    assert len(every_file(store.root)) == 2, "the torn file is there, hidden"


def test_the_start_of_a_file(store):
    store.write("x/file", b"0123456789")
    assert [store.read_start("x/file", count) for count in (0, 4, 10, 99)] == [
        b"",
        b"0123",
        b"0123456789",
        b"0123456789",
    ]
    with pytest.raises(FileNotFoundError, match="run/x/none: no such file"):
        store.read_start("x/none", 4)


def test_create_lets_one_of_many_win(store):
    assert store.create("a/b", b"1")
    assert not store.create("a/b", b"2")
    assert store.read("a/b") == b"1"
    code = (
        "import sys; from finepseudo.storage.store import Store\n"
        "sys.stdin.read(); print(Store(sys.argv[1]).create('claim', sys.argv[2].encode()))"
    )
    racers = [python(code, store.root, number, stdin=subprocess.PIPE) for number in range(3)]
    won = [racer.communicate(timeout=60)[0] == b"True\n" for racer in racers]
    assert sum(won) == 1
    assert store.read("claim") == b"%d" % won.index(True)
    barrier, found = threading.Barrier(8), []

    def race(number):
        barrier.wait()
        found.append((store.create("threads", b"%d" % number), number))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("threads") == b"%d" % next(number for first, number in found if first)
    assert sum(first for first, _ in found) == 1
    assert not [name for name in every_file(store.root) if name.startswith(".")]


def test_list_shows_names_once_and_hides_what_is_unfinished(store):
    for path in ("d/b", "d/a", "d/sub/deep", "d/.hidden"):
        store.write(path, b"")
    assert store.list("d") == ["a", "b", "sub"]
    assert store.list() == ["d"]
    assert store.list("nowhere") == []
    assert store.child("d").list("sub") == ["deep"]


def test_walk_finds_files_at_any_depth_whatever_their_names(store, caplog):
    names = ["a [1]*?.mp4", "d.x/e.y/f.mp4", "d.x/g", "z\n.mp4"]
    for name in (*names, ".hidden", "d.x/.h/i", "other"):
        store.write(name if name == "other" else f"w/{name}", b"")
    os.mkdir(f"{store.root}/w/empty.mp4")
    os.symlink("..", f"{store.root}/w/d.x/circle")
    os.symlink("../../other", f"{store.root}/w/d.x/link")
    open(os.fsencode(store.root) + b"/w/\xff", "w").close()
    assert list(store.walk("w")) == [f"w/{name}" for name in (names[0], names[1], names[2], "d.x/link", names[3])]
    assert "left out, its name is not UTF-8" in caplog.text
    assert list(store.child("w").walk("d.x/e.y")) == ["d.x/e.y/f.mp4"]
    assert "w/d.x/g" in list(store.walk())
    assert list(store.walk("nowhere")) == list(store.walk("other")) == []


def test_sizes_are_of_the_files_directly_below(store):
    for name, data in (("x/a", b"12"), ("x/b/c", b"1"), ("x/.hidden", b"1"), ("x/[d] e", b"")):
        store.write(name, data)
    assert store.sizes("x") == {"a": 2, "[d] e": 0}
    assert store.sizes("x/a") == store.sizes("nothing") == {}


def test_delete_takes_a_file_or_a_folder_and_forgives_absence(store):
    store.write("a/b", b"1")
    store.write("a/c/d", b"1")
    store.delete("a/b")
    assert store.list("a") == ["c"]
    store.delete("a")
    store.delete("a")
    assert store.list() == []
    with pytest.raises(FileNotFoundError, match=store.uri("a/b")):
        store.read("a/b")


def test_addresses(tmp_path, monkeypatch):
    assert Store("s3://bucket/run/").uri("a/b") == "s3://bucket/run/a/b"
    assert Store(f"file://{tmp_path}") == Store(f"{tmp_path}/")
    Store(f"file://{tmp_path}/deep/er").write("file", b"1")
    assert (tmp_path / "deep/er/file").read_bytes() == b"1"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_bytes(b"2")
    assert read_uri("here") == b"2"
    assert read_uri("deep/er/file") == b"1"
    assert read_uri(f"{tmp_path}/here") == b"2"
    assert Store(".").root == str(tmp_path)
    assert Store("/").root == "/"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3:/b/run", "s3://bucket"),
        ("s3://", "s3://bucket"),
        ("gs:///", "gs://bucket"),
        ("file:/run", "file:///folder"),
    ],
)
def test_an_address_that_names_no_place_makes_no_folder(address, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=f"^{address}: expected {expected}"):
        Store(address)
    Store(f"./{address}").write("x", b"1")
    assert Store("a:b/c:/d").root == str(tmp_path / "a:b/c:/d")
    assert Store("file:///").root == "/"


def test_a_store_whose_library_is_not_installed_is_said(monkeypatch):
    def missing(protocol, **_):
        raise ImportError(f"Please install {protocol}fs")

    monkeypatch.setattr("finepseudo.storage.store.fsspec.filesystem", missing)
    with pytest.raises(StorageError, match="^zz://: Please install zzfs, here and on every node;") as caught:
        Store("zz://b/run").read("x")
    assert type(caught.value) is StorageError


def test_a_name_in_the_way_is_one_clear_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    for verb in (Store(str(tmp_path / "taken")).create, Store(str(tmp_path / "taken")).write):
        with pytest.raises(StorageError, match=r"taken/recipe.json: cannot be written: (File exists|Not a directory)"):
            verb("recipe.json", b"")
    (tmp_path / "folder/part").mkdir(parents=True)
    with pytest.raises(StorageError, match="folder/part: cannot be written: Is a directory"):
        Store(str(tmp_path)).write("folder/part", b"1")
    assert every_file(tmp_path) == ["taken"]


@pytest.mark.parametrize("verb", ["write", "create"])
def test_full_disk_leaves_the_old_file_and_no_temporary(small_disk, verb):
    store = Store(str(small_disk))
    store.write("first", b"kept")
    with pytest.raises(StorageError, match=r"no room left \(No space left on device\).* start the same command again"):
        getattr(store, verb)("first" if verb == "write" else "second", b"x" * 1_000_000)
    assert store.read("first") == b"kept"
    assert every_file(small_disk) == ["first"]
    store.write("third", b"room again")
    assert store.read("third") == b"room again"


def test_a_limit_on_the_size_of_files_is_met_like_a_full_disk(store):
    store.write("file", b"kept")
    code = (
        "import resource, sys; from finepseudo.errors import StorageError; "
        "from finepseudo.storage.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: Store(sys.argv[1]).write('file', b'x' * 100_000)\n"
        "except StorageError as error: print(error)"
    )
    answer = python(code, store.root).communicate(timeout=60)[0].decode()
    assert f"{store.uri('file')}: no room left (File too large); what was committed before is intact" in answer
    assert store.read("file") == b"kept"
    assert every_file(store.root) == ["file"]


def test_the_users_own_folder_is_meant_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/runs").root == str(tmp_path / "runs")
    assert Store("runs/~x").root == os.path.abspath("runs/~x")
