"""Label noise drawn: clean labels in, noisy labels out; no files, no global random state.

Where a noise depends on the class alone it has a transition matrix `T[i, j] = P(noisy = j | clean = i)`.
"""

import hashlib
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .base import SAMPLINGS, ClassNoise
from .labels import check_labels, check_num_classes
from .mapped import MappedNoise
from .semantic import contaminated_labels, contaminated_matrix
from .spec import NoiseSpec


def transition_matrix(
    spec: str | NoiseSpec,
    num_classes: int,
    *,
    targets: Mapping[int, int] | None = None,
    contaminated: bool = False,
) -> np.ndarray:
    """The matrix `T[i, j] = P(noisy = j | clean = i)` of a class-conditional noise.

    With r = rate / 100: `symmetric` gives r / (K - 1) to each of the K - 1 *other* classes (Ma et al. 2020), so that
    the rate is the share of wrong labels; `asymmetric` gives r to class (i + 1) mod K (the pair flip of Han et al.
    2018); `semantic` gives r to `SEMANTIC_TARGETS[i]` and leaves the five classes without a target clean (Patrini et
    al. 2017), so that on balanced classes half of the rate is the share of wrong labels.

    Contaminated `semantic` noise (see [`make_noisy_labels`]) differs in the row of the cats: r^2 of them are turned to
    dogs and back, so that r (1 - r) are called dogs and 1 - r + r^2 cats. The dogs' row is the same, r going to cat,
    and on balanced classes (5 r - r^2) / 10 is the share of wrong labels. This holds for any class sizes, as an
    expectation, up to the rounding down of the counts.

    Args:
        spec (`str` or `NoiseSpec`): the noise.
        num_classes (`int`): K >= 2.
        targets (`Mapping[int, int]`, *optional*): as for [`make_noisy_labels`].
        contaminated (`bool`, *optional*, defaults to `False`): the matrix of contaminated `semantic` noise.

    Returns:
        `np.ndarray`: (K, K) float64, rows (clean class) sum to 1.

    Raises:
        ValueError: bad spec or targets, K < 2, `semantic` without targets and K other than 10, `contaminated` with
            targets or a kind other than `semantic`, or `instance`, which has no such matrix.
    """
    spec = NoiseSpec.parse(spec)
    check_num_classes(num_classes)
    if contaminated and spec.kind != "semantic":
        raise ValueError(f"contaminated: True is allowed with semantic_RR alone, got spec {spec}")
    kind = _kind(spec, targets, num_classes, contaminated)
    if not isinstance(kind, ClassNoise):
        raise ValueError(
            f"spec: {spec} depends on the image, not on the class alone, and has no transition matrix; "
            "measure one on drawn labels with realised_matrix(clean, noisy, num_classes)"
        )
    return contaminated_matrix(spec.rate) if contaminated else kind.checked_matrix(spec.rate, num_classes)


def make_noisy_labels(
    labels: ArrayLike,
    spec: str | NoiseSpec,
    *,
    num_classes: int,
    seed: int = 0,
    images: Any = None,
    sampling: str = "quota",
    targets: Mapping[int, int] | None = None,
    contaminated: bool = False,
) -> np.ndarray:
    """Draw noisy labels for `labels`. The result depends on the arguments alone, on any platform.

    - `sampling="quota"`: of the images of all classes that the noise flips, exactly `round(rate / 100 * n)` flip
      (Python's rounding), and of each class `rate / 100 * n_c`, rounded up or down so that the total is right (largest
      remainder). Symmetric noise spreads them over the other classes as evenly as whole numbers allow.
    - `sampling="bernoulli"`: each image for itself with probability rate / 100; its target is drawn from its class's
      row of the transition matrix.

    Classes are told by the *clean* labels, so that a cat turned dog is never turned back, unless `contaminated` asks
    for it: `semantic` noise as the code of Ma et al. (2020) and of their successors draws it, see
    [`~hf_robust.noise.semantic.contaminated_labels`]. `instance` noise is [`~hf_robust.noise.instance.Instance`].

    Args:
        labels: (N,) integers in 0..K-1, array or sequence, N >= 1.
        spec (`str` or `NoiseSpec`): the noise.
        num_classes (`int`): K >= 2.
        seed (`int`, *optional*, defaults to 0): >= 0. Different specs with one seed are independent of each other.
        images (*optional*): (N, ...) uint8, needed by `instance` and not looked at by the others.
        sampling (`str`, *optional*, defaults to `"quota"`): one of `SAMPLINGS`.
        targets (`Mapping[int, int]`, *optional*): for `semantic` and `superclass` on any classes, the map from a class
            to the one that gets its rate, such as `MNIST_TARGETS`; by default CIFAR-10's, or the ring inside each of
            CIFAR-100's superclasses.
        contaminated (`bool`, *optional*, defaults to `False`): draw `semantic` noise, by quota, with the flips back
            of that code, from a stream of its own; the default is the exact noise.

    Returns:
        `np.ndarray`: (N,) int64 in 0..K-1.

    Raises:
        ValueError: bad spec, sampling, seed, targets, shape or a label outside 0..K-1, targets for a kind that has no
            map, or `contaminated` with targets, a kind other than `semantic` or a sampling other than `"quota"`.
        TypeError: labels that are no integers, images that are not uint8, a seed that is no integer.
    """
    spec = NoiseSpec.parse(spec)
    check_drawing(spec, sampling=sampling, contaminated=contaminated)
    check_num_classes(num_classes)
    labels = check_labels("labels", labels, num_classes)
    generator = noise_generator(f"{spec} contaminated" if contaminated else str(spec), seed)
    kind = _kind(spec, targets, num_classes, contaminated)
    if contaminated:
        return contaminated_labels(labels, spec.rate, generator)
    noisy = kind.draw(labels, spec.rate, num_classes, generator, sampling=sampling, images=images)
    drawn = check_labels(f"labels that {spec} draws", noisy, num_classes)
    if len(drawn) != len(labels):
        raise ValueError(f"labels that {spec} draws: expected {len(labels)}, as many as labels, got {len(drawn)}")
    return drawn


def _kind(spec: NoiseSpec, targets: Mapping[int, int] | None, num_classes: int, contaminated: bool) -> Any:
    """The kind of noise on K classes, by one's own map if there is one."""
    if targets is None:
        spec.noise.check_num_classes(spec, num_classes)
        return spec.noise
    if contaminated or not isinstance(spec.noise, MappedNoise):
        raise ValueError(f"targets: {spec}{' contaminated' if contaminated else ''} has no map of one's own")
    return spec.noise.with_targets(targets, num_classes)


def check_drawing(spec: NoiseSpec, *, sampling: str, contaminated: bool = False) -> None:
    """Raise a `ValueError` where [`make_noisy_labels`] does not draw this noise in this way."""
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling: unknown {sampling!r:.120}; allowed are {', '.join(SAMPLINGS)}")
    if contaminated and (spec.kind != "semantic" or sampling != "quota"):
        raise ValueError(
            "contaminated: True is allowed with semantic_RR and sampling 'quota' alone, "
            f"got spec {spec} and sampling {sampling!r:.120}"
        )


def noise_generator(name: str, seed: int) -> np.random.Generator:
    """The random stream of a noise by its canonical name: the same whatever was drawn before, unlike any other's.

    Raises:
        TypeError, ValueError: the seed is no int >= 0.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed: expected an int >= 0, got {seed!r:.120}")
    if seed < 0:
        raise ValueError(f"seed: expected an int >= 0, got {seed}")
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()  # hash() differs from process to process
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big"))))
