"""The command line on Windows: the encoding of redirected output, a reader that leaves, and quotes of `cmd.exe`."""

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from mcpguard.errors import UsageError

_PIPE_LOCAL_INFORMATION: Final = 24
_CLOSING: Final = 4
"""The state of a pipe whose other end is closed."""


class _Output(io.FileIO):
    """Redirected output. A write to a pipe that nobody reads fails as on POSIX; Windows calls it an invalid argument."""

    def write(self, data: Any, /) -> int:
        """See `io.FileIO`.

        Raises:
            BrokenPipeError: The reader has left.
        """
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
            raise


def prepare_output() -> None:
    """Write UTF-8 into pipes and files, whatever the code page, or what `PYTHONIOENCODING` says. A terminal stays as it is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream.buffer, io.BytesIO) and not stream.isatty():
            output = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            at_once = stream.write_through or name == "stderr"
            encoding = stream.encoding if os.environ.get("PYTHONIOENCODING") else "utf-8"
            setattr(sys, name, io.TextIOWrapper(output, encoding, stream.errors, line_buffering=at_once))


def is_unread(fd: int) -> bool:
    """Whether a descriptor is a pipe whose reader has left."""
    if sys.platform != "win32":
        return False
    import ctypes
    import msvcrt

    found = (ctypes.c_ulong * 10)()  # FILE_PIPE_LOCAL_INFORMATION; its ninth member is NamedPipeState
    status = (ctypes.c_void_p * 2)()
    handle = ctypes.c_void_p(msvcrt.get_osfhandle(fd))
    failed = ctypes.windll.ntdll.NtQueryInformationFile(handle, status, found, ctypes.sizeof(found), _PIPE_LOCAL_INFORMATION)
    return not failed and found[8] == _CLOSING


def is_console(fd: int) -> bool:
    """Whether a descriptor is a terminal."""
    if sys.platform != "win32":
        return False
    import ctypes
    import msvcrt

    handle = ctypes.c_void_p(msvcrt.get_osfhandle(fd))
    return bool(ctypes.windll.kernel32.GetConsoleMode(handle, ctypes.byref(ctypes.c_ulong())))


def refuse_quotes(arguments: Sequence[str]) -> None:
    """Refuse an argument in single quotes.

    Raises:
        UsageError: `cmd.exe` takes them as a part of the text, so a rule for the user `'*'` would match nobody.
    """
    for argument in arguments:
        if argument.startswith("'"):
            raise UsageError(f"{argument}: single quotes are part of the text in cmd.exe", 'use double quotes, such as "*"')
