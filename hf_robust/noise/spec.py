"""Synthetic label noise: clean labels in, noisy labels out; no files, no global random state.

A noise is named by a kind and a rate in percent: `clean`, `symmetric_40`, `asymmetric_12.5`, `semantic_20`,
`instance_60`.
Where a noise depends on the class alone it has a transition matrix `T[i, j] = P(noisy = j | clean = i)`.
"""

import hashlib
import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

KINDS = ("clean", "symmetric", "asymmetric", "semantic", "instance")
SAMPLINGS = ("quota", "bernoulli")

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# CIFAR-10's confusable pairs (Patrini et al. 2017), in its class order: bird -> airplane, cat <-> dog,
# deer -> horse, truck -> automobile. The other five classes keep their labels.
SEMANTIC_TARGETS = {2: 0, 3: 5, 4: 7, 5: 3, 9: 1}
# The order in which the code of Ma et al. (2020) flips them: cat before dog, which contaminated noise depends on.
CONTAMINATED_ORDER = (9, 2, 3, 5, 4)


@dataclass(frozen=True)
class NoiseSpec:
    """What noise, and how much of it.

    Args:
        kind (`str`): one of `KINDS`.
        rate (`float`, *optional*, defaults to 0): percent of the images (of each class that the noise flips) that get
            a wrong label, in [0, 100]; 0 for `clean`.

    Raises:
        ValueError: unknown kind, rate outside 0..100 or not a number.
        TypeError: a rate that is no number.
    """

    kind: str
    rate: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind: unknown noise {self.kind!r}; allowed are {', '.join(KINDS)}")
        if isinstance(self.rate, bool) or not isinstance(self.rate, Real):
            raise TypeError(f"rate: expected a number (percent), got {self.rate!r}")
        if not 0 <= self.rate <= 100:  # written so that nan fails too
            raise ValueError(f"rate: expected percent in 0..100, got {self.rate!r}")
        if self.kind == "clean" and self.rate != 0:
            raise ValueError(f"rate: clean labels have rate 0, got {self.rate!r}")

    @classmethod
    def parse(cls, spec: "str | NoiseSpec") -> "NoiseSpec":
        """Read `"clean"` or `"<kind>_<percent>"`; a `NoiseSpec` is returned as it is.

        Raises:
            ValueError: not of this form, unknown kind, rate outside 0..100, or a `human_*` name: those labels were
                recorded, not drawn.
            TypeError: neither `str` nor `NoiseSpec`.
        """
        if isinstance(spec, NoiseSpec):
            return spec
        if not isinstance(spec, str):
            raise TypeError(f"spec: expected a str such as 'symmetric_40' or a NoiseSpec, got {spec!r}")
        if spec == "clean":
            return cls("clean")
        if spec.startswith("human_"):
            raise ValueError(
                f"spec: {spec!r} names recorded human labels, which cannot be drawn; "
                "read them from a data set config of that name"
            )
        kind, _, percent = spec.rpartition("_")
        try:
            rate = float(percent)
        except ValueError:
            rate = None
        if kind not in KINDS or kind == "clean" or rate is None:
            allowed = ", ".join(["clean", *(f"{kind}_RR" for kind in KINDS[1:])])
            raise ValueError(f"spec: unknown noise {spec!r}; allowed are {allowed}, RR being percent in 0..100")
        return cls(kind, rate)

    def __str__(self) -> str:
        """The canonical name: `parse(str(spec)) == spec`, and equal specs have equal names."""
        if self.kind == "clean":
            return "clean"
        rate = float(self.rate)
        return f"{self.kind}_{int(rate) if rate.is_integer() else rate!r}"


def transition_matrix(spec: str | NoiseSpec, num_classes: int, *, contaminated: bool = False) -> np.ndarray:
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
        contaminated (`bool`, *optional*, defaults to `False`): the matrix of contaminated `semantic` noise.

    Returns:
        `np.ndarray`: (K, K) float64, rows (clean class) sum to 1.

    Raises:
        ValueError: bad spec, K < 2, `semantic` with K other than 10, `contaminated` with a kind other than `semantic`,
            or `instance`, which has no such matrix.
    """
    spec = NoiseSpec.parse(spec)
    _check_num_classes(num_classes)
    if contaminated and spec.kind != "semantic":
        raise ValueError(f"contaminated: True is allowed with semantic_RR alone, got spec {spec}")
    rate = float(spec.rate) / 100
    if spec.kind == "instance":
        raise ValueError(
            f"spec: {spec} depends on the image, not on the class alone, and has no transition matrix; "
            "measure one on drawn labels with realised_matrix(clean, noisy, num_classes)"
        )
    if spec.kind == "semantic" and num_classes != 10:
        raise ValueError(f"num_classes: {spec} is defined on the 10 classes of CIFAR-10, got {num_classes}")

    if spec.kind == "symmetric":
        matrix = np.full((num_classes, num_classes), rate / (num_classes - 1))
        np.fill_diagonal(matrix, 1 - rate)
        return matrix
    if contaminated:
        matrix = np.eye(num_classes)
        for source in CONTAMINATED_ORDER:  # of all that is called source by now, whatever it was, r goes on
            matrix[:, SEMANTIC_TARGETS[source]] += rate * matrix[:, source]
            matrix[:, source] *= 1 - rate
        return matrix
    targets = {
        "clean": {},
        "asymmetric": {i: (i + 1) % num_classes for i in range(num_classes)},
        "semantic": SEMANTIC_TARGETS,
    }[spec.kind]
    matrix = np.eye(num_classes)
    for clean_class, target in targets.items():
        matrix[clean_class, clean_class] = 1 - rate
        matrix[clean_class, target] = rate
    return matrix


def make_noisy_labels(
    labels,
    spec: str | NoiseSpec,
    *,
    num_classes: int,
    seed: int = 0,
    images=None,
    sampling: str = "quota",
    contaminated: bool = False,
) -> np.ndarray:
    """Draw noisy labels for `labels`. The result depends on the arguments alone, on any platform.

    Which images flip:

    - `sampling="quota"`: of the n_c images of each class that the noise flips, exactly `round(rate / 100 * n_c)`
      (Python's rounding). Symmetric noise spreads them over the other classes as evenly as whole numbers allow.
    - `sampling="bernoulli"`: each image for itself with probability rate / 100; its target is drawn from its class's
      row of the transition matrix.

    Classes are told by the *clean* labels, so that a cat turned dog is never turned back, unless `contaminated` asks
    for it: `semantic` noise as the code of Ma et al. (2020, active passive losses) and of their successors draws it,
    for comparisons with the tables of those papers. It takes the classes in the order `CONTAMINATED_ORDER` and in each
    turn relabels `int(rate / 100 * n)` of the n images that carry the label *now*. So dogs are drawn from the dogs and
    the cats just turned dog, some of which turn back: at a nominal 40 %, 24 % of the cats, 40 % of the dogs and 18.4 %
    of all labels of balanced classes end up wrong, where the exact noise has 40 %, 40 % and 20 %.

    `instance` noise is that of Xia et al. (2020, part-dependent label noise; `get_instance_noisy_label` in their
    code), on raw 0..255 pixels x: flip probability q ~ truncated normal(rate, 0.1) on [0, 1] per image, W ~ N(0, 1)
    of shape (K, d, K), wrong label ~ softmax(x W[y]) over the other classes. With u ~ uniform(0, 1), image i flips
    when logit(q_i) - logit(u_i) > 0, that is with probability q_i. Quota takes the images of each class in descending
    order of that same number, so it only moves the threshold from 0 to where the count is exact. Rates 0 and 100 flip
    none and all, which the truncated normal alone would not.

    Args:
        labels: (N,) integers in 0..K-1, array or sequence, N >= 1.
        spec (`str` or `NoiseSpec`): the noise.
        num_classes (`int`): K >= 2.
        seed (`int`, *optional*, defaults to 0): >= 0. Different specs with one seed are independent of each other.
        images (*optional*): (N, ...) uint8, needed by `instance` and not looked at by the others.
        sampling (`str`, *optional*, defaults to `"quota"`): one of `SAMPLINGS`.
        contaminated (`bool`, *optional*, defaults to `False`): draw `semantic` noise, by quota, with the flips back
            of that code, from a stream of its own; the default is the exact noise.

    Returns:
        `np.ndarray`: (N,) int64 in 0..K-1.

    Raises:
        ValueError: bad spec, sampling, seed, shape or a label outside 0..K-1, or `contaminated` with a kind other than
            `semantic` or a sampling other than `"quota"`.
        TypeError: labels that are no integers, images that are not uint8, a seed that is no integer.
    """
    spec = NoiseSpec.parse(spec)
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling: unknown {sampling!r}; allowed are {', '.join(SAMPLINGS)}")
    if contaminated and (spec.kind != "semantic" or sampling != "quota"):
        raise ValueError(
            "contaminated: True is allowed with semantic_RR and sampling 'quota' alone, "
            f"got spec {spec} and sampling {sampling!r}"
        )
    _check_num_classes(num_classes)
    labels = check_labels("labels", labels, num_classes)
    generator = _generator(f"{spec} contaminated" if contaminated else str(spec), seed)
    if spec.kind == "instance":
        images = _check_images(images, len(labels))
        return _instance_labels(labels, images, spec.rate, num_classes, generator, sampling)
    matrix = transition_matrix(spec, num_classes)  # also refuses semantic noise on anything but 10 classes
    if contaminated:
        return _contaminated_labels(labels, float(spec.rate), generator)
    draw = {"quota": _quota_labels, "bernoulli": _bernoulli_labels}[sampling]
    return draw(labels, matrix, spec.rate, generator)


def realised_rate(clean, noisy) -> float:
    """The share of labels that differ, in [0, 1]. `clean` and `noisy`: (N,) integers, N >= 1."""
    clean, noisy = _check_pair(clean, noisy)
    return float(np.mean(clean != noisy))


def realised_matrix(clean, noisy, num_classes: int) -> np.ndarray:
    """Counts of (clean, noisy) label pairs, each row divided by its sum.

    A class without images has a row of the identity: nothing of it was flipped, and every row still sums to 1.

    Args:
        clean, noisy: (N,) integers in 0..K-1, N >= 1.
        num_classes (`int`): K >= 2.

    Returns:
        `np.ndarray`: (K, K) float64, rows (clean class) sum to 1.

    Raises:
        ValueError: different lengths, or a label outside 0..K-1.
    """
    _check_num_classes(num_classes)
    clean, noisy = _check_pair(clean, noisy)
    check_labels("clean", clean, num_classes)
    check_labels("noisy", noisy, num_classes)
    counts = np.bincount(clean * num_classes + noisy, minlength=num_classes**2).reshape(num_classes, num_classes)
    empty = counts.sum(axis=1) == 0
    counts[empty, empty] = 1
    return counts / counts.sum(axis=1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------- sampling


def _generator(name: str, seed: int) -> np.random.Generator:
    # The noise's canonical name is hashed (sha256: hash() differs from process to process), so that one seed gives
    # unrelated draws to different noises, and the same draws to one noise whatever was drawn before.
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed: expected an int >= 0, got {seed!r}")
    if seed < 0:
        raise ValueError(f"seed: expected an int >= 0, got {seed}")
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big"))))


def _quota(rate: float, count: int) -> int:
    return round(rate * count / 100)


def _quota_labels(labels, matrix, rate, generator):
    # (N,) int64, (K, K) -> (N,) int64. Every kind's row is uniform over its wrong targets, so equal shares are exact.
    noisy = labels.copy()
    for clean_class, row in enumerate(matrix):
        targets = np.flatnonzero(row)
        targets = targets[targets != clean_class]
        members = np.flatnonzero(labels == clean_class)
        if len(targets) == 0 or len(members) == 0:
            continue
        flips = _quota(rate, len(members))
        share, rest = divmod(flips, len(targets))
        wrong = np.concatenate([np.repeat(targets, share), generator.permutation(targets)[:rest]])
        noisy[generator.permutation(members)[:flips]] = wrong
    return noisy


def _contaminated_labels(labels, rate, generator):
    # (N,) int64 -> (N,) int64. Looking members up in noisy, not in labels, and rounding down are that code's doing.
    noisy = labels.copy()
    for source in CONTAMINATED_ORDER:
        members = np.flatnonzero(noisy == source)
        flips = int(rate / 100 * len(members))
        noisy[generator.permutation(members)[:flips]] = SEMANTIC_TARGETS[source]
    return noisy


def _bernoulli_labels(labels, matrix, rate, generator):
    # Inverse transform: the first class whose cumulative probability exceeds u in [0, 1). Divided by the row's sum,
    # which rounding leaves a bit beside 1, so that no u slips past the last class of probability > 0.
    cumulative = matrix.cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    uniform = generator.random(len(labels))
    return (uniform[:, None] >= cumulative[labels]).sum(axis=1)


def _instance_labels(labels, images, rate, num_classes, generator, sampling):
    # (N,) int64, (N, d) uint8 -> (N,) int64
    wrong = _instance_targets(labels, images, num_classes, generator)
    flip_rates = _flip_rates(rate / 100, len(labels), generator)
    uniform = generator.random(len(labels))
    if sampling == "bernoulli":
        return np.where(uniform < flip_rates, wrong, labels)

    # The odds ratio orders the images as logit(q) - logit(u) does, and needs no logarithm, whose last bit is the
    # platform's. At rates 0 and 100 it is 0, inf or nan, and the quota is none or all of them, in any order.
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = flip_rates * (1 - uniform) / (uniform * (1 - flip_rates))
    noisy = labels.copy()
    for clean_class in range(num_classes):
        members = np.flatnonzero(labels == clean_class)
        order = np.argsort(-odds[members], kind="stable")
        flipped = members[order[: _quota(rate, len(members))]]
        noisy[flipped] = wrong[flipped]
    return noisy


def _instance_weights(num_classes, num_pixels, generator):
    # -> (K, d, K) float64. Multiples of 2^-24 times pixels below 2^8, summed over up to 2^17 of them, fit float64's
    # 53 bits: the products x W are exact, hence the same in whatever order a BLAS adds, on any processor.
    return np.round(generator.standard_normal((num_classes, num_pixels, num_classes)) * 2**24) / 2**24


def _instance_targets(labels, images, num_classes, generator):
    # One wrong label for every image, from softmax(x W[y]) without y: Gumbel-max, that is argmax(logits + Gumbel).
    weights = _instance_weights(num_classes, images.shape[1], generator)
    gumbel = generator.gumbel(size=(len(labels), num_classes))
    wrong = labels.copy()
    for clean_class in range(num_classes):
        members = np.flatnonzero(labels == clean_class)
        logits = images[members].astype(np.float64) @ weights[clean_class] + gumbel[members]
        logits[:, clean_class] = -np.inf
        wrong[members] = logits.argmax(axis=1)
    return wrong


def _flip_rates(mean, count, generator):
    # (count,) from the normal(mean, 0.1) truncated to [0, 1], by rejection: at least half of each draw is kept.
    if mean in (0, 1):
        return np.full(count, float(mean))
    rates = generator.normal(mean, 0.1, count)
    while len(outside := np.flatnonzero((rates < 0) | (rates > 1))):
        rates[outside] = generator.normal(mean, 0.1, len(outside))
    return rates


# -------------------------------------------------------------------------------------------------- argument checks


def _check_num_classes(num_classes):
    if isinstance(num_classes, bool) or not isinstance(num_classes, Integral):
        raise TypeError(f"num_classes: expected an int >= 2, got {num_classes!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes: expected an int >= 2, got {num_classes}")


def _as_labels(name, labels) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"{name}: expected shape (N,) with N >= 1, got {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got dtype {labels.dtype}")
    return labels.astype(np.int64)


def check_labels(name: str, labels, num_classes: int) -> np.ndarray:
    """`labels` as (N,) int64, or an error that calls them `name`.

    Raises:
        ValueError: not one-dimensional, empty, or a value outside 0..K-1 (the first one and its position are named).
        TypeError: not integers.
    """
    labels = _as_labels(name, labels)
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise ValueError(
            f"{name}: expected values in 0..{num_classes - 1}, got {labels[outside[0]]} at position {outside[0]} "
            f"({len(outside)} of {len(labels)} are outside)"
        )
    return labels


def _check_pair(clean, noisy):
    clean, noisy = _as_labels("clean", clean), _as_labels("noisy", noisy)
    if len(clean) != len(noisy):
        raise ValueError(f"noisy: expected {len(clean)} labels, as many as clean, got {len(noisy)}")
    return clean, noisy


def _check_images(images, count) -> np.ndarray:
    if images is None:
        raise ValueError("images: instance noise depends on the pixels and needs a uint8 array (N, ...), got None")
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"images: expected dtype uint8 (raw pixels 0..255), got {images.dtype}")
    if images.ndim < 2 or len(images) != count:
        raise ValueError(f"images: expected shape ({count}, ...), one image for each label, got {images.shape}")
    pixels = math.prod(images.shape[1:])
    return images.reshape(count, pixels)
