"""The page: one file that asks nothing of anybody, whatever names of clips and classes hold; two clips, one path."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import chromium
import numpy as np
import pytest
from PIL import Image

from finepseudo.report.document import inside_script
from finepseudo.report.look import SIDE, strip
from finepseudo.review.page import NEAR, page
from finepseudo.review.queue import Queue

EVIL = "</script><img src=x onerror=alert(1)>&\u2028'\"{{ 7*7 }}<!--<script>"
LINEAGE = {"labels": EVIL}


class Elements(HTMLParser):
    """Every element with its attributes, and the text of those that hold raw text."""

    def __init__(self, body):
        super().__init__()
        self.found, self.raw = [], {}
        self.feed(body)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag, attrs = self.found[-1] if self.found else ("", {})
        if tag in ("script", "style") and self.get_starttag_text().startswith(f"<{tag}"):
            self.raw.setdefault((tag, attrs.get("id", "")), data)


def shown(name="clip", classes=("a", "b")):
    rng = np.random.default_rng(0)
    clip_THWC = rng.integers(0, 255, (4, SIDE, SIDE, 3), np.uint8)
    p = {"label": classes[0], "confidence": 0.5}
    clip = {
        "clip": name, "row": 3, "file": f"videos/{name}.mp4", "label": classes[0], "confidence": 0.5, "accepted": True,
        "p_A": p, "p_E": p, "top": [{"label": classes[0], "p": 0.5}], "score": 1.0, "parts": {}, "frames": 4,
        "seconds": 2.0, "near": [{"clip": name, "row": 5, "label": classes[1], "S": 0.9, "path": [0, 0, 2, 3]}],
    }  # fmt: skip
    queue = Queue(recipe=name, digest="d1", lineage=LINEAGE, by="influence", class_names=classes, clips=(clip,))
    return page(queue, [clip], {3: strip(clip_THWC), 5: strip(clip_THWC)}), clip, clip_THWC


@pytest.mark.parametrize("name", ["clip", EVIL, "__proto__"])
def test_names_of_clips_and_classes_are_texts_and_nothing_else(name):
    plain, evil = Elements(shown()[0]), Elements(shown(name, (name, "b"))[0])
    assert [tag for tag, _ in evil.found] == [tag for tag, _ in plain.found]
    data = json.loads(evil.raw["script", "data"])
    assert data["clips"][0]["clip"] == data["classes"][0] == name
    assert evil.raw["script", ""] == plain.raw["script", ""]
    assert not [name for _, attrs in evil.found for name in attrs if name.startswith("on") or name == "style"]


def test_the_policy_admits_the_pages_own_script_and_style_alone():
    body = shown()[0]
    found = Elements(body)
    (policy,) = [attrs["content"] for _, attrs in found.found if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("script", "style"):
        text = body[body.index(f"<{kind}>") + len(kind) + 2 : body.index(f"</{kind}>", body.index(f"<{kind}>"))]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert not [attrs for _, attrs in found.found if {"src", "href"} & attrs.keys()]
    assert "http" not in re.sub(r"http-equiv", "", body)


def test_the_script_sets_texts_alone():
    script = Elements(shown()[0]).raw["script", ""]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "fetch("):
        assert way not in script


def test_every_field_has_a_name_and_every_action_a_key():
    found = Elements(shown()[0]).found
    by_id = {attrs["id"]: attrs for _, attrs in found if "id" in attrs}
    for name in ("mine", "theirs", "scrub", "progress", "near", "top"):
        assert by_id[name]["aria-label"]
    body = shown()[0]
    for action, key in {"accept": "a", "reject": "r", "rename": "e", "new": "n", "skip": "s", "download": "d"}.items():
        assert re.search(rf'<button id="{action}"[^>]*>[^<]*<kbd>{key}</kbd></button>', body)
    assert "prefers-color-scheme: dark" in body
    assert ":focus-visible" in body


def test_a_strip_has_the_frames_side_by_side():
    body, clip, clip_THWC = shown()
    data = json.loads(Elements(body).raw["script", "data"])
    assert data["clips"] == [clip]
    with Image.open(io.BytesIO(base64.b64decode(data["strips"]["3"]))) as picture:
        assert picture.size == (4 * SIDE, SIDE)
        there = np.asarray(picture.convert("RGB")).astype(float)
    for t in range(4):
        near = np.abs(there[:, t * SIDE : (t + 1) * SIDE].mean((0, 1)) - clip_THWC[t].mean((0, 1)))
        assert near.max() < 3


def test_fifty_clips_of_noise_and_their_neighbours_stay_below_30_megabytes_of_video_like_frames():
    ramp = np.linspace(0, 255, SIDE)
    noise = np.random.default_rng(1).normal(0, 6, (24, SIDE, SIDE, 3))
    clip_THWC = (ramp[None, :, None, None] / 2 + ramp[None, None, :, None] / 2 + noise).clip(0, 255).astype(np.uint8)
    assert 50 * (1 + NEAR) * len(strip(clip_THWC)) < 30e6


def test_json_inside_a_script_is_the_same_json():
    value = {"a": EVIL, "b": [1.5, None, True]}
    text = inside_script(value)
    assert not set("<>&") & {*text}
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        inside_script(float("nan"))


@chromium.wanted
def test_a_browser_runs_the_script_and_shows_evil_names_as_texts(tmp_path):
    (tmp_path / "review.html").write_text(shown(EVIL, (EVIL, "b"))[0])
    with chromium.Page(tmp_path / "review.html", tmp_path) as found:
        found.until("document.getElementById('theirs').dataset.frame === '0'")
        assert found.value("document.getElementById('done').textContent") == "0 of 1 looked at"
        assert found.value("document.getElementById('mine-name').textContent") == EVIL
        assert found.value("document.querySelectorAll('img').length") == 0
        for frame, there in ((1, 0), (2, 2), (3, 3), (0, 0)):  # the path of the clip, and round again
            found.key("ArrowRight")
            frames = [found.value(f"document.getElementById('{name}').dataset.frame") for name in ("mine", "theirs")]
            assert frames == [str(frame), str(there)]
        found.key("a", "a")
        assert found.value("document.getElementById('done').textContent") == "1 of 1 looked at"
        assert found.said == []
        assert found.asked == [f"file://{tmp_path}/review.html"]
