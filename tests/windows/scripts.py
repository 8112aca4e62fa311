"""Makes Scripts/mcpguard.exe as pip does, and a .pth file for the checkout: usage: scripts.py PY DISTLIB_WHEEL PROJECT.

The program is distlib's launcher, a line that names python.exe, and a zip file with __main__.py.
"""

import io
import sys
import zipfile
from pathlib import Path

MAIN = """import sys
from mcpguard.__main__ import main
if __name__ == "__main__":
    sys.argv[0] = sys.argv[0].removesuffix(".exe")
    sys.exit(main())
"""


def on_windows(path: Path) -> str:
    """A path as programs under Wine name it."""
    return "Z:" + str(path).replace("/", "\\")


def main() -> None:
    py, distlib, project = map(Path, sys.argv[1:])
    (py / "Lib/site-packages/project.pth").write_text(on_windows(project) + "\n", "utf-8")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("__main__.py", MAIN)
    with zipfile.ZipFile(distlib) as wheel:
        launcher = wheel.read("distlib/t64.exe")
    first = f'#!"{on_windows(py)}\\python.exe"\r\n'.encode()
    (py / "Scripts/mcpguard.exe").write_bytes(launcher + first + packed.getvalue())


if __name__ == "__main__":
    main()
