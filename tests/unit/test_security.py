"""What files of others cannot do: name what lies elsewhere, run code, write into a page, or stand in for our own.

docs/security.md has the promises.
"""

import ast
import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from labelled_run import labelled_run

from finepseudo.data import features
from finepseudo.data.cache import ClipCache
from finepseudo.data.decode import Decoder
from finepseudo.data.formats import READERS, lists, read_collection
from finepseudo.errors import ArtefactError, FinePseudoError, ManifestError
from finepseudo.recipe import Data
from finepseudo.review.answers import import_answers
from finepseudo.run import RECIPE, Run
from finepseudo.storage import artefacts, tables
from finepseudo.storage.store import Store, own_folder

PACKAGE = Path(__file__).parents[2] / "finepseudo"
OUTSIDE = ("../../etc/passwd", "a/../../b", "/etc/passwd", "s3://other/x.mp4", "a\0b", "..")


# Names that leave their folder


@pytest.mark.parametrize("name", [*OUTSIDE, "a\nb", "a/b", "a\\b", "x" * 201, "", 3, None, "\ud800"])
def test_an_id_of_an_annotation_stays_a_name(name, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"vid_name": name, "label": "a"}, {"vid_name": "b", "label": "b"}]))
    with pytest.raises(ManifestError, match="field vid_name: expected a non-empty name without"):
        read_collection(Store(str(tmp_path)), Data(train="a.json", test="", vocab=""))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_of_an_annotation_stays_below_the_root(name, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"file": name, "label": "a"}, {"file": "b", "label": "b"}]))
    with pytest.raises(ManifestError, match="field file: expected a path below the data's folder"):
        read_collection(Store(str(tmp_path)), Data(train="a.json", test="", vocab=""))


@pytest.mark.parametrize(
    ("form", "file", "text"),
    [
        ("list", "a.txt", "../../etc/passwd 0\nb.mp4 1\n"),
        ("ucf101", "a.txt", "../v_x.avi 1\n"),
        ("finegym", "a.txt", "../../x_E_000001_000002_A_0001_0002 0\nb_E_000001_000002_A_0001_0002 1\n"),
        ("finegym_whole", "a.txt", "../../x_E_000001_000002_A_0001_0002 0\nb_E_000001_000002_A_0001_0002 1\n"),
        ("hmdb51", "c_test_split1.txt", "../../x.avi 1\n"),
        ("something_v2", "a.json", '[{"id": "../x", "template": "a"}, {"id": "y", "template": "b"}]'),
        ("finediving", "a.json", '[{"video": "../x__1", "_source_info": {"action_type": "1"}}]'),
        ("kinetics400", "a.csv", "label,youtube_id,time_start,time_end,split\na,../x,1,2,train\nb,y,1,2,train\n"),
        ("table", "a.csv", "file,label\n../../x.mp4,a\ny.mp4,b\n"),
    ],
)
def test_no_form_lets_a_name_leave_the_root(form, file, text, tmp_path):
    assert form in READERS
    (tmp_path / file).write_text(text)
    (tmp_path / "finegym_annotation_info_v1.1.json").write_text("{}")
    try:
        found = read_collection(
            Store(str(tmp_path)), Data(train=file, test="", vocab="", format=form)
        ).clips.to_pylist()
    except ManifestError:
        return
    assert all(".." not in f"{row['file']}/{row['video_id']}".split("/") for row in found), found


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_manifest_of_others_cannot_have_files_read_elsewhere(path, tmp_path):
    """The path of its clips, and the digest that names a copy on the node."""
    (tmp_path / "root").mkdir()
    decoder = Decoder(Store(str(tmp_path / "root")), 8, 8, ClipCache("", 0))
    row = {"path": path, "start": 0, "num_frames": 9, "file_frames": 9, "height": 8, "width": 8, "access": "scan"}
    with pytest.raises(ArtefactError, match="expected the path of a file below it, got"):
        decoder.clips({**row, "sha256": "0" * 64}, [[0]])
    with pytest.raises(ArtefactError, match="expected the path of a file below it, got"):
        features.taken(decoder.data, {**row, "sha256": "0" * 64}, [])
    cache = ClipCache(str(tmp_path / "cache"), 1 << 20)
    for digest in ("../../x", "/etc/passwd", ".hidden"):
        with pytest.raises(ArtefactError, match="expected a digest|digest of a file is expected"):
            cache.get(digest, 8, 8)
        with pytest.raises(ArtefactError, match="expected a digest of 64 hexadecimal digits"):
            tables.on_node(Store("s3://bucket"), "x.npy", digest)


@pytest.mark.parametrize("name", ["../../x", "/etc/cron.d/x", "a/../../x", ""])
def test_a_marker_of_others_cannot_have_parts_elsewhere(name, tmp_path):
    """A copy of an artefact writes what its marker names."""
    source, target = Store(str(tmp_path / "theirs")), Store(str(tmp_path / "deep/mine"))
    artefacts.commit(source, "stage", {"part": b"1"}, {})
    marker = json.loads(source.read("stage/committed.json"))
    marker["parts"] = {name: marker["parts"]["part"]}
    source.write("stage/committed.json", json.dumps(marker).encode())
    with pytest.raises(ArtefactError, match=r"stage/committed.json is damaged \(a part has the name"):
        artefacts.copy(source, target, "stage")
    assert not (tmp_path / "deep").exists()


NO_MARKERS = (
    *(b"[]", b"3", b"null", b"{}", b"[" * 100_000, b'{"lineage": {}}', b'{"lineage": {}, "parts": {"a": 3}}'),
    b'{"lineage": {}, "parts": {"a": {"bytes": 1, "sha256": "../../x"}}}',
)


@pytest.mark.parametrize("body", NO_MARKERS)
def test_a_marker_that_is_none_is_one_error(body, tmp_path):
    Store(str(tmp_path)).write("stage/committed.json", body)
    with pytest.raises(ArtefactError, match="stage/committed.json is damaged .*delete the folder"):
        artefacts.committed(Store(str(tmp_path)), "stage")


@pytest.mark.parametrize("name", ["../../etc/passwd", "<script>alert(1)</script>", "a\0b"])
def test_answers_for_clips_that_are_none_are_refused(name, tmp_path):
    run = labelled_run(tmp_path / "run")
    (tmp_path / "a.json").write_text(json.dumps({"answers": [{"clip": name, "answer": "accept", "label": "box"}]}))
    with pytest.raises(ManifestError, match="field clip: expected a clip of the run"):
        import_answers(run, str(tmp_path / "a.json"))


# Code


class Runs:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_pickles_of_others_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([Runs()]))
    (tmp_path / "FineDiving_coarse_annotation.pkl").write_bytes(pickle.dumps({("a", 1): Runs()}))
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00\x46\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")
    with pytest.raises(ManifestError, match=r"posix.mkdir, which is refused"):
        read_collection(Store(str(tmp_path)), Data(train="a.pkl", test="", vocab="", format="finediving"))
    clips = pa.table({"video_id": ["a"], "path": ["a"], "label": [0]})
    with pytest.raises(ManifestError, match="not a numpy array of plain values"):
        lists.read_list(Store(str(tmp_path)), "a.npy", clips)
    assert not (tmp_path / "ran").exists()


def test_a_recipe_of_a_run_is_never_run(tmp_path):
    """It is numbers and words: a name of a function, or a file, in it is a text."""
    run = labelled_run(tmp_path / "run")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef recipe(): pass\n")
    body = json.loads(run.store.read(RECIPE))
    body["recipe"]["name"] = f"{tmp_path}/evil.py:recipe"
    run.store.write(RECIPE, json.dumps(body).encode())
    assert Run.at(run.store).recipe().name.endswith("evil.py:recipe")
    assert not (tmp_path / "ran").exists()
    for damage in ({"data": 3}, {"x": 1}, {"models": {"frame": ["os"]}, "methods": 3}):
        run.store.write(RECIPE, json.dumps({**body, "recipe": {**body["recipe"], **damage}}).encode())
        with pytest.raises(FinePseudoError):
            Run.at(run.store).recipe()


def calls():
    """Every call in the package: its file, its name, its keywords."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                yield str(path.relative_to(PACKAGE)), ast.unparse(node.func), keywords


def test_nothing_in_the_package_unpickles_or_evaluates_what_comes_from_outside():
    used = set()
    for file, name, keywords in calls():
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "__import__"), file
        assert not name.startswith(("pickle.", "cloudpickle.", "dill.", "marshal.", "shelve.", "joblib.")) or (
            name == "pickle.UnpicklingError"
        ), (file, name)
        assert keywords.get("shell") != "True", (file, name)
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False", file
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", file
            used.add(file)
    assert used == {"models/pickled.py"}
    pickling = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and {"pickle", "cloudpickle", "dill", "marshal"} & {alias.name for alias in node.names}
    }
    assert pickling == {"data/formats/finediving.py"}, "its unpickler knows plain values alone"


# Folders of a node


def test_a_link_of_another_user_in_tmp_is_refused(tmp_path, monkeypatch):
    """Somebody else's link to a folder of ours would have us write where they say."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / f"finepseudo-tables-{os.getuid()}").symlink_to(tmp_path / "mine")
    with pytest.raises(ArtefactError, match="is a link, or belongs to another user"):
        tables._folder()


def test_a_folder_that_others_may_write_in_is_refused(tmp_path):
    (tmp_path / "shared").mkdir()
    os.chmod(tmp_path / "shared", 0o777)
    with pytest.raises(ArtefactError, match="others may write in it"):
        own_folder(str(tmp_path / "shared"))
    assert os.stat(own_folder(str(tmp_path / "new"))).st_mode & 0o777 == 0o700
