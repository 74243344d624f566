"""One HTML file that needs nothing but itself: templates, and a policy that admits its own script and style alone.

Names of files and classes are other people's: templates escape them, JSON inside a script cannot end its element, and
scripts set texts as texts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import jinja2


def document(template: str, *, scripts: Sequence[str], styles: Sequence[str], **values: Any) -> str:
    """The file, of a template and the scripts and styles that it takes, by their paths below the package."""
    script, style = ("\n".join(_text(name) for name in names) for names in (scripts, styles))
    room = jinja2.Environment(
        loader=jinja2.PackageLoader("finepseudo", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return room.get_template(template).render(script=script, style=style, policy=_policy(script, style), **values)


def inside_script(value: Any) -> str:
    """JSON that an HTML parser takes for nothing else, whatever its texts hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so without line separators of Unicode
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(script: str, style: str) -> str:
    own = f"script-src '{_sha256(script)}'; style-src '{_sha256(style)}'"
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(name: str) -> str:
    return files("finepseudo").joinpath(*name.split("/")).read_text(encoding="utf-8")
