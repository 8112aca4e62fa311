"""Whether this system makes symbolic links."""

import sys
import tempfile
from pathlib import Path

import pytest


def _work() -> bool:
    """Whether a link leads anywhere. Wine makes links to files on drive C: that do not; Windows wants a right for them."""
    with tempfile.TemporaryDirectory() as folder:
        target, link = Path(folder) / "target", Path(folder) / "link"
        target.write_bytes(b"x")
        try:
            link.symlink_to(target)
            return link.read_bytes() == b"x"
        except OSError:
            return False


follows_links = pytest.mark.skipif(sys.platform == "win32" and not _work(), reason="Wine makes links that lead nowhere")
"""Marks a test that makes symbolic links."""
