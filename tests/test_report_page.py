"""The report page: what it states, what it escapes, and how it behaves in a browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import chromium, look, needs_chromium, screenshot
from PIL import Image
from tiny import load_tool

from aocr_torch.config import ConfigError
from aocr_torch.predict import Reading
from aocr_torch.report_mistakes import card
from aocr_torch.report_page import MAX_NOTES, Report, page, require_writable, write
from aocr_torch.training.evaluate import Evaluation
from aocr_torch.training.metrics import Metrics, character_accuracy, sequence_accuracy
from aocr_torch.training.outcomes import Outcome
from aocr_torch.training.statistics import align, confusions

EVIL = "<script>document.title='broken'</script>"
TEXTS = [("Rue", "Rue"), ("Rue", "Pue"), ("été", "ete"), (EVIL, "<b>&"), ("", "x"), ("ab", "")]


def reading(text: str, views: int = 4) -> Reading:
    attention = np.zeros((len(text), views, 4, 4), np.float32)
    attention[:, :, 1, 2] = 1
    pictures = np.full((views, 48, 48, 3), 90, np.uint8)
    return Reading(text, 0.5, -1.0, (0.5,) * len(text), pictures, attention, (8, 9))


def evaluated(texts: list[tuple[str, str]], skipped: tuple = (), cards: bool = True) -> Report:
    """A report of (label, text) pairs, in which the n-th has a confidence of n tenths."""
    measures, outcomes = Metrics(0), []
    for number, (label, text) in enumerate(texts):
        ids = [torch.tensor([[*map(ord, each), *[0] * (60 - len(each))]]) for each in (text, label)]
        measures.update(*ids, [text], [label])
        share, right = character_accuracy(*ids, 0).item(), sequence_accuracy(*ids, 0).item() == 1
        outcomes.append(Outcome(number, label, text, number / 10, (number / 10) ** 2, share, right))
    evaluation = Evaluation(measures.result(), len(texts) + len(skipped), len(texts), list(skipped))
    names = [f"shard-{number}:0" for number in range(len(texts))]
    pictures = [
        card("far off", number, names[number], outcome, reading(outcome.text))
        for number, outcome in enumerate(outcomes)
        if cards and not outcome.is_right
    ]
    facts = {"checkpoint": "model.pth", "step": "150"}
    return Report(facts, None, evaluation, outcomes, names.__getitem__, pictures, ["data: split_name=test"])


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write(path, evaluated(TEXTS))
    return path


def rows(html: str) -> list:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def number_of(expected: str, found: str) -> int:
    """The number of a confusion on the page of TEXTS."""
    counted = confusions(pair for label, text in TEXTS for pair in align(label, text))
    return [pair for pair, _ in counted].index((expected, found))


def test_measures_with_intervals_and_counts():
    html = page(evaluated([("a", "a")] * 15 + [("b", "c")] * 133, skipped=("shard:7 is damaged",)))
    assert "15 of 148" in html
    assert "6.24 – 16.05 %" in html  # as Newcombe 1998 has it
    assert "148 of 149 records, 1 skipped." in html
    assert "skipped: shard:7 is damaged" in html
    assert "133 edits, 148 characters" in html
    assert "model.pth" in html
    assert re.search(r'confusion=0">.*b</bdi> → .*c</bdi></a> <b>133 ×</b> <small>100.0 % of 133<', html)


def test_nothing_is_fetched_and_every_text_is_escaped():
    html = page(evaluated(TEXTS))
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert not re.search(r"url\((?!data:)|@import|https?:", html)
    assert html.count("<script") == 2
    assert EVIL not in html
    assert "&lt;script&gt;document" in html.split("<script")[0]
    assert [row[1] for row in rows(html)] == [label for label, _ in TEXTS]
    assert rows(html)[2] == ["shard-2:0", "été", "ete", 0.2, 2, [number_of("é", "e")]]


@pytest.mark.parametrize("texts", [[], [("a", "a")], [("", "")], [("a", "a")] * 9, [("", ""), ("", "y")], [("a", "")]])
def test_pages_of_little(texts):
    html = page(evaluated(texts))
    assert len(rows(html)) == len(texts)
    assert "nan" not in html.replace("nan_", "").lower().split("<script")[0]


def test_a_list_of_what_was_skipped_ends():
    assert "<li>and 5 more</li>" in page(evaluated([], skipped=("x",) * (MAX_NOTES + 5)))


def test_a_card_without_attention():
    outcome = Outcome(0, "ab", "a", 0.5, 0.5, 0.5, False)
    read = Reading("a", 0.5, -1.0, (0.5,), np.zeros((2, 8, 8, 3), np.uint8), None, (2, 0))
    html = card("confident", 0, "shard:0", outcome, read)
    assert "--heat" not in html
    assert html.count("<img") == 2
    assert '<del title="missed">b</del>' in html


def test_an_unwritable_path_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "report.html", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be written \(.*\): name a file in a folder where you may write"):
            require_writable(path)
    require_writable(tmp_path / "new" / "report.html")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_write_that_fails_leaves_the_old_page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    report = evaluated(TEXTS)
    report.outcomes.append(None)
    with pytest.raises(AttributeError):
        write(path, report)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


STATE = """
const visible = [...document.querySelectorAll("article")].filter(each => !each.hidden);
return {
  count: document.getElementById("count").textContent,
  cards: visible.map(each => each.dataset.row),
  rows: [...document.querySelectorAll("#rows tr")].map(each => each.cells[0].textContent),
  chips: [...document.querySelectorAll("#more_filters a")].map(each => each.textContent),
  search: document.forms[0].elements.search.value,
  title: document.title,
};
"""


@needs_chromium
@pytest.mark.parametrize(
    ("fragment", "found"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("search=rue", [0, 1]),
        ("search=RUE&show=wrong", [1]),
        ("search=%C3%A9t%C3%A9", [2]),
        ("search=%3Cscript%3E", [3]),
        ("search=shard-4", [4]),
        ("search=nowhere", []),
        ("show=right", [0]),
        ("length=0", [4]),
        ("low=0.2&high=0.4", [2, 3]),
        ("sort=sure", [5, 4, 3, 2, 1, 0]),
        ("sort=worst&length=3", [2, 1, 0]),
    ],
)
def test_search_and_filters_by_the_address(written, fragment, found):
    state = look(written, STATE, width=1200, fragment=fragment)
    assert state["rows"] == [f"shard-{number}:0" for number in found]
    assert state["cards"] == [str(number) for number in sorted(found) if number != 0]
    pictures = len(state["cards"])
    assert state["count"] == f"{len(found)} of 6 records, {pictures} with pictures"
    assert state["title"] == "Attention-OCR evaluation"


@needs_chromium
def test_the_address_of_the_file_itself_is_honoured(written):
    dom = chromium(f"{written.as_uri()}#search=pue", "--dump-dom")
    assert "1 of 6 records, 1 with pictures" in dom
    assert "<title>Attention-OCR evaluation</title>" in dom


@needs_chromium
def test_typing_and_links_filter(written):
    typed = look(
        written,
        "const search = document.forms[0].elements.search; search.value = 'été';"
        "search.dispatchEvent(new window.Event('input', {bubbles: true}));" + STATE,
        width=1200,
    )
    assert (typed["rows"], typed["cards"]) == (["shard-2:0"], ["2"])
    chips = look(written, STATE, width=1200, fragment="length=3&confusion=0&search=te")
    assert chips["chips"] == ["length 3 ×", "confusion 0 ×"]
    assert chips["search"] == "te"
    confused = look(written, STATE, width=1200, fragment=f"confusion={number_of('é', 'e')}")
    assert confused["rows"] == ["shard-2:0"]
    addresses = look(written, "return [...document.links].map(each => each.hash)", width=1200)
    assert {"#length=3", "#low=0.5&high=0.6", "#low=0.9", "#confusion=0"} <= set(addresses)


@needs_chromium
def test_pressing_a_character_shows_its_attention(written):
    press = """
    const card = document.querySelector("article"), shown = () => [card.style.getPropertyValue("--number"),
      card.querySelector("output").textContent, card.querySelectorAll("[aria-pressed=true]").length,
      card.classList.contains("plain"), window.getComputedStyle(card.querySelector(".views i")).backgroundPosition];
    const buttons = card.querySelectorAll("button"), states = [];
    for (const each of [buttons[0], buttons[2], buttons[2], card.querySelector(".views")]) {
      each.click();
      states.push(shown());
    }
    return states;
    """
    first, third, again, plain = look(written, press, width=1200)
    assert first[:4] == ["1", "P 0.500, not 'R'", 1, False]
    assert third[:3] == ["3", "e 0.500", 1]
    assert (first[4], third[4]) == ("0% 33.3333%", "0% 100%")
    assert again[:4] == ["0", "", 0, False]
    assert plain[3]


FITS = """
const root = document.documentElement;
const images = [...document.images];
return [root.scrollWidth - root.clientWidth, images.filter(each => each.naturalWidth > 0).length, images.length];
"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_fits_its_width(written, tmp_path, width):
    assert look(written, FITS, width=width) == [0, 20, 20]
    screenshot(written.as_uri(), tmp_path / "page.png", max(width, 500), 2000)
    with Image.open(tmp_path / "page.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
def test_the_contact_sheet_in_a_browser(tiny_dataset, tmp_path, width):
    sheet = tmp_path / "sheet.html"
    arguments = [str(tiny_dataset), "--splits", "test", "--contact_sheet", str(sheet), "--processes", "1"]
    assert load_tool("check_data").main(arguments) == 0
    assert look(sheet, FITS, width=width) == [0, 7, 7]
    columns = "return new Set([...document.querySelectorAll('figure')].map(each => each.offsetLeft)).size"
    assert (look(sheet, columns, width=width) == 1) == (width == 390)
