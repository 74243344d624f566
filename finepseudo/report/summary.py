"""The last lines of a run's log: what was learned, each figure with its standard error."""

from __future__ import annotations

import json
import textwrap

from finepseudo.report.figures import (
    gain_sentences,
    label_sentence,
    method_rows,
    open_world_rows,
    order_sentence,
    pair_rows,
    round_row,
)
from finepseudo.report.times import KINDS, passes, seconds_of, trainings
from finepseudo.results import Results

ROUNDS_PRINTED = 4  # more rounds than this are on the page only; the lines give the last one of each method


def summary(results: Results) -> str:
    """What was learned, each figure with its standard error, in some 25 lines of at most 100 columns."""
    parts = (_pair_lines(results), _round_lines(results), _method_lines(results), _time_lines(results))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _pair_lines(results: Results) -> list[str]:
    order = order_sentence(results)
    if not (rows := pair_rows(results)):
        return [order]
    count = results.pairs.pairs
    lines = [f"Are two held-out clips the same action? average precision over {count} pairs, chance .5"]
    lines += [f"  {row['name']:<34}{row['text']}" for row in rows]
    return lines + textwrap.wrap(order, 98, initial_indent="  ", subsequent_indent="    ")


def _round_lines(results: Results) -> list[str]:
    rounds = results.all_rounds()
    if len(rounds) > ROUNDS_PRINTED:
        rounds = [every[-1] for every in results.rounds.values() if every]
    lines = [f"{'Precision of pseudo-labels':<63}{'p_E':<13}{'p_A':<13}p"] if rounds else []
    for row in map(round_row, rounds):
        for name, kind, share, figures in (
            (row["name"], f"all {row['unlabelled']}", f"agreement {row['agreement']}", row["all"]),
            ("", f"accepted {row['accepted']}", f"coverage  {row['coverage']}", row["kept"]),
        ):
            lines.append(f"  {name:<23}{kind:<14} {share:<23}" + "".join(f"{text:<13}" for text in figures).rstrip())
    for row in open_world_rows(rounds):
        score = f"AUROC of known-ness {row['AUROC, known-ness']}"
        lines.append(f"  {row['']:<23}novel {row['novel']}; {score}; contamination {row['contamination']}")
    if not all(one.quality.known for one in rounds):
        for sentence in label_sentence(results):
            lines += textwrap.wrap(sentence, 98, initial_indent="  ", subsequent_indent="    ")
    return [*lines, "  (earlier rounds are on the page)"] if len(rounds) < len(results.all_rounds()) else lines


def _method_lines(results: Results) -> list[str]:
    rows = method_rows(results)
    if not rows:
        return []
    count = next(iter(results.measured.values())).f_E.videos
    gains = any(row[key] != "-" for row in rows for key in ("gain_f_E", "gain_fused"))
    keys = ("f_E", "fused", "top5", "mean_class", *(("gain_f_E", "gain_fused") if gains else ()))
    titles = ("f_E", "fused", "f_E top-5", "f_E by class", "f_E", "fused")
    head = f"Top-1 on {count} test videos (± is over these), with {results.split.labelled} labelled clips"
    lines = [f"{head:<70} finepseudo gains" if gains else head]
    lines.append(f"  {'':<15}" + "".join(f"{title:<14}" for title in titles[: len(keys)]))
    lines += [f"  {row['name']:<15}" + "".join(f"{row[key]:<14}" for key in keys) for row in rows]
    return [line.rstrip() for line in lines] + [f"  {sentence}" for sentence in gain_sentences(results)]


def _time_lines(results: Results) -> list[str]:
    lines, every = list[str](), list(trainings(results).values())
    # The first labels of several methods come from one pass, which each of them reports.
    pool = {json.dumps(seconds): seconds for seconds in passes(results).values()}
    if every:
        sums = {kind: sum(seconds.get(kind, 0.0) for seconds in every) for kind in (*KINDS, "decode")}
        whole = seconds_of(sums) or 1.0
        shares = [f"{title} {sums[kind]:.0f} s ({sums[kind] / whole:.0%})" for kind, title in KINDS.items()]
        lines += [
            "Where the time of the trainings went (two run at a time: this adds up to more than the clock)",
            f"  {', '.join(shares[:4])},",
            f"  {', '.join(shares[4:])}; decoding, in other processes: {sums['decode']:.0f} s",
        ]
    if pool:
        sums = {
            kind: sum(seconds.get(kind, 0.0) for seconds in pool.values()) for kind in ("start", "decode", "predict")
        }
        said = f"start {sums['start']:.0f} s, decoding {sums['decode']:.0f} s, arithmetic {sums['predict']:.0f} s"
        lines.append(f"  the pool's {len(pool)} passes over videos: {said}")
    return lines
