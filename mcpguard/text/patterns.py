"""Patterns with `*`: what they match."""


def glob(pattern: str, text: str) -> bool:
    """Whether a pattern, in which `*` stands for any text or none, matches a text. Takes time linear in both.

    >>> glob("crm_*", "crm_read"), glob("crm_*", "crm"), glob("*", "")
    (True, False, True)
    """
    first, *middle = pattern.split("*")
    if not middle:
        return pattern == text
    last = middle.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    for piece in middle:
        found = text.find(piece, position, end)
        if found < 0:
            return False
        position = found + len(piece)
    return True


def may_meet(one: str, two: str) -> bool:
    """Whether a text may match both patterns. If False, none can; if True, it is not certain that one can.

    >>> may_meet("crm_*", "*_read"), may_meet("crm_*", "files_*"), may_meet("crm_*", "crm_read")
    (True, False, True)
    """
    if "*" not in one:
        return glob(two, one)
    if "*" not in two:
        return glob(one, two)
    (mine, *_, my_end), (theirs, *_, their_end) = one.split("*"), two.split("*")
    begin = mine.startswith(theirs) or theirs.startswith(mine)
    return begin and (my_end.endswith(their_end) or their_end.endswith(my_end))
