"""What the package's page on PyPI shows, from the README and from one address. hatchling runs this when it builds."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<image>!?)(?P<text>\[[^][]*\])\((?!\w+:|#)(?P<path>[^)]+)\)")


class PackagePage(MetadataHookInterface):
    """Sets `readme` and `urls` from `repository`, the repository's address, which stands in pyproject.toml only.

    PyPI shows the README at another place than the repository does, so each link of it becomes one to the tag of this version.
    While the address is empty, links stay as they are, and `.ci/release.py check` refuses to publish.
    """

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the two fields."""
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["urls"] = {}
        if repository := self.config["repository"].rstrip("/"):
            here = f"v{metadata['version']}"

            def absolute(link: re.Match[str]) -> str:
                kind = "raw" if link["image"] else "blob"
                return f"{link['image']}{link['text']}({repository}/{kind}/{here}/{link['path']})"

            text = LINK.sub(absolute, text)
            metadata["urls"] = {
                "Repository": repository,
                "Documentation": f"{repository}/blob/{here}/docs/index.md",
                "Changelog": f"{repository}/blob/{here}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
                "Security": f"{repository}/blob/{here}/SECURITY.md",
            }
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
