"""Which score sees what: a test split as it is, and made worse in four ways, against its training split."""

import datasets
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from evaluate_metrics import LIBRARIES
from evaluate_metrics.core.density_coverage import density_coverage
from evaluate_metrics.core.frechet import frechet_distance, frechet_distance_at_infinity, kernel_distance
from evaluate_metrics.core.inception_score import inception_score
from evaluate_metrics.core.mmd import cmmd, permutation_test
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.core.precision_recall import precision_recall
from evaluate_metrics.scoring.evaluation import Evaluation, open_encoder
from hf_common.environment import hardware, versions
from hf_common.tables import markdown_table

from .cells import cell_file, write_cell
from .metrics import compressed, noisy
from .study import Place

STUDY, SEED = "scores", 0
PARTS, PART, REFERENCES = 10, 1000, 10_000  # disjoint sets of predictions, for the errors, against fewer references
QUALITY, DEVIATION, MISSING, COPIES = 30, 8, 0, 1000
REAL = "real"
SETS = {
    REAL: "the test split",
    "jpeg": f"JPEG of quality {QUALITY}",
    "noise": f"Gaussian noise, s.d. {DEVIATION} of 255",
    "class": "without one of the ten classes",
    "copies": f"{COPIES:,} of them copies of one image",
}
CELLS = list(SETS)
SCORES = {  # key -> title, digits, whether more is better
    "cmmd": ("CMMD", 4, False),
    "cmmd_unbiased": ("CMMD, unbiased", 4, False),
    "fd": ("Fréchet distance", 4, False),
    "fd_infinity": ("its limit", 4, False),
    "kid": ("KID x 1,000", 4, False),
    "precision": ("precision", 3, True),
    "recall": ("recall", 3, True),
    "density": ("density", 3, True),
    "coverage": ("coverage", 3, True),
    "classifier_score": ("classifier score", 2, True),
}
COLOURS = {
    "cmmd": "#0072B2", "cmmd_unbiased": "#56B4E9", "fd": "#D55E00", "fd_infinity": "#E69F00", "kid": "#009E73",
    "precision": "#CC79A7", "recall": "#000000", "density": "#8C564B", "coverage": "#7F7F7F",
    "classifier_score": "#F0E442",
}  # fmt: skip


def run(place: Place) -> None:
    """Embed both splits once, and score every set that is missing."""
    missing = [name for name in SETS if not cell_file(STUDY, name, place.results).exists()]
    if not missing:
        return
    encoder = open_encoder(place.sources.encoder, Evaluation(), torch.device("cpu"))
    references = encoder.encode(tqdm(_images(place, "train")[0], desc="training images"), 64)
    head = _class_directions(references, _images(place, "train")[1])
    images, labels = _images(place, "test")
    for name in missing:
        made = _made(name, images, labels)
        vectors = encoder.encode(tqdm(made, desc=SETS[name]), 64)
        parts = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(SEED))].split(PART)
        content = {
            "settings": {
                "set": name, "seed": SEED, "encoder": place.sources.encoder, "predictions": len(vectors),
                "references": len(references), "part": PART,
            },
            "whole": _scores(vectors, references, head, whole=True),
            "parts": [_scores(part, references[:REFERENCES], head) for part in parts[:PARTS] if len(part) == PART],
            "p_value": permutation_test(parts[0], references[:PART], permutations=999, seed=SEED).p_value,
            "hardware": hardware(torch.device("cpu")),
            "versions": versions(LIBRARIES),
        }  # fmt: skip
        write_cell(STUDY, name, content, place.results)


def _images(place: Place, split: str) -> tuple[list[Image.Image], np.ndarray]:
    rows = datasets.load_dataset(place.sources.cifar10, split=split)
    column = next(name for name, feature in rows.features.items() if isinstance(feature, datasets.Image))
    return [image.convert("RGB") for image in rows[column]], np.array(rows["label"])


def _made(name: str, images: list[Image.Image], labels: np.ndarray) -> list[Image.Image]:
    """The images of a set."""
    draw = np.random.default_rng(SEED)
    if name == "jpeg":
        return [compressed(image, QUALITY, draw) for image in images]
    if name == "noise":
        return [noisy(image, DEVIATION, draw) for image in images]
    if name == "class":
        return [image for image, label in zip(images, labels, strict=True) if label != MISSING]
    if name == "copies":
        chosen = draw.permutation(len(images))
        places = np.where(np.isin(np.arange(len(images)), chosen[:COPIES]), chosen[0], np.arange(len(images)))
        return [images[number] for number in places]
    return images


def _class_directions(vectors: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
    """(classes, d): logits of a unit vector from the training classes' mean directions, in place of a network's."""
    means = torch.stack([vectors[labels == label].mean(0) for label in np.unique(labels)])
    return 20 * torch.nn.functional.normalize(means)  # the factor makes a share of 1 of the nearest of them


def _scores(x: torch.Tensor, y: torch.Tensor, head: torch.Tensor, whole: bool = False) -> dict[str, float | None]:
    moments, references = Moments.zeros(x.shape[1]).update(x), Moments.zeros(y.shape[1]).update(y)
    found, neighbours, dense = cmmd(moments, references), precision_recall(x, y), density_coverage(x, y)
    return {
        "cmmd": found.biased,
        "cmmd_unbiased": found.unbiased,
        "fd": frechet_distance(moments, references, warn=False),
        "fd_infinity": frechet_distance_at_infinity(x, references, seed=SEED).value,
        "kid": 1000 * kernel_distance(x, y, 100 if whole else 10, PART if whole else PART // 2, SEED)[0],
        "precision": neighbours.precision,
        "recall": neighbours.recall,
        "density": dense.density,
        "coverage": dense.coverage,
        "classifier_score": inception_score(x @ head.T, 10 if whole else 1).mean,
    }


def differences(cells: list[dict]) -> dict[str, dict[str, tuple[float, float]]]:
    """By set and score: how much worse than untouched images, and its standard error, in s.d. of untouched parts."""
    by_set = {cell["settings"]["set"]: cell["parts"] for cell in cells}
    real = by_set.get(REAL)
    if real is None:
        return {}
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for name in (name for name in SETS if name in by_set and name != REAL):
        for key, (_, _, more_is_better) in SCORES.items():
            one, other = (np.array([part[key] for part in parts]) for parts in (by_set[name], real))
            unit = other.std(ddof=1)
            error = (one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)) ** 0.5 / unit
            worse = (other.mean() - one.mean() if more_is_better else one.mean() - other.mean()) / unit
            found.setdefault(name, {})[key] = float(worse), float(error)
    return found


def figures(cells: list[dict]) -> dict[str, Figure]:
    """A panel a set: how much worse each score finds it."""
    found = differences(cells)
    if not found:
        return {}
    figure = Figure(figsize=(0.6 + 2.4 * len(found), 4.2), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (name, scores) in zip(panels, found.items(), strict=True):
        for place, (key, (worse, error)) in enumerate(scores.items()):
            axes.barh(place, worse, xerr=2 * error, color=COLOURS[key], edgecolor="0.3", linewidth=0.5, capsize=2)
        axes.axvspan(-2, 2, color="0.92", zorder=0)
        axes.set_xscale("symlog", linthresh=2)
        ticks = [tick for tick in (-100, -10, -1, 0, 1, 10, 100) if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_title(SETS[name], fontsize="medium", wrap=True)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="0.85", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(SCORES)), [title for title, *_ in SCORES.values()])
    panels[0].invert_yaxis()
    figure.supxlabel(f"Worse than untouched images, in s.d. of sets of {PART:,}; bars: two standard errors")
    return {STUDY: figure}


def paragraph(cells: dict[str, list[dict]]) -> str:
    """Table and text."""
    own = sorted(cells[STUDY], key=lambda cell: CELLS.index(cell["settings"]["set"]))
    first = own[0]["settings"]
    text = (
        f"CIFAR-10's test images against all {first['references']:,} training images, in the features of "
        f"`{first['encoder']}`: as they are, and made worse in four ways. The classifier score is the formula of the "
        "Inception Score on the nearness to the mean direction of each training class. The p-value is of the "
        f"permutation test of {first['part']:,} of them and {first['part']:,} training images."
    )
    heads = ["test images", "n", *(title for title, *_ in SCORES.values()), "p-value"]
    rows = [
        [
            SETS[cell["settings"]["set"]],
            f"{cell['settings']['predictions']:,}",
            *(f"{cell['whole'][key]:.{digits}f}" for key, (_, digits, _) in SCORES.items()),
            f"{cell['p_value']:.3f}",
        ]
        for cell in own
    ]
    return f"{text}\n\n{markdown_table(heads, rows)}\n\n{_seen(differences(own))}"


def _seen(found: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Which scores find a set worse by more than two s.d. of untouched parts, and which find it better."""
    said = []
    for name, scores in found.items():
        worse = [SCORES[key][0] for key, (value, error) in scores.items() if value > 2 and value > 2 * error]
        better = [SCORES[key][0] for key, (value, error) in scores.items() if value < -2 and value < -2 * error]
        unseen = [SCORES[key][0] for key in scores if SCORES[key][0] not in worse]
        words = f"- {SETS[name]}: seen by {_listed(worse, unseen)}"
        said.append(words + (f"; taken for better by {'; '.join(better)}" if better else ""))
    head = f"Worse by more than two standard deviations of untouched sets of {PART:,}:"
    return "\n".join([head, "", *said]) if said else ""


def _listed(worse: list[str], unseen: list[str]) -> str:
    if not worse or not unseen:
        return "all" if worse else "none"
    return f"all but {'; '.join(unseen)}" if len(unseen) < len(worse) else "; ".join(worse)
