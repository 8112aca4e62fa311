"""Which URLs are trusted, and how they are shown."""

import re
from urllib.parse import SplitResult, urlsplit


def url_problem(url: str) -> str:
    """Why a URL is not trusted; empty if it is. Whoever can change keys in transit can impersonate any user."""
    parts = parts_of(url)
    if parts is None:
        return "this is not a URL"
    if parts.scheme not in {"https", "http"}:
        return "this is neither an https URL nor a file"
    if parts.username is not None or parts.password is not None:
        return "a URL must not contain a user or a password"
    if not parts.hostname or not is_printable(url):
        return "this is not a URL"
    return "" if parts.scheme == "https" or is_loopback(parts.hostname) else "only https is trusted, or http on this machine"


def parts_of(url: str) -> SplitResult | None:
    """The parts of a URL; None if its host or port is invalid."""
    try:
        parts = urlsplit(url)
        _ = parts.hostname, parts.port
    except ValueError:
        return None
    return parts


def is_printable(url: str) -> bool:
    """Whether a URL consists of printable ASCII characters without spaces."""
    return url.isascii() and url.isprintable() and " " not in url


def shown_url(url: str) -> str:
    """A URL without user, password, query and fragment, which can hold secrets."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def is_loopback(host: str) -> bool:
    """Whether a URL's host is a loopback name or address. No name server is asked."""
    return host in {"localhost", "::1"} or bool(re.fullmatch(r"127(\.[0-9]{1,3}){3}", host))
