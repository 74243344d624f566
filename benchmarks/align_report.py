"""What align.py prints of what it measured: versions, a table for each work and thread count, and the plot.

A row is a dict as it comes from a child process: one implementation of one work at one length, or a gallery of one
size. A column it lacks is a dash.

Axes: N videos, G gallery, T frames, D embedding.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from align_peers import BARE, GAMMA, HALF, MAKERS, OURS, WORKS, D

BARE_HALF = "bare products of i <= j"
MIB = 2**20

Row = dict[str, Any]


def versions() -> dict[str, str]:
    """Of everything that was measured."""
    found = {"python": platform.python_version(), "machine": _processor()}
    for name in ("torch", "numpy", "numba", "tslearn", "pysdtw", "soft-dtw", "soft-dtw-rust", "ddtw"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def table(rows: list[Row], memory: dict[tuple[str, int, str], Row]) -> str:
    """One work at one thread count, readable."""
    head = ("T", "", "pairs", "us/pair", "x ours", "(min..max)", "value err", "(rel)", "grad err", "(rel)", "MiB", "")
    lines = [head]
    for row in [row for row in rows if row["status"] != "left out"]:
        if row["T"] != lines[-1][0] and len(lines) > 1 and row["name"] == OURS:
            lines.append(("",) * len(head))
        lines.append(cells(row, memory.get((row["work"], row["T"], row["name"]), {})))
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(head) - 1)]
    left = {1, len(head) - 1}
    text = [
        "  ".join(
            str(cell).ljust(width) if i in left else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(line, [*widths, 0], strict=True))
        ).rstrip()
        for line in lines
    ]
    remarks = {row["name"]: row["remark"] for row in rows if row.get("remark")}
    missing = {row["name"]: row["note"] for row in rows if row["status"] == "left out"}
    text += ["", *(f"{name}: {remark}" for name, remark in remarks.items())]
    text += [f"Left out: {name} ({reason})" for name, reason in missing.items()]
    return "\n".join(text).rstrip()


def cells(row: Row, memory: Row) -> tuple[str, ...]:
    """One line of the table."""
    start = (str(row["T"]), row["name"])
    if "seconds_per_pair" not in row:
        return (*start, *("-",) * 9, f"{row['status']}: {row['note']}")
    ratio = row["ratio"]
    note = row.get("note", "")
    for kind, over in row.get("ours_over_bare", {}).items():
        of = " of i <= j" if kind == "half" else ""
        note += f"; ours / bare{of} {over['median']:.2f} ({over['min']:.2f}..{over['max']:.2f})"
    if row["status"] == "failed":
        note = f"failed: {note}"
    return (
        *start,
        str(row["pairs"]),
        number(row["seconds_per_pair"] * 1e6),
        number(ratio["median"]),
        f"({number(ratio['min'])}..{number(ratio['max'])})",
        *_error_cells(row.get("value_error")),
        *_error_cells(row.get("gradient_error")),
        f"{memory['peak_bytes'] / MIB:.1f}" if "peak_bytes" in memory else "-",
        note,
    )


def _error_cells(error: dict[str, float] | None) -> tuple[str, str]:
    return ("-", "-") if error is None else (f"{error['max']:.0e}", f"({error['relative']:.0e})")


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.3g}" if value < 0.1 else f"{value:,.{digits}f}"


def report(result: dict[str, Any]) -> str:
    """The whole result as text."""
    parts = [", ".join(f"{name} {version}" for name, version in result["versions"].items())]
    parts.append(
        f"D {D}, gamma {GAMMA}, unrelated unit vectors, float32 inputs. 'x ours' is a time over ours: above 1 is "
        "slower than ours.\nErrors are against the float64 log domain on the same inputs: largest difference, and over "
        "the largest number.\nMiB is the growth of the resident memory at its peak, results included, one thread; in "
        "scoring, which works in tiles, slow ones do fewer pairs."
    )
    memory = {(row["work"], row["T"], row["name"]): row for row in result["memory"]}
    for work, title in WORKS.items():
        for threads in result["threads"]:
            rows = [row for row in result["rows"] if row["work"] == work and row["threads"] == threads]
            if rows:
                parts.append(f"{work}, {threads} thread{'s' * (threads > 1)}: {title}\n\n{table(rows, memory)}")
    parts += [
        f"{crash['process']} process, {crash['threads']} threads: exit {crash['code']}" for crash in result["crash"]
    ]
    if result["gallery"]:
        parts.append(gallery_table(result["gallery"]))
    said = sorted({message for entry in result["log"] for message in entry["messages"]})
    parts.append("What finepseudo logged of itself: " + ("; ".join(said) if said else "nothing"))
    return "\n\n".join(parts)


def gallery_table(rows: list[Row]) -> str:
    """How the memory of scoring goes with the gallery."""
    lines = [f"Memory of scoring against the gallery, N {rows[0]['N']}, T {rows[0]['T']}, MiB", ""]
    lines.append(f"{'G':>6}  {'gallery':>8}  {'result':>8}  {'peak growth':>12}  {'less result':>12}")
    for row in rows[1:]:
        sizes = [row[key] / MIB for key in ("gallery_bytes", "result_bytes", "peak_bytes", "beyond_bytes")]
        lines.append("{:6d}  {:8.1f}  {:8.1f}  {:12.1f}  {:12.1f}".format(row["G"], *sizes))
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Cells per second against T, a panel for each work and thread count."""
    plt = importlib.import_module("matplotlib.pyplot")
    colours = ["#d55e00", "#0072b2", "#56b4e9", "#009e73", "#8fce5a", "#cc79a7", "#e69f00", "#7f7f7f", "#5d3a9b"]
    style = {name: {"color": colour, "marker": "o", "ms": 4} for name, colour in zip(MAKERS, colours, strict=True)}
    style[OURS] |= {"lw": 3, "ms": 6, "zorder": 5}
    style[BARE] = {"color": "black", "ls": "--", "lw": 1.5}
    style[BARE_HALF] = {"color": "black", "ls": ":", "lw": 1.5}
    shown = [work for work in WORKS if any(row["work"] == work for row in result["rows"])]
    height = len(result["threads"])
    figure, axes = plt.subplots(
        height, len(shown), figsize=(4.6 * len(shown), 3.9 * height + 0.9), sharex=True, sharey=True, squeeze=False
    )
    for i, threads in enumerate(result["threads"]):
        for j, work in enumerate(shown):
            rows = [row for row in result["rows"] if row["work"] == work and row["threads"] == threads]
            _panel(axes[i][j], [row for row in rows if "seconds_per_pair" in row], style)
            axes[i][j].set_title(f"{work}, {threads} thread{'s' * (threads > 1)}", fontsize=11)
            axes[i][j].tick_params(labelbottom=True)
        axes[i][0].set_ylabel("cells / s  (pairs x T x T)")
    for axis in axes[-1]:
        axis.set_xlabel("T, frames")
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in style if name in handles]
    figure.tight_layout(rect=(0, 0.7 / figure.get_figheight(), 1, 1))
    figure.legend([handles[name] for name in order], order, loc="lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, rows: list[Row], style: dict[str, dict[str, Any]]) -> None:
    for name in style:
        half = name == BARE_HALF and rows[0]["work"] == "block"
        line = [
            (row["T"], row["T"] ** 2 / row["seconds_per_pair"] / (HALF if half else 1))
            for row in rows
            if row["name"] == (BARE if half else name)
        ]
        if line:
            axis.plot(*zip(*line, strict=True), label=name, **style[name])
    ticks = sorted({row["T"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(ticks, [str(T) for T in ticks])
    axis.yaxis.set_major_formatter(lambda value, _position: f"{value:.0e}".replace("e+0", "e"))
    axis.grid(visible=True, which="major", alpha=0.3)
