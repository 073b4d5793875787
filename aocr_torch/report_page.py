"""The report of an evaluation: one HTML page with its measures, what it confuses, its mistakes and all its records."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Callable, Optional
from urllib.parse import urlencode

from aocr_torch import files
from aocr_torch.config import ConfigError
from aocr_torch.report_style import SCRIPT, STYLE
from aocr_torch.training import metrics
from aocr_torch.training import statistics as stats
from aocr_torch.training.evaluate import Evaluation
from aocr_torch.training.outcomes import Outcome

TITLE = "Attention-OCR evaluation"
MAX_CONFUSIONS = 60
MAX_NOTES = 100
THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Report:
    """What the page shows."""

    facts: dict[str, str]
    """What was evaluated, with what, when."""
    warning: Optional[str]
    """What to know before believing any of it."""
    evaluation: Evaluation
    outcomes: list[Outcome]
    """One for each record evaluated."""
    name_of: Callable[[int], str]
    """The name of a record by its index."""
    cards: list[str]
    """Mistakes to look at, HTML of `report_mistakes.card`."""
    configuration: list[str]
    """The flags, a line for each section."""


def page(report: Report) -> str:
    """The page, which fetches nothing from elsewhere; every text in it is escaped."""
    outcomes = report.outcomes
    counted = stats.confusions(pair for o in outcomes if not o.is_right for pair in stats.align(o.label, o.text))
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts.items()
    )
    body = [
        f'<header><h1>{TITLE}</h1><dl class="facts">{facts}</dl>{_notes(report)}</header>',
        _measures(report.evaluation, outcomes),
        f'<div class="groups">{_by_length(outcomes)}{_thresholds(outcomes)}',
        _calibration(
            "Confidence, as predict.py prints it",
            "The geometric mean of the probabilities of a text's characters and of its end.",
            [o.confidence for o in outcomes],
            outcomes,
            has_links=True,
        ),
        _calibration(
            "Probability of the whole text",
            "The product of the same probabilities: a calibrated model's share of right texts.",
            [o.probability for o in outcomes],
            outcomes,
        )
        + "</div>",
        _confusions(counted, Counter(character for o in outcomes for character in o.label)),
        _records(report, counted),
        f"<details><summary>Configuration</summary><p>{'<br>'.join(map(escape, report.configuration))}</p></details>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def require_writable(path: Path) -> None:
    """Raises ConfigError where a page could not be written there, before hours are spent on what it would say."""
    try:
        files.require_writable(path)
    except OSError as error:
        raise ConfigError(
            f"report {path} cannot be written ({error.strerror}): name a file in a folder where you may write"
        ) from None


def write(path: Path, report: Report) -> None:
    """Writes the page; whoever opens it meanwhile sees the whole old or the whole new one."""
    with files.replacing(path) as file:
        file.write(page(report).encode("utf-8", "backslashreplace"))  # a file's name may be no text


def _percent(share: float, digits: int = 2) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def _interval(interval: Optional[tuple[float, float]]) -> str:
    return "–" if interval is None else f"{100 * interval[0]:.2f} – {100 * interval[1]:.2f} %"


def _table(head: list[str], rows: Iterable[list[str]], kind: str = "") -> str:
    """A table of cells that are HTML already."""
    heads = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _link(text: str, **filters: object) -> str:
    """A link that makes the page show the records of these filters."""
    return f'<a href="#{escape(urlencode(filters))}">{escape(text)}</a>'


def _notes(report: Report) -> str:
    notes = [*filter(None, [report.warning]), *(f"skipped: {message}" for message in report.evaluation.skipped)]
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes[:MAX_NOTES])
    if len(notes) > MAX_NOTES:
        items += f"<li>and {len(notes) - MAX_NOTES:,} more</li>"
    return f'<details class="notes" open><summary>{len(notes)} to note</summary><ul>{items}</ul></details>'


def _measures(evaluation: Evaluation, outcomes: list[Outcome]) -> str:
    right, count = sum(o.is_right for o in outcomes), len(outcomes)
    strict = stats.wilson_interval(right, count)
    rows = (
        [
            f"<b>{name}</b><small>{meaning}</small>",
            _percent(evaluation.results[name]),
            _interval(interval),
            "Wilson" if "Sequence" in name else "normal",
            counts,
        ]
        for name, interval, counts, meaning in _measure_rows(outcomes)
    )
    return (
        '<section><p class="headline"><strong>'
        + _percent(evaluation.results[metrics.STRICT_SEQUENCE_ACCURACY])
        + f"</strong> of the texts are read without an error: {right:,} of {count:,}, "
        f"95 % interval {_interval(strict)}</p>"
        + (_bar(right / count, *strict) if strict else "")
        + f"<p>{evaluation.evaluated:,} of {evaluation.records:,} records, {len(evaluation.skipped):,} skipped.</p>"
        "<h2>Measures</h2>"
        + _table(["measure", "value", "95 % interval", "", "counted"], rows, "measures")
        + "<p><small>Wilson: score interval of a proportion. Normal: of a mean, or of a ratio of sums over the "
        "records, from its linearised variance; none where all records are alike.</small></p></section>"
    )


def _measure_rows(outcomes: list[Outcome]) -> list[tuple[str, Optional[tuple[float, float]], str, str]]:
    """(name, interval, what was counted, meaning) of each measure."""
    count = len(outcomes)
    right, forgiving = sum(o.is_right for o in outcomes), sum(o.is_sequence_right for o in outcomes)
    shares = [o.character_accuracy for o in outcomes if o.label]
    distances, lengths = [o.distance for o in outcomes], [len(o.label) for o in outcomes]
    similar = [1 - o.normalized_distance for o in outcomes]
    return [
        (
            metrics.STRICT_SEQUENCE_ACCURACY,
            stats.wilson_interval(right, count),
            f"{right:,} of {count:,} texts",
            "text equals label",
        ),
        (
            metrics.SEQUENCE_ACCURACY,
            stats.wilson_interval(forgiving, count),
            f"{forgiving:,} of {count:,} texts",
            "the reference's: what is read after the label's end is forgiven",
        ),
        (
            metrics.CHARACTER_ACCURACY,
            _within_one(stats.ratio_interval(shares, [1] * len(shares))),
            f"mean over {len(shares):,} texts",
            "the reference's: share of each label's characters at their place",
        ),
        (
            metrics.CHARACTER_ERROR_RATE,
            stats.ratio_interval(distances, lengths),
            f"{sum(distances):,} edits, {sum(lengths):,} characters",
            "edits over characters of the labels; lower is better",
        ),
        (
            metrics.NORMALIZED_EDIT_DISTANCE,
            _within_one(stats.ratio_interval(similar, [1] * count)),
            f"mean over {count:,} texts",
            "1 - edits over the longer of text and label",
        ),
    ]


def _within_one(interval: Optional[tuple[float, float]]) -> Optional[tuple[float, float]]:
    return interval and (interval[0], min(interval[1], 1.0))


def _bar(share: float, low: float, high: float, mark: Optional[float] = None) -> str:
    """A bar from 0 to 1, the interval as a line over it, and perhaps a mark."""
    marked = "" if mark is None or math.isnan(mark) else f'<i style="left:{100 * mark:.1f}%"></i>'
    return (
        f'<div class="bar"><b style="width:{100 * share:.1f}%"></b>'
        f'<u style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></u>{marked}</div>'
    )


def _group_cells(group: stats.Group, mark: Optional[float] = None) -> list[str]:
    """Accuracy of a group as cells: number, counts, bar."""
    interval = stats.wilson_interval(group.right, group.count)
    if interval is None:
        return ["–", "0", ""]
    title = f'title="95 % interval {_interval(interval)} (Wilson)"'
    counts = f"{group.right:,}&thinsp;/&thinsp;{group.count:,}"
    return [f"<span {title}>{_percent(group.accuracy, 1)}</span>", counts, _bar(group.accuracy, *interval, mark)]


def _by_length(outcomes: list[Outcome]) -> str:
    groups = stats.by_value([len(o.label) for o in outcomes], [o.is_right for o in outcomes])
    rows = ([_link(f"{group.low}", length=group.low), *_group_cells(group)] for group in groups)
    return (
        "<section><h2>By length of the label</h2><p>Texts right, with Wilson intervals.</p>"
        + _table(["characters", "right", "texts", ""], rows)
        + "</section>"
    )


def _thresholds(outcomes: list[Outcome]) -> str:
    rows = []
    for threshold in THRESHOLDS:
        kept = [o.is_right for o in outcomes if o.confidence >= threshold]
        share = len(kept) / len(outcomes) if outcomes else float("nan")
        group = stats.Group(threshold, 1.0, len(kept), sum(kept))
        rows.append([_link(f"≥ {threshold:g}", low=threshold), _percent(share, 1), *_group_cells(group)])
    return (
        "<section><h2>If unsure texts were refused</h2>"
        "<p>What is left when only texts of at least this confidence are accepted.</p>"
        + _table(["confidence", "accepted", "right", "texts", ""], rows)
        + "</section>"
    )


def _calibration(title: str, what: str, values: list[float], outcomes: list[Outcome], has_links: bool = False) -> str:
    bins = stats.reliability(values, [o.is_right for o in outcomes])
    rows = []
    for each in bins:
        name = f"{each.low:.1f} – {each.high:.1f}"
        shown = _link(name, low=each.low, high=each.high) if has_links and each.count else name
        rows.append([shown, _percent(each.mean, 1), *_group_cells(each, each.mean)])
    error = stats.expected_calibration_error(bins)
    return (
        f"<section><h2>{escape(title)}</h2><p>{escape(what)} Expected calibration error (ECE, 10 bins): "
        f"<b>{'–' if math.isnan(error) else f'{error:.4f}'}</b>. The mark is the mean: a calibrated bar ends there.</p>"
        + _table(["between", "mean", "right", "texts", ""], rows)
        + "</section>"
    )


def _character(character: str, absent: str) -> str:
    if not character:
        return f"<em>{absent}</em>"
    shown = "␣" if character == " " else character
    return f'<bdi class="glyph" title="U+{ord(character):04X}">{escape(shown)}</bdi>'


def _confusions(counted: list[tuple[tuple[str, str], int]], occurrences: Counter) -> str:
    items = []
    for number, ((expected, found), count) in enumerate(counted[:MAX_CONFUSIONS]):
        total = occurrences[expected] if expected else 0
        share = f"{100 * count / total:.1f} % of {total:,}" if total else ""
        items.append(
            f'<li><a href="#confusion={number}">{_character(expected, "nothing")} → {_character(found, "missed")}'
            f"</a> <b>{count:,} ×</b> <small>{share}</small></li>"
        )
    shown = f"The {len(items)} most frequent of {len(counted):,}" if len(counted) > len(items) else "All"
    total = sum(count for _, count in counted)
    return (
        f"<section><h2>Confusions of characters</h2><p>{shown}, {total:,} times in all, from a shortest alignment of "
        "each text with its label. The share is of all occurrences of the character in the labels.</p>"
        f'<ol class="confusions">{"".join(items)}</ol></section>'
    )


def _records(report: Report, counted: list[tuple[tuple[str, str], int]]) -> str:
    """The filter, the cards of the mistakes and the table of all records, which the script fills."""
    numbers = {pair: number for number, (pair, _) in enumerate(counted[:MAX_CONFUSIONS])}
    rows = [_row(report.name_of(outcome.index), outcome, numbers) for outcome in report.outcomes]
    # As JSON in a script element: no browser reads it as HTML once "<" is written otherwise.
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    wrong = sum(not o.is_right for o in report.outcomes)
    return (
        f'<section id="records"><h2>Records</h2>{_FORM}'
        f"<h3>Mistakes to look at</h3><p>{len(report.cards)} of {wrong:,} mistakes: the most confident ones, and those "
        "farthest from their label. Red is where the model looked: for all characters, or for the one you press.</p>"
        f'<div class="cards">{"".join(report.cards)}</div>'
        '<h3>All records</h3><div class="scroll"><table class="records"><thead><tr><th>record</th><th>label</th>'
        '<th>read as</th><th>confidence</th><th>edits</th></tr></thead><tbody id="rows"></tbody></table></div>'
        '<button id="more" type="button" hidden>more</button>'
        f'<noscript>The list of all records needs JavaScript.</noscript></section>\n<script id="data" '
        f'type="application/json">{data}</script>'
    )


_FORM = (
    '<form id="filter"><input name="search" type="search" placeholder="search label, text, record" '
    'aria-label="search" autocomplete="off"><select name="show" aria-label="show"><option value="">right and wrong'
    '</option><option value="wrong">mistakes</option><option value="right">right</option></select>'
    '<select name="sort" aria-label="order"><option value="">in order</option><option value="sure">surest first'
    '</option><option value="unsure">least sure first</option><option value="worst">most edits first</option></select>'
    '<span id="more_filters"></span><output id="count"></output></form>'
)


def _row(name: str, outcome: Outcome, numbers: dict[tuple[str, str], int]) -> list:
    """A record for the script: name, label, text, confidence, edits, and the numbers of its confusions."""
    pairs = [] if outcome.is_right else stats.align(outcome.label, outcome.text)
    found = sorted({numbers[pair] for pair in pairs if pair in numbers})
    return [name, outcome.label, outcome.text, outcome.confidence, outcome.distance, found]
