"""The table of the kinds of label noise."""

from .asymmetric import Asymmetric
from .base import NoiseKind
from .clean import Clean
from .human import Human
from .instance import Instance
from .semantic import CONTAMINATED, Semantic
from .symmetric import Symmetric

KINDS: dict[str, NoiseKind] = {
    "clean": Clean(),
    "symmetric": Symmetric(),
    "asymmetric": Asymmetric(),
    "semantic": Semantic(),
    "instance": Instance(),
    "human": Human(),
}


def kind_of(name: str) -> NoiseKind | None:
    """The kind that a config or a result is named after: semantic of `semantic_40` and `contaminated_semantic_40`."""
    return KINDS.get(name.removeprefix(CONTAMINATED).partition("_")[0])
