"""The pages of the manual, and what tests take from them."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCS = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
BLOCK = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def chapter(page: str, title: str) -> str:
    """What stands below a heading, to the next one of its level or a higher level."""
    _, level, below = re.split(rf"^(##+) {re.escape(title)}$", page, maxsplit=1, flags=re.MULTILINE)
    return re.split(rf"^#{{2,{len(level)}}} ", below, maxsplit=1, flags=re.MULTILINE)[0]


def blocks(kind: str, page: str) -> list[str]:
    """The blocks of a kind, such as `toml`."""
    return [textwrap.dedent(match["text"]) for match in BLOCK.finditer(page) if match["kind"] == kind]


def block(kind: str, page: str) -> str:
    """The only block of a kind."""
    (found,) = blocks(kind, page)
    return found


def rows(page: str) -> list[list[str]]:
    """The cells of each row of its tables, with those of the heads, without bold type."""
    return [
        [cell.strip(" *") for cell in line.strip("|").split("|")] for line in page.splitlines() if re.match(r"\| [^-]", line)
    ]


def generated(page: str, name: str) -> tuple[str, str, str]:
    """A page up to its generated part with a name, the part, and the rest. Comments stand before and after the part.

    Raises:
        ValueError: The page has no such part.
    """
    found = re.search(rf"^<!-- {name}: [^\n]* -->\n(.*?)^<!-- end of ", page, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"the page has no comments around {name}")
    return page[: found.start(1)], found[1], page[found.end(1) :]


def renewed(page: str, name: str, text: str) -> str:
    """The page with this text as its generated part with a name."""
    before, _, after = generated(page, name)
    return f"{before}\n{text.strip()}\n\n{after}"
