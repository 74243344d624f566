"""What the doctor makes of facts: each fault is found, on the node that has it, and nothing else is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from finepseudo.doctor import probe
from finepseudo.doctor.judge import GIB, Facts, Place, faults, judge, lines, summary
from finepseudo.recipes import find

RECIPE = find("rehearsal")
SMALL = GIB // 8
TEXT = Path(probe.__file__).read_text()


def machine(**other):
    disk = {"folder": "/tmp", "free": 50 * GIB, "total": 100 * GIB}
    return {
        "python": "3.11.2",
        "torch": "2.13.0",
        "ray": "2.60.0",
        "deepspeed": "0.19.8",
        "finepseudo": "0.1.0",
        "folder": "/opt/finepseudo",
        "sources": "1a2b3c",
        "disks": dict.fromkeys(("temporary", "session", "cache"), disk),
        "cached_bytes": 0,
        "shm_bytes": 8 * GIB,
        "memory": {"total": 64 * GIB, "free": 32 * GIB},
        **other,
    }


def place(name, **other):
    """A node that is as it should be, but for what is said of it."""
    found = {
        "machine": machine(),
        "kernel": {"missing": "", "runs": "C++"},
        "run": {"root": "s3://b/run", "exclusive": True, "same": True},
        "data": {"root": "s3://b/data", "absent": []},
        "clip": {"frames": 9},
        "group": {"sum": 3.0, "world": 3},
        **other.pop("found", {}),
    }
    found = {look: answer for look, answer in found.items() if look not in other.get("faults", {})}
    resources = {"CPU": 16.0, "object_store_memory": 4.0 * GIB}
    return Place(name, found, **{"resources": resources, "skew": (0.01, 0.02), **other})


def examined(node=None, recipe=RECIPE, **other):
    """What is found where one of three nodes is this one."""
    facts = Facts(place("driver"), [place("a"), place("b"), node or place("c")], backend="gloo")
    return judge(recipe, replace(facts, **other))


def problems(findings):
    return [(one.check, one.level, one.said) for one in findings if one.level != "ok"]


def test_a_healthy_cluster_has_a_line_for_each_check():
    findings = examined()
    assert problems(findings) == []
    shown = lines(findings)
    assert shown[0] == "ok     cluster   3 nodes, 48 CPU, 0 GPU"
    assert "ok     clock     no clock is more than 0.03 s off the driver's" in shown
    assert "ok     group     gloo between a, b, c" in shown
    assert "ok     gpu       none asked for" in shown
    assert summary(findings, 3.2) == "nothing stands against a start (3 s)"


def disks(**sizes):
    usual = machine()["disks"]
    return {"machine": machine(disks=usual | {name: usual[name] | size for name, size in sizes.items()})}


@pytest.mark.parametrize(
    ("node", "check", "level", "begins"),
    [
        ({"faults": {"machine": "no answer"}}, "cluster", "FAULT", "c: no answer"),
        (
            {"found": {"machine": machine(ray="2.59.0")}},
            "versions",
            "FAULT",
            "c: ray 2.59.0, the driver has 2.60.0; install the same",
        ),
        (
            {"found": {"machine": machine(sources="ffffff")}},
            "versions",
            "FAULT",
            "c: finepseudo in /opt/finepseudo has other sources (ffffff, the driver's are 1a2b3c)",
        ),
        ({"found": {"kernel": {"missing": "slower: not built"}}}, "kernel", "FAULT", "c: slower: not built"),
        ({"faults": {"kernel": "its process died"}}, "kernel", "FAULT", "c: its process died"),
        ({"faults": {"run": "s3://b/run: cannot write"}}, "run", "FAULT", "c: s3://b/run: cannot write"),
        (
            {"found": {"run": {"root": "/run", "exclusive": True, "same": False}}},
            "run",
            "FAULT",
            "c: /run is another folder there than for the driver",
        ),
        (
            {"found": {"run": {"root": "/run", "exclusive": False, "same": True}}},
            "run",
            "warn",
            "the store overwrites what should be created only once",
        ),
        (
            {"found": {"data": {"root": "/data", "absent": ["train.json"]}}},
            "data",
            "FAULT",
            "c: /data: not there: train.json; mount it there",
        ),
        ({"faults": {"clip": "undecodable"}}, "decoding", "FAULT", "c: undecodable"),
        ({"found": disks(temporary={"free": SMALL})}, "disk", "FAULT", "c: /tmp: 0.1 GiB free"),
        ({"found": disks(session={"free": 4 * GIB})}, "disk", "FAULT", "c: /tmp: more than 95% full"),
        ({"found": disks(cache={"free": 2 * GIB})}, "disk", "warn", "c: /tmp: 2.0 GiB for the cache"),
        (
            {"found": {"machine": machine(memory={"total": 4 * GIB, "free": GIB})}},
            "memory",
            "warn",
            "c: 1.0 GiB of 4.0 GiB memory free",
        ),
        ({"found": {"machine": machine(shm_bytes=GIB // 16)}}, "memory", "warn", "c: the object store of 4.0 GiB is"),
        ({"skew": (-3.0, 0.1)}, "clock", "warn", "c: its clock is 3.0 s behind the driver's (±0.1)"),
        ({"skew": (400.0, 0.1)}, "clock", "FAULT", "c: its clock is 400.0 s ahead of the driver's"),
        ({"faults": {"group": "timed out"}}, "group", "FAULT", "c: no gloo group with the other training nodes: timed"),
        ({"found": {"group": {"sum": 2.0, "world": 3}}}, "group", "FAULT", "c: the sum over the gloo group is wrong"),
        ({"found": {"gpu": {"count": 0, "cuda": ""}}}, "gpu", "FAULT", "c: Ray gives a GPU, torch sees none, and is b"),
        ({"faults": {"gpu": "no answer"}}, "gpu", "FAULT", "c: no answer"),
    ],
)
def test_what_is_wrong_with_a_node_is_one_line_that_names_it(node, check, level, begins):
    ((where, how, said),) = problems(examined(place("c", **node)))
    assert (where, how) == (check, level)
    assert said.startswith(begins)
    assert faults(examined(place("c", **node))) == (level == "FAULT")


@pytest.mark.parametrize("skew", [(30.0, 29.0), None])
def test_a_clock_of_which_too_little_is_known_is_not_held_against_a_node(skew):
    assert problems(examined(place("c", skew=skew))) == []


def test_what_the_cache_holds_already_counts_as_its_room():
    found = disks(cache={"free": 2 * GIB})
    found["machine"]["cached_bytes"] = 3 * GIB
    assert problems(examined(place("c", found=found))) == []


def test_what_several_nodes_say_is_one_line():
    node = {"found": {"kernel": {"missing": "slower: not built"}}}
    everyone = [place(f"n{i}", **node) for i in range(6)]
    ((_, level, said),) = problems(judge(RECIPE, Facts(place("driver", **node), everyone)))
    assert said == "driver, n0, n1, n2 and 3 more: slower: not built"
    assert level == "warn", "the same everywhere: slower, and no installation that went wrong"


def test_data_that_nobody_has_is_no_matter_of_mounting():
    absent = {"found": {"data": {"root": "/data", "absent": ["train.json"]}}}
    found = judge(RECIPE, Facts(place("driver", **absent), [place("a", **absent)]))
    assert [said for _, _, said in problems(found)] == ["driver, a: /data: not there: train.json; set --data.root"]


def test_without_a_cluster_the_driver_is_looked_at_alone():
    findings = judge(RECIPE, Facts(place("driver"), address="no Ray cluster answers"))
    assert problems(findings) == [("cluster", "FAULT", "no Ray cluster answers")]
    assert [one.check for one in findings] == [
        "cluster", "versions", "kernel", "run", "data", "decoding", "disk", "memory",
    ]  # fmt: skip
    assert summary(findings, 1.0) == "1 fault, 0 warnings: mend the faults before a start (1 s)"


def test_room_and_data_that_cannot_be_read_are_faults_of_the_whole():
    found = problems(examined(room="no room", sample="labels.csv: no column"))
    assert found == [("room", "FAULT", "no room"), ("data", "FAULT", "labels.csv: no column")]


# The probe itself, as nodes run it.


def ask(looks, deadline_s=60.0, text="", **env):
    text = text or TEXT
    done = subprocess.run(
        [sys.executable, "-c", text], input=json.dumps({"deadline_s": deadline_s, "looks": looks}).encode(),
        capture_output=True, timeout=300, **env,
    )  # fmt: skip
    return {answer["look"]: answer for answer in map(json.loads, done.stdout.splitlines())}


def test_the_probe_answers_without_a_finepseudo_that_could_be_imported(tmp_path):
    broken = tmp_path / "finepseudo"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('not this one')")
    looks = {"machine": {"cache": "clips", "session": ""}, "kernel": {}}
    answers = ask(looks, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, cwd=tmp_path)
    found = answers["machine"]["found"]
    assert found["folder"] == str(broken)
    assert found["sources"] == probe.sources(broken) != ""
    assert found["memory"]["free"] <= found["memory"]["total"]
    assert answers["kernel"]["fault"] == "not this one"


def test_files_that_a_container_has_read_take_none_of_its_memory(tmp_path, monkeypatch):
    for name, text in (("max", "4000\n"), ("now", "3000\n"), ("memory.stat", "anon 1000\ninactive_file 1500\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(probe, "CGROUPS", [(str(tmp_path), "max", "now", "inactive_file")])
    assert probe.machine({"cache": "cache", "session": ""})["memory"] == {"total": 4000, "free": 2500}
    (tmp_path / "max").write_text("max\n")
    assert probe.machine({"cache": "cache", "session": ""})["memory"]["total"] > 4000


def test_a_look_that_hangs_takes_no_other_with_it():
    text = TEXT.replace('"kernel": kernel', '"kernel": lambda asked: time.sleep(600)')
    answers = ask({"kernel": {}, "machine": {"cache": "clips", "session": ""}}, deadline_s=10.0, text=text)
    assert answers.keys() == {"machine"}


def test_the_digest_of_sources_sees_code_and_nothing_else(tmp_path):
    (tmp_path / "a.py").write_text("1")
    before = probe.sources(tmp_path)
    (tmp_path / "a.so").write_text("1")
    assert probe.sources(tmp_path) == before
    (tmp_path / "a.py").write_text("2")
    assert probe.sources(tmp_path) != before


def test_credentials_are_in_no_message(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    said = probe.clean("no http://me:pass@host/x\nfor very-secret-value and 0123456789abcdef")
    assert said == "no http://***@host/x for *** and ***"
