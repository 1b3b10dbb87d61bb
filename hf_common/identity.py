"""Whether two things are one, though a module was loaded again."""


def same_code(one: object, other: object) -> bool:
    """Whether two are the same function or class, or the same one of a module that was loaded again."""
    names = [(getattr(of, "__module__", None), getattr(of, "__qualname__", None)) for of in (one, other)]
    return one is other or (names[0] == names[1] and None not in names[0])
