"""Draws the pictures in `docs/images` from real runs on a terminal: `python -m tests.terminal_pictures`."""

import contextlib
import re
import tempfile
from collections.abc import Mapping
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from mcpguard.demo import story
from tests.cli.command import Terminal
from tests.end_to_end.host import environment, program

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
COLUMNS: Final = 88
FORMAT: Final = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
"""Rich's format, without fonts from another host."""


def on_a_terminal(*argv: str, env: dict[str, str], tuned: Mapping[str, object] | None = None) -> str:
    """The output of a command on a terminal with colours, without the lines that it erased."""
    with contextlib.closing(Terminal(program(*argv, tuned=tuned), env, columns=COLUMNS, lines=200)) as terminal:
        assert terminal.end() == 0, terminal.data.decode()
    text = re.sub(r"\x1b\[\?25[lh]", "", terminal.data.decode().replace("\r\n", "\n"))
    text = re.sub(r"[^\n]*\n\r?\x1b\[1A\x1b\[2K", "", text)
    return re.sub(r"[^\n]*\r\x1b\[2K", "", text)


def shown(*, rows: int = 12, loop_calls: int = story.LOOP_CALLS) -> dict[str, Text]:
    """The text of each picture by its name, with so many rows of the audit log and calls in the demo's loop."""
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder), TERM="xterm-256color", TMPDIR=folder)
        demo = on_a_terminal("demo", "--keep", env=env, tuned={"mcpguard.demo.story.LOOP_CALLS": loop_calls})
        (home,) = Path(folder).glob("mcpguard-demo-*")
        env["MCPGUARD_HOME"] = str(home)
        policy = on_a_terminal("policy", "show", env=env).replace(str(home), "~/.config/mcpguard")
        audit = on_a_terminal("audit", "tail", "-n", str(rows), env=env)
    lines = demo.splitlines()
    first = next(at for at, line in enumerate(lines) if "caught in a loop" in line)
    last = next(at for at, line in enumerate(lines) if "reached the server and" in line)
    outputs = {
        "demo": ("mcpguard demo", "\n".join(lines[first : last + 1])),
        "policy-show": ("mcpguard policy show", policy),
        "audit-tail": (f"mcpguard audit tail -n {rows}", audit),
    }
    return {name: Text(f"$ {command}\n", "bold") + Text.from_ansi(out.rstrip()) for name, (command, out) in outputs.items()}


def svg(name: str, text: Text) -> str:
    """Draw a text as an SVG picture."""
    console = Console(
        record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    console.print(text)
    picture = console.export_svg(title="mcpguard", code_format=FORMAT, unique_id=name)
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def words(picture: str) -> list[str]:
    """The words of a picture. Every number is replaced by N."""
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", picture)
    return re.sub(r"\d[\d,]*", "N", unescape(" ".join(texts)).replace("\xa0", " ")).split()


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, text in shown().items():
        (IMAGES / f"{name}.svg").write_text(svg(name, text))
