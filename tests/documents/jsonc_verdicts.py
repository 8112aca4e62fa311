"""Records which documents Microsoft's jsonc-parser accepts in each dialect, and what it reads in them.

`python -m tests.documents.jsonc_verdicts` renews the file. It needs node and npm; it installs the parser into a temporary
folder.
"""

import json
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("jsonc_verdicts.jsonl")
"""A line for each document: the document, a digit for each dialect (1 if it is accepted), and the value if one is."""

PARSER: Final = "jsonc-parser@3.3.1"
DOCUMENTS: Final = 3000
SCRIPT: Final = """
const { parse } = require("jsonc-parser");
const dialects = [
  { disallowComments: true, allowTrailingComma: false },
  { disallowComments: false, allowTrailingComma: false },
  { disallowComments: false, allowTrailingComma: true },
];
const documents = JSON.parse(require("fs").readFileSync(0, "utf8"));
const lines = documents.map((text) => {
  const read = dialects.map((options) => {
    const errors = [];
    return { errors, value: parse(text, errors, options) };
  });
  const verdicts = read.map(({ errors }) => (errors.length ? "0" : "1")).join("");
  return verdicts.includes("1") ? [text, verdicts, read.find(({ errors }) => !errors.length).value] : [text, verdicts];
});
const finite = (value) =>
  value && typeof value === "object" ? Object.values(value).every(finite) : typeof value !== "number" || isFinite(value);
process.stdout.write(lines.filter(([, , value]) => finite(value)).map((line) => JSON.stringify(line) + "\\n").join(""));
"""

_BLANKS: Final = ["", "", "", " ", "\n", "\r\n", "\t"]
_COMMENTS: Final = ["//\n", "// c\r\n", "/**/", '/* " ] */', "/* \n*/", "//x\r"]
_SCALARS: Final = [*"0 -0 7 1.5 -2e3 4E-2 10.0e+1 12345678901234567890 true false null".split()]
_STRINGS: Final = [*r'''"" "a" "é😀" "C:\\x" "\u0041\ud83d\ude00" "//" "/*" "a\"b" "\n\/"'''.split(), '"\u2028"']
_NOISE: Final = [*'{}[],:"/*\\-+.0e1tn# \n\r\t\x00\x0b\u00a0\ufeff\u2028', "\\u12", "//", "/*", "*/", "null", "'", "NaN", ",,"]


def document(source: random.Random) -> str:
    """A document, which is damaged in half of all cases."""
    comments, commas = source.random() < 0.6, source.random() < 0.4
    text = _value(source, source.choice([1, 2, 2, 3]), comments=comments, commas=commas)
    text = _gap(source, comments) + text + _gap(source, comments)
    for _ in range(source.choice([0, 0, 0, 1, 1, 2])):
        at = source.randrange(len(text) + 1)
        cut = source.choice([0, 0, 1, 1, 2])
        text = text[:at] + (source.choice(_NOISE) if cut != 1 or source.random() < 0.5 else "") + text[at + cut :]
    return text


def _gap(source: random.Random, comments: bool) -> str:
    return "".join(
        source.choice(_COMMENTS if comments and source.random() < 0.25 else _BLANKS) for _ in range(source.choice([0, 1, 1, 2]))
    )


def _value(source: random.Random, depth: int, *, comments: bool, commas: bool) -> str:
    kind = source.choice('{[{[s"') if depth else source.choice('s"')
    if kind == "s":
        return source.choice(_SCALARS)
    if kind == '"':
        return source.choice(_STRINGS)

    def gap() -> str:
        return _gap(source, comments)

    parts = []
    for _ in range(source.choice([0, 1, 1, 2, 3])):
        key = f"{source.choice(_STRINGS)}{gap()}:{gap()}" if kind == "{" else ""
        parts.append(f"{gap()}{key}{_value(source, depth - 1, comments=comments, commas=commas)}{gap()}")
    trailing = f",{gap()}" if commas and parts and source.random() < 0.5 else ""
    return kind + (",".join(parts) or gap()) + trailing + ("}" if kind == "{" else "]")


def _main() -> None:
    source = random.Random(20261126)  # noqa: S311 - the same documents each time
    documents = list({document(source): None for _ in range(DOCUMENTS)})
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, PARSER], check=True)  # noqa: S607 - from PATH
        done = subprocess.run(
            ["node", "-e", SCRIPT],  # noqa: S607
            cwd=folder,
            input=json.dumps(documents).encode(),
            check=True,
            capture_output=True,
        )
    FILE.write_bytes(done.stdout)


if __name__ == "__main__":
    _main()
