"""What CMMD, FD and KID see: real images, made worse step by step, repeated, unbalanced, or few."""

import io
from collections.abc import Callable
from statistics import mean, stdev

import datasets
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm.auto import tqdm

from evaluate_metrics import LIBRARIES
from evaluate_metrics.core.density_coverage import density_coverage
from evaluate_metrics.core.encoders import Encoder
from evaluate_metrics.core.frechet import cubic_mmd, frechet_distance
from evaluate_metrics.core.mmd import cmmd
from evaluate_metrics.core.moments import Moments
from evaluate_metrics.core.precision_recall import precision_recall
from evaluate_metrics.scoring.evaluation import Evaluation, open_encoder
from hf_common.environment import hardware, versions
from hf_common.files import slug
from hf_common.tables import markdown_table

from .cells import cell_file, write_cell
from .study import Place

STUDY = "metrics"
PREDICTIONS, REFERENCES, REPEATS, SPLITS, SEED = 1000, 4000, 5, 40, 0
METRICS = {  # key -> name, colour, marker
    "cmmd": ("CMMD, biased as published", "#0072B2", "o"),
    "cmmd_unbiased": ("CMMD, unbiased", "#56B4E9", "s"),
    "fd": ("Fréchet distance", "#D55E00", "^"),
    "kid": ("KID", "#009E73", "D"),
}
SHARES_OF_BALLS = {  # the same of what falls where images are worse
    "precision": ("precision", "#CC79A7", "o"),
    "recall": ("recall", "#000000", "s"),
    "density": ("density", "#E69F00", "^"),
    "coverage": ("coverage", "#7F7F7F", "D"),
}
Draw = Callable[[int], Tensor]  # number of images -> so many embeddings of real images, drawn without repetition


def _blurred(image: Image.Image, radius: float, draw: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def noisy(image: Image.Image, deviation: float, draw: np.random.Generator) -> Image.Image:
    """The image with Gaussian noise of that standard deviation, in levels of 255."""
    pixels = np.asarray(image, dtype=np.float64) + draw.normal(0, deviation, (*image.size[::-1], 3))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def compressed(image: Image.Image, quality: float, draw: np.random.Generator) -> Image.Image:
    """The image as a JPEG of that quality gives it back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    return Image.open(file).convert("RGB")


DISTORTIONS = {
    "blur": ("Gaussian blur, radius in pixels", _blurred, [0.3, 0.5, 0.7, 1.0, 1.5]),
    "noise": ("Gaussian noise, s.d. in levels of 255", noisy, [2, 4, 8, 16, 32]),
    "jpeg": ("JPEG quality", compressed, [90, 70, 45, 25, 10]),
}
SHARES = [0.55, 0.6, 0.7, 0.85, 1.0]  # of the first half of the classes
DISTINCT = [500, 200, 100, 50, 20]  # images, each repeated
COUNTS = [500, 200, 100, 50, 20]
TITLES = {name: title for name, (title, *_) in DISTORTIONS.items()} | {
    "imbalance": "Share of five of the ten classes",
    "duplicates": f"Distinct images among {PREDICTIONS:,}",
    "few": "Images in all",
}
ENCODERS = ["resnet20_encoder:encode", "clip", "siglip", "align"]


def cell_name(encoder: str, kind: str) -> str:
    return f"{kind}-{encoder}"


CELLS = [cell_name(encoder, kind) for encoder in ENCODERS for kind in TITLES]


def run(place: Place) -> None:
    """Embed the images once, and score every kind that is missing of this machine's encoder."""
    encoder_name = place.sources.encoder
    missing = [kind for kind in TITLES if not cell_file(STUDY, cell_name(encoder_name, kind), place.results).exists()]
    if not missing:
        return
    rows = datasets.load_dataset(place.sources.cifar10, split=f"test[:{REFERENCES + PREDICTIONS * REPEATS}]")
    column = next(name for name, feature in rows.features.items() if isinstance(feature, datasets.Image))
    images, labels = [image.convert("RGB") for image in rows[column]], np.array(rows["label"])
    encoder = open_encoder(encoder_name, Evaluation(), torch.device("cpu"))
    bench = _Bench(encoder, images, labels)
    for kind in missing:
        write_cell(STUDY, cell_name(encoder_name, kind), bench.cell(kind, encoder_name), place.results)


class _Bench:
    """The embeddings of the real images, and what is scored against them."""

    def __init__(self, encoder: Encoder, images: list[Image.Image], labels: np.ndarray):
        self.encoder, self.images, self.labels = encoder, images, labels
        self.vectors = encoder.encode(tqdm(images, desc="real images"), 64)
        self.references = self.vectors[:REFERENCES]
        self.pool = np.arange(REFERENCES, len(images))
        self.reference_moments = _moments(self.references)

    def score(self, vectors: Tensor, seed: int) -> dict[str, float]:
        """Every metric of a set of embeddings; KID against as many references, drawn by the seed."""
        moments = _moments(vectors)
        found = cmmd(moments, self.reference_moments)
        drawn = torch.randperm(REFERENCES, generator=torch.Generator().manual_seed(seed))[: len(vectors)]
        return {
            "cmmd": found.biased,
            "cmmd_unbiased": found.unbiased,
            "fd": frechet_distance(moments, self.reference_moments, warn=False),
            "kid": cubic_mmd(vectors, self.references[drawn]),
            **precision_and_coverage(vectors, self.references),
        }

    def cell(self, kind: str, encoder: str) -> dict:
        """The scores of a kind: a row a level and repeat, beside those of untouched images."""
        draw = np.random.default_rng(SEED)
        splits = [self.score(self.vectors[draw.permutation(self.pool)[:PREDICTIONS]], seed) for seed in range(SPLITS)]
        rows = [
            {"level": level, "repeat": repeat, **self.score(vectors, repeat)}
            for level, repeat, vectors in self._sets(kind)
        ]
        settings = {
            "kind": kind, "seed": SEED, "encoder": encoder, "predictions": PREDICTIONS, "references": REFERENCES,
        }  # fmt: skip
        facts = {"hardware": hardware(torch.device("cpu")), "versions": versions(LIBRARIES)}
        return {"settings": settings, "real": splits, "rows": rows, **facts}

    def _sets(self, kind: str):
        """(level, repeat, embeddings) of a kind; repeats of a distortion are disjoint sets of images."""
        draw = np.random.default_rng(SEED + 1)
        for repeat in range(REPEATS):
            own = self.pool[repeat * PREDICTIONS : (repeat + 1) * PREDICTIONS]
            if kind in DISTORTIONS:
                _, distort, levels = DISTORTIONS[kind]
                for level in levels:
                    worse = [distort(self.images[place], level, draw) for place in own]
                    yield level, repeat, self.encoder.encode(worse, 64)
            elif kind == "imbalance":
                of_first = self.labels[self.pool] < 5
                halves = [draw.permutation(self.pool[of_first]), draw.permutation(self.pool[~of_first])]
                for share in SHARES:
                    count = round(share * PREDICTIONS)
                    yield share, repeat, self.vectors[np.r_[halves[0][:count], halves[1][: PREDICTIONS - count]]]
            elif kind == "duplicates":
                for distinct in DISTINCT:
                    few = draw.permutation(self.pool)[:distinct]
                    yield distinct, repeat, self.vectors[np.resize(few, PREDICTIONS)]
            else:
                for count in COUNTS:
                    yield count, repeat, self.vectors[draw.permutation(self.pool)[:count]]


def precision_and_coverage(vectors: Tensor, references: Tensor) -> dict[str, float]:
    """`precision`, `recall` (k = 3), `density`, `coverage` (k = 5), each with `<name>_error`, a standard error."""
    near, dense = precision_recall(vectors, references), density_coverage(vectors, references)
    return {
        "precision": near.precision, "precision_error": near.precision_error,
        "recall": near.recall, "recall_error": near.recall_error,
        "density": dense.density, "density_error": dense.density_error,
        "coverage": dense.coverage, "coverage_error": dense.coverage_error,
    }  # fmt: skip


def _moments(vectors: Tensor) -> Moments:
    return Moments.zeros(vectors.shape[1]).update(vectors)


def standardised(cell: dict) -> dict[str, dict[float, list[float]]]:
    """By metric and level: how many standard deviations of untouched sets a set is worse than their mean."""
    found: dict[str, dict[float, list[float]]] = {}
    for metric in [*METRICS, *SHARES_OF_BALLS]:
        real = [split[metric] for split in cell["real"]]
        for row in cell["rows"]:
            value = (row[metric] - mean(real)) / stdev(real) * (1 if metric in METRICS else -1)
            found.setdefault(metric, {}).setdefault(row["level"], []).append(value)
    return found


def _by_encoder(cells: list[dict]) -> dict[str, list[dict]]:
    """Cells of each encoder, in the order of the kinds."""
    found: dict[str, list[dict]] = {}
    for cell in sorted(cells, key=lambda cell: list(TITLES).index(cell["settings"]["kind"])):
        found.setdefault(cell["settings"]["encoder"], []).append(cell)
    return found


def figures(cells: list[dict]) -> dict[str, Figure]:
    """Two figures for each encoder, of distances and of shares."""
    return {
        f"metric_sensitivity_{of}{slug(name)}": _figure(found, metrics)
        for name, found in _by_encoder(cells).items()
        for of, metrics in (("", METRICS), ("shares_", SHARES_OF_BALLS))
    }


def _figure(cells: list[dict], metrics: dict[str, tuple[str, str, str]]) -> Figure:
    """A panel a kind; the mean of the repeats and their range."""
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(0.6 + 3.2 * columns, 0.8 + 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(cells) :]:
        axes.set_axis_off()
    for axes, cell in zip(panels.flat, cells, strict=False):
        scores = standardised(cell)
        for metric, (name, colour, marker) in metrics.items():
            levels = scores[metric]
            places, means = range(len(levels)), [mean(values) for values in levels.values()]
            axes.plot(places, means, color=colour, marker=marker, markersize=4, label=name)
            lowest, highest = [min(v) for v in levels.values()], [max(v) for v in levels.values()]
            axes.fill_between(places, lowest, highest, color=colour, alpha=0.2, linewidth=0)
        axes.axhspan(-2, 2, color="0.92", zorder=0)
        axes.set_yscale("symlog", linthresh=2)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.set_xlabel(TITLES[cell["settings"]["kind"]])
        axes.grid(color="0.9", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("Standard deviations worse than real images", fontsize="medium")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, frameon=False)
    return figure


def paragraph(cells: dict[str, list[dict]]) -> str:
    """A part for each encoder, and how those that are missing are made."""
    found = _by_encoder(cells[STUDY])
    missing = [name for name in ENCODERS if name not in found]
    commands = ", ".join(f"`python scripts/studies.py --run {STUDY} --encoder {name}`" for name in missing)
    rest = [f"Not here, for want of their weights: {commands}."] if missing else []
    return "\n\n".join([*map(_part, found.values()), *rest])


def _part(cells: list[dict]) -> str:
    """Table and text of one encoder."""
    first = cells[0]["settings"]
    text = (
        f"{first['predictions']:,} CIFAR-10 test images against {first['references']:,} others, in the features of "
        f"`{first['encoder']}`. Scores are told in standard deviations of {SPLITS} sets of untouched images: below 2, "
        f"in grey, a set cannot be told from real ones. Means and ranges of {REPEATS} repeats; the last two kinds are "
        "real images, alone repeated or few. Distances are worse when they are larger, the other scores when they are "
        "smaller."
    )
    rows = []
    for cell in cells:
        scores = standardised(cell)
        seen = []
        for metric in [*METRICS, *SHARES_OF_BALLS]:
            level = next((level for level, values in scores[metric].items() if min(values) > 2), None)
            strongest = list(scores[metric].values())[-1]
            seen.append(f"{'never' if level is None else f'{level:g}'} ({mean(strongest):,.0f})")
        rows.append([TITLES[cell["settings"]["kind"]], *seen])
    heads = ["made worse by", *(name for name, *_ in [*METRICS.values(), *SHARES_OF_BALLS.values()])]
    note = "First level that every repeat shows by more than 2 (and the mean at the strongest level)."
    return f"{text}\n\n{markdown_table(heads, rows)}\n\n{note}"
