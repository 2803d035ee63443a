"""A page is one well-formed file without references, with all texts escaped."""

import base64

import pytest

from calorefine.errors import ConfigError, FileError
from calorefine.pages.page import Picture, Section, Table, write_page
from calorefine.text import number, with_error

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="2" height="2"><rect width="1" height="1"/></svg>'
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=")
NASTY = "<b>&\"'</b><script>alert(1)</script>{{ 1 + 1 }}"


def sections(word):
    table = Table(word, ("a", word), [("1", word), (word, "2")], marked=[1])
    pictures = [Picture(SVG, word, word), Picture(PNG, word, word)]
    return [Section(word, [word], [word], [table], pictures), Section("empty")]


def test_page_is_self_contained_and_well_formed(tmp_path, self_contained):
    path = tmp_path / "page.html"
    write_page(path, "Title", sections=sections("word"), lead="lead")
    outline = self_contained(path.read_text(encoding="utf-8"))
    for tag in ("header", "main", "nav", "section", "table", "caption", "thead", "figure", "figcaption"):
        assert tag in outline.tags
    assert outline.tags.count("section") == 2
    assert 'name="viewport"' in path.read_text(encoding="utf-8")
    svg, png = (text for text in outline.references if text.startswith("data:"))
    assert base64.b64decode(svg.removeprefix("data:image/svg+xml;base64,")) == SVG
    assert base64.b64decode(png.removeprefix("data:image/png;base64,")) == PNG


def test_all_texts_are_escaped(tmp_path, self_contained):
    path = tmp_path / "page.html"
    write_page(path, NASTY, sections=sections(NASTY), lead=NASTY)
    outline = self_contained(path.read_text(encoding="utf-8"))
    assert "b" not in outline.tags
    # title, heading, lead, contents, section, warning, paragraph, caption, column, 2 cells, 2 captions of pictures
    assert sum(text == NASTY for text in outline.texts) == 13


def test_existing_page_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(ConfigError, match=r"page\.html: exists already"):
        write_page(path, "Title", sections=[])
    assert path.read_text() == "old"
    write_page(path, "Title", sections=[], overwrite=True)
    assert "Title" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileError, match="there is no folder"):
        write_page(tmp_path / "none" / "page.html", "Title", sections=[])


def test_rows_have_as_many_cells_as_the_header():
    with pytest.raises(ConfigError, match="table 'numbers', row 1: 1 cells found, expected 2"):
        Table("numbers", ("a", "b"), [("1", "2"), ("3",)])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (-0.0, "0"),
        (12, "12"),
        (2**60, "1152921504606846976"),
        (0.99996, "1.000"),
        (9999.6, "10000"),
        (1234567.0, "1235000"),
        (1e7, "1e+07"),
        (-0.00012345678, "-0.0001235"),
        (1.2e-7, "1.2e-07"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.0123, "1.235 +- 0.012"),
        (1.23456, 0.00996, "1.235 +- 0.010"),
        (-0.0004, 0.023, "0.000 +- 0.023"),
        (441_300.2, 780.4, "441300 +- 780"),
        (3.2e9, 1.5e7, "3.200e+09 +- 1.5e+07"),
        (5.0, None, "5.000"),
        (None, None, "-"),
        (0.0, 0.0, "0 +- 0"),
    ],
)
def test_errors_have_two_significant_digits(value, error, text):
    assert with_error(value, error, "+-") == text
