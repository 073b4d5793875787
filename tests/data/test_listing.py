"""Lists and folders of labelled pictures: the good entries, and one line for each that is not."""

import json
import os

import pytest

from aocr_torch.data.listing import ListingError, read_listing


def read(tmp_path, name: str, content) -> tuple[list[tuple[str, str]], list[str]]:
    """((key, text) of the entries, problems) of a list with this content."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    listing = read_listing(tmp_path / name)
    assert all(entry.path == tmp_path / entry.key for entry in listing.entries)
    assert not any("\n" in problem for problem in listing.problems)
    return [(entry.key, entry.text) for entry in listing.entries], listing.problems


TWO = [("a.png", "Rue de l'Été"), ("in/b c.jpg", "Quai, 3")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.tsv", "a.png\tRue de l'Été\nin/b c.jpg\tQuai, 3\n"),
        ("l.tsv", "\ufeffa.png\tRue de l'Été\r\n\r\nin/b c.jpg\tQuai, 3 \r\n"),
        ("l.TXT", "a.png\tRue de l'E\u0301te\u0301\nin/b c.jpg\t Quai, 3"),
        ("l.tsv", "label\tweather\tFile\nRue de l'Été\train\ta.png\nQuai, 3\tsun\tin/b c.jpg\n"),
        ("l.csv", 'path,text\na.png,Rue de l\'Été\nin/b c.jpg,"Quai, 3"\n'),
        ("l.csv", "a.png;Rue de l'Été\nin/b c.jpg;Quai, 3\n"),
        (
            "l.jsonl",
            '{"path": "a.png", "text": "Rue de l\'Été"}\n{"label": "Quai, 3", "image": "in/b c.jpg", "x": 1}\n',
        ),
        ("l.tsv", "a.png\tRue de l'Été\nin/b c.jpg\tQuai, 3\n".encode("utf-16")),
    ],
)
def test_every_format(name, content, tmp_path):
    assert read(tmp_path, name, content) == (TWO, [])


@pytest.mark.parametrize(
    ("name", "bad", "problem"),
    [
        ("l.tsv", "no tab here", r"l.tsv:2: found 1 column(s) between '\t', expected a path and a text"),
        ("l.tsv", "b.png\tone\ttwo", "l.tsv:2: found 3 column(s)"),
        ("l.tsv", "b.png\t", "l.tsv:2: the label of b.png is empty"),
        ("l.tsv", "b.png\t \u3000 ", "l.tsv:2: the label of b.png is empty"),
        ("l.tsv", "\ttext", "l.tsv:2: the path is empty"),
        ("l.tsv", "a.png\tother", "l.tsv:2: a.png is already listed at l.tsv:1"),
        ("l.tsv", "./a.png\tfirst", "l.tsv:2: ./a.png is already listed at l.tsv:1"),
        ("l.tsv", "b.png\tCaf\ufffd", "l.tsv:2: the label of b.png was damaged by a conversion: it holds U+FFFD"),
        ("l.tsv", "b.png\tRue\u200bX", "holds U+200B, which cannot be seen"),
        ("l.tsv", "in/../a.png\tRue", "in/../a.png is already listed at l.tsv:1"),
        ("l.jsonl", '{"path": "b.png", "text": 75}', "found the keys 'path' (str), 'text' (int)"),
        ("l.tsv", "b.png\tone\x07two", "l.tsv:2: the label of b.png holds U+0007, which cannot be seen"),
        ("l.tsv", b"b.png\tcaf\xe9", "l.tsv:2: the label of b.png is not UTF-8"),
        ("l.csv", 'b.png,"never closed', "l.csv:2: a quoted field is not closed"),
        ("l.csv", "b.png,one,two", "l.csv:2: found 3 column(s) between ','"),
        ("l.jsonl", "{'path': 1}", "l.jsonl:2: is not JSON"),
        ("l.jsonl", "[" * 100_000, "l.jsonl:2: is not JSON"),
        ("l.jsonl", "[1]", "l.jsonl:2: found a JSON list, expected an object"),
        ("l.jsonl", '{"path": "b.png", "text": 5}', "l.jsonl:2: expected the strings path and text, found the keys"),
        ("l.jsonl", '{"words": "b"}', "found the keys 'words'"),
        ("l.jsonl", '{"path": "", "text": "b"}', "l.jsonl:2: the path is empty"),
        ("l.jsonl", '{"path": "b.png", "text": "a\\nb"}', "holds U+000A, which cannot be seen"),
    ],
)
def test_a_bad_line_costs_that_line(name, bad, problem, tmp_path):
    good = {
        "l.tsv": "{}.png\t{}",
        "l.csv": "{}.png,{}",
        "l.jsonl": '{{"path": "{}.png", "text": "{}"}}',
    }[name]
    bad = bad if isinstance(bad, bytes) else bad.encode("utf-8")
    content = b"\n".join([good.format("a", "first").encode(), bad, good.format("z", "last").encode()])
    entries, problems = read(tmp_path, name, content)
    assert entries == [("a.png", "first"), ("z.png", "last")]
    assert len(problems) == 1
    assert problem in problems[0]


def test_a_path_may_be_anything_the_system_takes(tmp_path):
    entries, problems = read(tmp_path, "l.tsv", b"caf\xe9.png\ttext\n")
    assert (os.fsencode(entries[0][0]), problems) == (b"caf\xe9.png", [])


def test_a_whole_list_that_cannot_be_used(tmp_path):
    for name in ("l.xlsx", "l.tsv"):
        (tmp_path / name).write_text("\n \n")
    with pytest.raises(ListingError, match="no such file or folder"):
        read_listing(tmp_path / "absent.tsv")
    with pytest.raises(ListingError, match=r"expected a folder or a list that ends in \.tsv"):
        read_listing(tmp_path / "l.xlsx")
    with pytest.raises(ListingError, match="is empty"):
        read_listing(tmp_path / "l.tsv")


def test_a_folder_with_labels_beside_the_pictures(tmp_path):
    def put(name: str, text=None):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"" if text is None else text.encode("utf-8"))

    for stem, label in {"b": "\ufeffRue B\r\n", "in/a": "Rue A", "two": "one\ntwo", "empty": "\n"}.items():
        put(f"{stem}.JPG")
        put(f"{stem}.txt", label)
    put("unlabelled.png")
    put("in/lonely.txt", "x")
    listing = read_listing(tmp_path)
    assert [(e.key, e.text, e.origin) for e in listing.entries] == [
        ("b.JPG", "Rue B", "b.txt"),
        ("in/a.JPG", "Rue A", "in/a.txt"),
    ]
    assert listing.problems == [
        "empty.txt: the label of empty.JPG is empty",
        "two.JPG: its label two.txt has 2 lines, expected one",
        "unlabelled.png: has no label: unlabelled.txt beside it: No such file or directory",
        "in/lonely.txt: a label without a picture beside it",
    ]


def test_json_takes_every_escape(tmp_path):
    entries, problems = read(tmp_path, "l.jsonl", json.dumps({"path": "é.png", "text": "\U0001f600 ok"}))
    assert (entries, problems) == ([("é.png", "\U0001f600 ok")], [])


def test_a_utf_16_list_that_is_cut_off_loses_that_label_alone(tmp_path):
    (tmp_path / "l.tsv").write_bytes("a.png\tRue Piso\nb.png\tRue Été".encode("utf-16")[:-1])
    listing = read_listing(tmp_path / "l.tsv")
    assert [entry.text for entry in listing.entries] == ["Rue Piso"]
    assert len(listing.problems) == 1
    assert "is not UTF-8" in listing.problems[0]


def test_labels_in_hidden_folders_are_left_out(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.txt").write_text("x")
    assert read_listing(tmp_path).problems == []
