"""Marked sections of a page, and the tables in them: the renderer of every generated page.

A section is what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
"""

import textwrap
from collections.abc import Iterable
from pathlib import Path

from resnet_cifar.errors import UserError

WIDTH = 100


def fill(page: Path, sections: dict[str, list[str]]) -> str:
    """Return the text of a page with new content in its marked sections.

    Args:
      page: a Markdown file, which is left as it is.
      sections: lines by section name. Those without markers on the page are ignored.

    Raises:
      UserError: one of the two markers of a section is missing, or they are out of order.
    """
    text = page.read_text()
    for name, lines in sections.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        if begin not in text and end not in text:
            continue
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise UserError(
                f"{page} needs the line {begin.strip()} and, below it, {end.strip()}: "
                "restore them, for instance by git"
            )
        text = before + begin + "".join(f"{line}\n" for line in lines) + end + after
    return text


def markdown_table(heading: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, *rows)]
    return [lines[0], "|" + "---|" * len(heading), *lines[1:]]


def wrap(text: str) -> list[str]:
    """Return a paragraph as lines of at most 100 characters; links and words stay whole."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def enumerate_words(words: Iterable[str]) -> str:
    """Join words as in `card, strong and fast`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
