"""The `mcpguard` command, and `python -m mcpguard`."""

import _signal  # type: ignore[import-not-found]  # `signal` takes milliseconds to import, in which Ctrl-C is a traceback

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not ignored, by whoever has started us
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)


def main() -> None:
    """Run the command line. While it is loaded an interrupt ends the process at once: there is nothing to tidy up yet."""
    from mcpguard.cli import main

    main()


if __name__ == "__main__":
    main()
