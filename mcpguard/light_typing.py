"""The names of `typing` that modules use which `run` and hooks of clients load. Type checkers take `typing` itself for it.

At run time nobody looks at annotations there, so most names mean nothing. `typing` takes 2 ms to load, and 0.1 ms more for each
of 60 kinds of tuples: it makes two classes, compiles a constructor, and checks annotations. Here a constructor is compiled with
the first tuple of a kind, and most kinds have none. It is the same function, so tuples are made and read as fast.
"""

from _collections import _tuplegetter  # as `collections.namedtuple` uses it

TYPE_CHECKING = False


class _Annotation:
    """A name that is only used in annotations, perhaps with arguments."""

    def __init__(self, args=()):
        self.__args__ = args

    def __getitem__(self, args):
        return _Annotation(args)

    def __or__(self, other):
        return self

    __ror__ = __or__


IO = Any = Final = Literal = NoReturn = Self = _Annotation()
Protocol = object


def TypeVar(*_, **__):  # noqa: N802 - its name in `typing`
    """See `typing`."""
    return Any


def get_args(form):
    """See `typing`."""
    return form.__args__


class _TupleType(type):
    """The class of `NamedTuple`: makes the annotations of a subclass its fields."""

    def __new__(cls, name, bases, namespace):
        """Make a kind of tuples."""
        if getattr(bases[0], "_fields", ()):  # it has the fields of the kind that it is one of
            return super().__new__(cls, name, bases, namespace)
        annotate = namespace.get("__annotate_func__")  # from Python 3.14 on
        fields = tuple(annotate(1) if annotate else namespace.get("__annotations__", ()))
        defaults = {field: namespace.pop(field) for field in fields if field in namespace}
        getters = {field: _tuplegetter(at, "") for at, field in enumerate(fields)}
        own = {"__slots__": (), "_fields": fields, "_field_defaults": defaults, "__match_args__": fields}
        return super().__new__(cls, name, bases, namespace | getters | own)


class NamedTuple(tuple, metaclass=_TupleType):
    """See `typing`."""

    def __new__(cls, *values, **named):
        """Make the first tuple, and the constructor of the others."""
        names = "".join([f"{field}, " for field in cls._fields])
        new = eval(f"lambda _cls, {names}: _new(_cls, ({names}))", {"_new": tuple.__new__})  # noqa: S307 - names only
        new.__defaults__ = tuple(cls._field_defaults.values())
        cls.__new__ = staticmethod(new)
        return new(cls, *values, **named)

    _make = classmethod(tuple.__new__)

    def _replace(self, **changed):
        made = self._make(map(changed.pop, self._fields, self))
        if changed:
            raise TypeError(f"there is no field {', '.join(changed)}")
        return made

    def _asdict(self):
        return dict(zip(self._fields, self, strict=True))

    def __getnewargs__(self):
        return tuple(self)

    def __repr__(self):
        fields = [f"{field}={value!r}" for field, value in self._asdict().items()]
        return f"{type(self).__name__}({', '.join(fields)})"
