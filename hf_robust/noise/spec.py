"""A noise by name: a kind and a rate in percent.

`clean`, `symmetric_40`, `asymmetric_12.5`, `semantic_20`, `instance_60`; or `matrix:T.npy`, a file. A name is read
once, where it comes in; from there on the `NoiseSpec` is handed on.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

from hf_common.foreign import short
from hf_common.names import did_you_mean

from .base import NoiseKind
from .from_matrix import PREFIX, MatrixNoise, is_matrix_name
from .kinds import FROM_FILES, KINDS
from .matrix_file import read_transition_matrix


def _drawn_kinds():
    return [kind for kind in KINDS.values() if not kind.recorded]


def spec_patterns() -> str:
    """The forms of the names that [`NoiseSpec.parse`] reads, in one line."""
    return ", ".join([*(kind.pattern for kind in _drawn_kinds()), f"{PREFIX}FILE"])


def quoted(value: object) -> str:
    """What came, in an error: its `repr`, cut."""
    return short(repr(value), 80)


@dataclass(frozen=True)
class NoiseSpec:
    """What noise, and how much of it.

    Args:
        kind (`str`): a key of `KINDS` whose labels are drawn.
        rate (`float`, *optional*, defaults to 0): percent of the images (of each class that the noise flips) that get
            a wrong label, in [0, 100]; 0 for `clean`.

    Raises:
        ValueError: unknown kind, rate outside 0..100 or not a number.
        TypeError: a rate that is no number.
    """

    kind: str
    rate: float = 0.0

    def __post_init__(self):
        allowed = [kind.name for kind in _drawn_kinds()]
        if self.kind not in allowed and self.kind not in FROM_FILES:
            raise ValueError(f"kind: unknown noise {quoted(self.kind)}; allowed are {', '.join(allowed)}")
        if isinstance(self.rate, bool) or not isinstance(self.rate, Real):
            raise TypeError(f"rate: expected a number (percent), got {quoted(self.rate)}")
        if not 0 <= self.rate <= 100:  # written so that nan fails too
            raise ValueError(f"rate: expected percent in 0..100, got {self.rate!r:.120}")
        if not self.noise.rated and self.rate != 0:
            raise ValueError(f"rate: {self.kind} labels have rate 0, got {self.rate!r:.120}")
        if 0 < self.rate < 1:
            warnings.warn(
                f"rate: {self} makes {float(self.rate):g} percent of the labels wrong, for rates are percent; a share "
                f"of {float(self.rate):g} is {self.kind}_{100 * float(self.rate):g}",
                stacklevel=3,
            )

    @property
    def noise(self) -> NoiseKind:
        """The kind, with all that belongs to it."""
        return FROM_FILES.get(self.kind) or KINDS[self.kind]

    @classmethod
    def parse(cls, spec: "str | NoiseSpec") -> "NoiseSpec":
        """Read `"clean"`, `"<kind>_<percent>"` or `"matrix:<file>"`; a `NoiseSpec` is returned as it is.

        The file is what [`read_transition_matrix`] reads; its noise is a kind of its own, named after its numbers.

        Raises:
            ValueError: not of this form, a file without such a matrix, unknown kind, rate outside 0..100, or a
                `human_*` name: those labels were recorded, not drawn.
            FileNotFoundError: there is no such file.
            TypeError: neither `str` nor `NoiseSpec`.
        """
        if isinstance(spec, NoiseSpec):
            return spec
        if not isinstance(spec, str):
            raise TypeError(f"spec: expected a str such as 'symmetric_40' or a NoiseSpec, got {quoted(spec)}")
        if spec.startswith(PREFIX):
            file = spec.removeprefix(PREFIX)
            if not Path(file).is_file():
                raise FileNotFoundError(f"spec: {quoted(spec)} names no file: there is no {quoted(file)}")
            noise = MatrixNoise(read_transition_matrix(file, None))
            FROM_FILES[noise.name] = noise
            return cls(noise.name)
        if spec in KINDS and not KINDS[spec].rated and not KINDS[spec].recorded:
            return cls(spec)
        first, underscore, _ = spec.partition("_")
        if underscore and first in KINDS and KINDS[first].recorded:
            raise ValueError(
                f"spec: {quoted(spec)} names recorded {first} labels, which cannot be drawn; "
                "read them from a data set config of that name"
            )
        if is_matrix_name(spec):
            raise ValueError(f"spec: {quoted(spec)} was drawn from a matrix; give its file, as {PREFIX}FILE")
        kind, _, percent = spec.rpartition("_")
        try:
            # `float` takes blanks, line ends and digits of other scripts too: one noise would have several names.
            rate = float(percent) if percent.isascii() and percent == percent.strip() else None
        except ValueError:
            rate = None
        if kind not in KINDS or not KINDS[kind].rated or rate is None:
            raise ValueError(
                f"spec: unknown noise {quoted(spec)}; allowed are {spec_patterns()}, RR being percent in 0..100"
                f"{did_you_mean(kind, KINDS) if kind not in KINDS else ''}"
            )
        return cls(kind, rate)

    def __str__(self) -> str:
        """The canonical name: `parse(str(spec)) == spec`, and equal specs have equal names."""
        if not self.noise.rated:
            return self.kind
        rate = float(self.rate)
        return f"{self.kind}_{int(rate) if rate.is_integer() else rate!r}"


def check_noise_names(argument: str, names: Iterable[str], others: Callable[[str], bool]) -> None:
    """Raise a `ValueError` that names `argument` for a name that is no noise and none of `others`."""
    for name in names:
        if not others(name):
            try:
                NoiseSpec.parse(name)
            except ValueError as error:
                raise ValueError(f"{argument}: {str(error).removeprefix('spec: ')}") from None
