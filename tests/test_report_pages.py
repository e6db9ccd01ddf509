"""Marked sections and Markdown tables."""

import pytest

from resnet_cifar.errors import UserError
from resnet_cifar.report.pages import enumerate_words, fill, markdown_table, wrap

PAGE = """# Title
<!-- one: begin -->
old
<!-- one: end -->
between
<!-- two: begin -->
<!-- two: end -->
end
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_sections_are_replaced_and_the_rest_stays(page):
    text = fill(page, {"one": ["new", "lines"], "two": [], "absent": ["x"]})
    assert text == PAGE.replace("old\n", "new\nlines\n")
    assert page.read_text() == PAGE


def test_filling_twice_changes_nothing(page):
    text = fill(page, {"one": ["new"]})
    page.write_text(text)
    assert fill(page, {"one": ["new"]}) == text


@pytest.mark.parametrize("marker", ["<!-- one: begin -->\n", "<!-- one: end -->\n"])
def test_a_missing_marker_is_named_with_its_page(page, marker):
    page.write_text(PAGE.replace(marker, ""))
    with pytest.raises(UserError, match=r"page.md needs the line .*one: begin.*one: end"):
        fill(page, {"one": []})


def test_markers_out_of_order_are_refused(page):
    page.write_text("<!-- one: end -->\n<!-- one: begin -->\n")
    with pytest.raises(UserError, match="needs the line"):
        fill(page, {"one": []})


def test_a_table_has_a_rule_below_its_heading():
    assert markdown_table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def test_paragraphs_are_wrapped_at_100_between_words():
    text = " ".join(["word"] * 50) + " [a link](" + "x" * 120 + ")"
    lines = wrap(text)
    assert " ".join(lines) == text and all(len(line) <= 100 for line in lines[:-1])


@pytest.mark.parametrize(("words", "text"), [("a", "a"), ("ab", "a and b"), ("abc", "a, b and c")])
def test_words_are_enumerated(words, text):
    assert enumerate_words(words) == text
