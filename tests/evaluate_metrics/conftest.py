import random

import pytest


@pytest.fixture
def damages():
    """`damages(content, n)`: `content` changed in n random ways, each of them another one than `content`."""

    def damaged(content, n, seed=0):
        draw = random.Random(seed)
        while n:
            changed, place, length = bytearray(content), draw.randrange(len(content)), draw.randrange(1, 65)
            how = draw.choice(["flip", "cut", "zero", "type", "exchange", "insert"])
            if how == "flip":
                changed[place] ^= 1 << draw.randrange(8)
            elif how == "cut":
                del changed[place:]
            elif how == "zero":
                changed[place : place + length] = bytes(len(changed[place : place + length]))
            elif how == "type":  # as its head names it
                changed = bytearray(content.replace(*draw.choice([(b"F64", b"I64"), (b"F32", b"I32"), (b"F", b"U")])))
            elif how == "exchange":
                other = draw.randrange(len(content))
                changed[place], changed[other] = changed[other], changed[place]
            else:
                changed[place:place] = draw.randbytes(length)
            if changed != content:
                n -= 1
                yield bytes(changed)

    return damaged
