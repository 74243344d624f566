"""A run directory as one static HTML page, and as the last lines of its log."""

from typing import Any
from finepseudo.storage import Store


def summary(results: dict[str, Any]) -> str:
    return ""


def write_report(run: Store, results: dict[str, Any], base: Store | None = None) -> str:
    return ""
