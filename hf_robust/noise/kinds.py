"""The table of the kinds of label noise, which one's own joins by [`register_noise`]."""

import re

from hf_common.identity import same_code

from .asymmetric import Asymmetric
from .base import NoiseKind
from .block5 import Block5
from .clean import Clean
from .from_matrix import MatrixByName, is_matrix_name
from .human import Human
from .instance import Instance
from .semantic import CONTAMINATED, Semantic
from .superclass import Superclass
from .symmetric import Symmetric

KINDS: dict[str, NoiseKind] = {
    "clean": Clean(),
    "symmetric": Symmetric(),
    "asymmetric": Asymmetric(),
    "semantic": Semantic(),
    "instance": Instance(),
    "superclass": Superclass(),
    "block5": Block5(),
    "human": Human(),
}
# Names that say something else where a noise may stand: before a noise, as a file's, a folder's or a value's.
TAKEN = ("contaminated", "false", "inf", "matrix", "nan", "none", "null", "test", "true")
# Those of matrices that were read, by their names.
FROM_FILES: dict[str, NoiseKind] = {}


def register_noise(kind: NoiseKind) -> NoiseKind:
    """Add a kind of noise to the table, or take the place of the same one.

        class Swap(ClassNoise):
            name, colour = "swap", "#0072B2"
            words = entry = "of each class {rate} % go to its partner, 0 to 1, 2 to 3, ..."

            def matrix(self, rate, num_classes):
                return matrix_to({i: i ^ 1 for i in range(num_classes - num_classes % 2)}, rate, num_classes)

        register_noise(Swap())

    `swap_40` is then a noise for `make_noisy_labels`, specs, commands, cards and figures. A noise that depends on more
    than the class is a `NoiseKind` with a `draw` like that of [`ClassNoise`].

    Raises:
        TypeError: no instance of a subclass of `NoiseKind`, or one that lacks `draw`.
        ValueError: a name other than lower-case letters and digits, one of `TAKEN` or one that another kind has; a
            colour other than `#RRGGBB`; no words, or with other braces than `{rate}`.
    """
    if not isinstance(kind, NoiseKind):
        raise TypeError(f"kind must be an instance of a subclass of NoiseKind, got {kind!r:.120}")
    cls = type(kind).__name__
    lacking = [name for name in ("name", "colour", "words", "entry", "draw") if not hasattr(kind, name)]
    if lacking:
        raise TypeError(f"{cls} lacks {', '.join(lacking)}")
    if not (isinstance(kind.name, str) and re.fullmatch("[a-z][a-z0-9]*", kind.name)):
        raise ValueError(f"name of {cls} must be lower-case letters and digits; got {kind.name!r:.80}")
    if kind.name in TAKEN:
        raise ValueError(f"name of {cls} must be none of {', '.join(TAKEN)}; got {kind.name!r}")
    if kind.name in KINDS and not same_code(type(KINDS[kind.name]), type(kind)):
        raise ValueError(f"there is a noise {kind.name!r} already")
    if not (isinstance(kind.colour, str) and re.fullmatch("#[0-9A-Fa-f]{6}", kind.colour)):
        raise ValueError(f"colour of {cls} must be such as '#0072B2'; got {kind.colour!r:.80}")
    for name in ("words", "entry"):
        if not _can_be_said(getattr(kind, name)):
            raise ValueError(
                f"{name} of {cls} must be a text, in which {{rate}} alone stands in braces; "
                f"got {getattr(kind, name)!r:.80}"
            )
    KINDS[kind.name] = kind
    return kind


def _can_be_said(words: object) -> bool:
    """Whether cards can put a rate into the words."""
    try:
        return isinstance(words, str) and bool(words.format(rate="RR").strip())
    except (LookupError, ValueError, AttributeError):  # other braces
        return False


def kind_of(name: str) -> NoiseKind | None:
    """The kind that a config or a result is named after: semantic of `semantic_40` and `contaminated_semantic_40`."""
    if is_matrix_name(name):
        return FROM_FILES.get(name) or MatrixByName()
    return KINDS.get(name.removeprefix(CONTAMINATED).partition("_")[0])
