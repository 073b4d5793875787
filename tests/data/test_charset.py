"""The charset file: what is accepted, what decoding prints, and every error."""

import io
import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from aocr_torch.data.charset import Charset, CharsetError

LINES = "0\t \n4\t<nul>\n1\ta\n2\t’\n3\t-\n2\t'\n"


@pytest.fixture
def charset(tmp_path):
    path = tmp_path / "charset.txt"
    path.write_bytes(LINES.encode())
    return Charset.from_file(path)


def test_reads_ids_in_any_order_and_keeps_the_space(charset):
    assert charset.size == 5
    assert charset.null_id == 4
    assert charset.characters == (" ", "a", "'", "-", "<nul>")


def test_characters_that_share_an_id_all_encode_and_the_last_line_is_printed(charset):
    assert charset.encode("a’ '", 4) == [1, 2, 0, 2]
    assert charset.decode([1, 2, 0, 2]) == "a' '"


def test_encoding_pads_with_null_and_decoding_drops_it_wherever_it_stands(charset):
    assert charset.encode("a-", 4) == [1, 3, 4, 4]
    assert charset.encode("", 2) == [4, 4]
    assert charset.decode([4, 1, 4, 3, 4]) == "a-"
    assert charset.decode_padded(torch.tensor([1, 4, 3, 4])) == "a░-░"


def test_is_immutable(charset):
    with pytest.raises(FrozenInstanceError):
        charset.lines = ()


def test_survives_file_dictionary_and_checkpoint(charset, tmp_path):
    charset.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_bytes() == LINES.encode()
    buffer = io.BytesIO()
    torch.save(charset.to_dict(), buffer)
    buffer.seek(0)
    assert Charset.from_dict(torch.load(buffer, weights_only=True)) == charset
    assert Charset.from_dict(json.loads(json.dumps(charset.to_dict()))) == charset


def test_from_characters_appends_the_null():
    charset = Charset.from_characters([" ", "x"])
    assert charset.characters == (" ", "x", "<nul>")
    assert charset.null_id == 2


def test_accepts_byte_order_mark_and_windows_line_ends(charset, tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n").encode())
    assert Charset.from_file(path) == charset


def test_line_separators_of_unicode_are_characters(tmp_path):
    path = tmp_path / "separators.txt"
    path.write_bytes("0\t\u2028\n1\t\x85\n2\t\t\n3\t<nul>".encode())
    assert Charset.from_file(path).characters == ("\u2028", "\x85", "\t", "<nul>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\t\n1\t<nul>\n", "line 1 has id 0 and no character: .* an editor stripped the blank"),
        ("0\n1\t<nul>\n", "line 1 has id 0 and no character: .* an editor stripped the blank"),
        ("0\ta\n2\t<nul>\n", "id 1 has no line, but id 2 has"),
        ("1\ta\n2\t<nul>\n", "id 0 has no line, but id 2 has"),
        ("0\ta\n1\ta\n2\t<nul>\n", r"'a' \(U\+0061 LATIN SMALL LETTER A\) stands twice, as id 0 and as id 1"),
        ("0\ta\n1\t<nul>\n2\t<nul>\n", "<nul> stands twice, as id 1 and as id 2"),
        ("0\ta\n", "there is no <nul> among 1 lines"),
        ("0\ta\n1\t<nul>\n1\tb\n", "id 1 is <nul> and a character as well"),
        ("0\te\u0301\n1\t<nul>\n", r"id 0 stands for .* \(U\+0065 U\+0301\), expected one character"),
        ("0 a\n1\t<nul>\n", "line 1 is '0 a', expected an id, a tab and one character"),
        ("0\ta\n\n1\t<nul>\n", "line 2 is ''"),
        ("x\ta\n1\t<nul>\n", "line 1 is 'x"),
    ],
)
def test_errors_of_a_file_name_it_and_the_fault(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content.encode())
    with pytest.raises(CharsetError, match=f"bad.txt: {message}"):
        Charset.from_file(path)


def test_a_file_in_another_encoding(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("0\té\n1\t<nul>\n".encode("latin-1"))
    with pytest.raises(CharsetError, match=r"latin.txt: is not UTF-8 .* at byte 2"):
        Charset.from_file(path)


@pytest.mark.parametrize("plain", [{}, {"lines": 3}, {"lines": [["x", "a"]]}, {"lines": [[0]]}])
def test_a_dictionary_of_something_else(plain):
    with pytest.raises(CharsetError, match="not a charset's dictionary"):
        Charset.from_dict(plain)


def test_a_dictionary_that_contradicts_itself():
    with pytest.raises(CharsetError, match="there is no <nul>"):
        Charset.from_dict({"lines": [[0, "a"]]})


def test_errors_of_texts_and_ids(charset):
    with pytest.raises(CharsetError, match=r"'aé' has 'é' \(U\+00E9 LATIN SMALL LETTER E WITH ACUTE\)"):
        charset.encode("aé", 4)
    with pytest.raises(CharsetError, match="'aaa' has 3 characters, expected at most 2"):
        charset.encode("aaa", 2)
    for unknown in (5, -1):
        with pytest.raises(CharsetError, match=f"id {unknown} is unknown: the charset has the ids 0 to 4"):
            charset.decode([1, unknown])


def test_the_real_charset_prints_what_the_reference_prints(reference):
    charset = Charset.from_file(reference / "fsns" / "charset_size=134.txt")
    golden = json.loads((reference / "golden" / "fsns_records.json").read_text(encoding="utf-8"))
    assert charset.size == 134
    assert charset.null_id == 133
    assert charset.decode_padded(range(134)) == "".join(golden["charset"][str(i)] for i in range(134))
    for record in golden["records"]:
        label = record["features"]["image/class"]["value"]
        text = record["features"]["image/text"]["value"][0]
        assert charset.decode(label) == record["reference_decode"]["text_from_label"]
        assert charset.encode(text, 37) == label


def test_a_space_in_the_last_line_of_the_file_stays(tmp_path):
    (tmp_path / "charset.txt").write_text("0\ta\n1\t<nul>\n2\t \n")
    assert Charset.from_file(tmp_path / "charset.txt").characters == ("a", "<nul>", " ")


def test_a_character_that_ends_a_line_is_refused():
    for character in "\r\n":
        with pytest.raises(CharsetError, match="expected one character"):
            Charset.from_characters(["a", character])


@pytest.mark.parametrize("identifier", ["\u00b2", "\u0662"])  # a superscript and an Arabic two: digits to str.isdigit
def test_an_id_in_other_digits_is_refused(tmp_path, identifier):
    (tmp_path / "charset.txt").write_text(f"0\ta\n1\t<nul>\n{identifier}\tb\n", encoding="utf-8")
    with pytest.raises(CharsetError, match="line 3 is"):
        Charset.from_file(tmp_path / "charset.txt")


def test_characters_that_share_an_id_in_fsns():
    groups = {}
    for identifier, character in Charset.fsns().lines:
        groups.setdefault(identifier, set()).add(character)
    assert {i: "".join(sorted(each)) for i, each in groups.items() if len(each) > 1} == {
        2: "'\u2018\u2019",
        17: "-\u2014",
        51: '"\u201c\u201d',
    }
