"""The account: where its files are, and its name."""

import os
import sys
from collections.abc import Mapping

from mcpguard.errors import ConfigError
from mcpguard.files import absolute
from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Folders(NamedTuple):
    """The folders of the account's files: `config` for files that people edit, `state` for files that the program writes."""

    config: str
    state: str

    @property
    def config_file(self) -> str:
        """The settings of this machine."""
        return os.path.join(self.config, "config.toml")

    @property
    def policy_file(self) -> str:
        """The account's policy."""
        return os.path.join(self.config, "policy.toml")

    @property
    def database(self) -> str:
        """The account's SQLite store."""
        return os.path.join(self.state, "mcpguard.db")


_USUAL_FOLDERS: Final = {
    "linux": Folders(".config", ".local/state"),
    "darwin": Folders("Library/Application Support", "Library/Application Support"),
}
"""The folders by system, below the home folder: where platformdirs finds them, whose modules take 5 ms to load."""


def state_folder(environ: Mapping[str, str]) -> "Path":
    """The folder for files that the program writes. Raises the errors of `folders`."""
    from pathlib import Path

    return Path(folders(environ).state)


def folders(environ: Mapping[str, str]) -> Folders:
    """The account's folders, or the one folder that `MCPGUARD_HOME` names.

    XDG variables are ignored: MCP clients do not pass them on, and one account must have one policy.

    Raises:
        ConfigError: `MCPGUARD_HOME` is not a path, or the account has no home folder.
    """
    home = environ.get("MCPGUARD_HOME")
    if home:
        place = absolute(home, where="MCPGUARD_HOME")
        return Folders(place, place)
    usual = _USUAL_FOLDERS.get(sys.platform)
    if usual and os.path.isabs(own := os.path.expanduser("~")):
        return Folders(*(os.path.join(own, folder, "mcpguard") for folder in usual))
    from platformdirs import PlatformDirs

    hidden = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("XDG_")}
    try:
        places = PlatformDirs("mcpguard", appauthor=False)
        return Folders(places.user_config_dir, places.user_state_dir)
    except RuntimeError as error:  # HOME is not set, and the system does not know this account
        raise ConfigError("this account has no home folder", "set MCPGUARD_HOME to a folder for mcpguard's files") from error
    finally:
        os.environ.update(hidden)


def account_name() -> str:
    """The name of the OS account, or its number if it has no name. No environment variable can change the result."""
    if sys.platform == "win32":
        import ctypes

        size = ctypes.c_ulong(257)  # UNLEN + 1
        name = ctypes.create_unicode_buffer(size.value)
        if not ctypes.WinDLL("advapi32", use_last_error=True).GetUserNameW(name, ctypes.byref(size)):
            raise ctypes.WinError(ctypes.get_last_error())
        return name.value
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
