"""The `mcpguard` command, and `python -m mcpguard`."""

import _signal  # type: ignore[import-not-found]  # importing `signal` takes milliseconds, in which Ctrl-C would print a traceback
import gc
import sys

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # the parent process may have made us ignore it
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> None:
    """Run the command line. While modules are loaded, Ctrl-C ends the process at once, because nothing needs cleaning up."""
    gc.disable()  # nothing that modules create is garbage; looking for some takes 2 ms. `run` and click enable it again
    try:
        from mcpguard.cli import main

        main()
    except Exception as error:
        if sys.argv[1:2] == ["hook"]:
            return  # whatever is broken: after another status than 0, a client may stop the call
        if not isinstance(error, ImportError | MemoryError | OSError):
            raise
        # A part of mcpguard cannot be loaded. It may be the part that prints errors
        what = str(error) or "no memory is left"
        sys.exit(
            f"mcpguard: cannot continue: {what}\nhint: look at ulimit -a; if a file of mcpguard is missing, install it again"
        )


if __name__ == "__main__":
    main()
