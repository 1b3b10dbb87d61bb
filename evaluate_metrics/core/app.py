"""The page of a metric's Space: two sets of images in, their scores out. Of the core it alone needs gradio."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Gallery = list[tuple[str, str | None]] | None  # path and caption of each image, as `gr.Gallery` gives them
TINY = "tiny, for trying out"  # the name of the choice whose encoder is [`tiny_features`]
STATISTICS = [".safetensors", ".npz", ".npy", ".pt"]
# More columns than a narrow window has room for would push the page wider than it.
CSS = ".grid-container {grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)) !important}"


class WatchedPaths(Sequence):
    """Paths of images that tell how far they have been read.

    Args:
        watch: called with (read, of all) and, as `desc`, what the images are: a `gr.Progress`.
    """

    def __init__(self, paths: Sequence[str], name: str, watch: Callable):
        self._paths, self._name, self._watch = paths, name, watch

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: Any) -> Any:
        return self._paths[number]

    def __iter__(self) -> Iterator[str]:
        for number, path in enumerate(self._paths):
            self._watch((number, len(self)), desc=f"Reading {self._name} images", unit="images")
            yield path
        self._watch((len(self), len(self)), desc="Scoring", unit="images")


def score_galleries(
    metric: evaluate.Metric,
    predictions: Gallery,
    references: Gallery,
    statistics: str | None = None,
    *,
    watch: Callable = lambda *_, **__: None,
    two_each: bool = False,
    **options: Any,
) -> dict:
    """What `metric` computes, with these options; what is wrong is a `gr.Error`.

    Args:
        statistics: a file in place of the real images, as `compute` takes it for `reference_moments`.
        watch: see [`WatchedPaths`].
        two_each: whether a set needs two images.
    """
    if references and statistics is not None:
        raise gr.Error("Give real images or a file of their statistics, not both.")
    sets = {"generated": predictions} | ({"real": references} if statistics is None else {})
    few = [name for name, images in sets.items() if len(images or []) < 1 + two_each]
    if few and two_each:
        raise gr.Error(f"Add two {' and two '.join(few)} images or more first.")
    if few:
        raise gr.Error(f"Add {' and '.join(few)} images first.")
    watched = {name: WatchedPaths([path for path, _ in images or ()], name, watch) for name, images in sets.items()}
    real = {"reference_moments": statistics} if statistics is not None else {"references": watched["real"]}
    try:
        return metric.compute(predictions=watched["generated"], **real, **options)
    except (OSError, TypeError, ValueError) as error:
        raise gr.Error(str(error)) from error


NO_NUMBER = "the file does not say"  # of how many images it is


def shown(value: float | int | str | None, lacking: str = "needs more images") -> str:
    """A score as a cell of the table; `lacking` where there is none."""
    if value is None:
        return lacking
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def example_sets(folder: Path) -> list[tuple[list[str], list[str]]]:
    """Three pairs of sets of drawn images: one distribution, the first set blurred, other shapes."""
    circles, more = (drawings(ImageDraw.ImageDraw.ellipse, seed) for seed in (0, 1))
    sets = {
        "same": circles,
        "blurred": [image.filter(ImageFilter.GaussianBlur(3)) for image in circles],
        "other": drawings(ImageDraw.ImageDraw.rectangle, 2),
        "references": more,
    }
    paths = {name: [folder / f"{name}-{i:02}.png" for i in range(len(images))] for name, images in sets.items()}
    for name, images in sets.items():
        for image, path in zip(images, paths[name], strict=True):
            image.save(path)
    found = {name: [str(path) for path in of_set] for name, of_set in paths.items()}
    return [(found[name], found["references"]) for name in ("same", "blurred", "other")]


def drawings(shape: Callable, seed: int, images: int = 16) -> list[Image.Image]:
    """Six shapes of random place, size and colour on a light ground, 96 x 96."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        image = Image.new("RGB", (96, 96), tuple(draw.integers(150, 256, 3).tolist()))
        for _ in range(6):
            corner, size = draw.integers(0, 70, 2), draw.integers(10, 40, 2)
            colour = tuple(draw.integers(0, 200, 3).tolist())
            shape(ImageDraw.Draw(image), [*corner.tolist(), *(corner + size).tolist()], fill=colour)
        found.append(image)
    return found


def build_page(
    metrics: Mapping[str, Any],
    folder: Path,
    *,
    title: str,
    text: str,
    choice: Mapping[str, Any],
    score: Callable,
    notes: bool = False,
) -> gr.Blocks:
    """The page; example sets are written to `folder`.

    Args:
        metrics: what `score` takes first, by the name of its choice, `TINY` among them.
        text: Markdown, the head of the page.
        choice: `label`, and `info` if any, of the choice between the metrics.
        score: of one of these, two galleries, a file of statistics or None and, as `watch`, what is told of the
            progress: the rows of the table, name and value; with `notes` these and a Markdown text, shown below.
    """

    def answer(
        name: str,
        predictions: Gallery,
        references: Gallery,
        statistics: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for one among the defaults
    ) -> Any:
        progress(0, desc="Loading the encoder")
        return score(metrics[name], predictions, references, statistics, watch=progress)

    with gr.Blocks(title=title) as page:
        gr.Markdown(text)
        with gr.Row():
            galleries = [_gallery(f"{name} images") for name in ("Generated", "Real")]
        statistics = gr.File(
            label="or, instead of real images, a file of their statistics", file_types=STATISTICS, height=140
        )
        chosen = gr.Radio(list(metrics), value=next(iter(metrics)), **choice)
        button = gr.Button("Compare", variant="primary")
        size: Any = {"column_widths": ["45%", "55%"], "wrap": True, "max_height": 1000}  # whole in narrow windows
        outputs: list = [gr.Dataframe(headers=["score", "value"], interactive=False, label="Scores", **size)]
        if notes:
            outputs.append(gr.Markdown())
        labels = ["one distribution", "generated images blurred", "other shapes"]
        examples = [[*pair, TINY] for pair in example_sets(folder)]
        gr.Examples(
            examples, [*galleries, chosen], example_labels=labels, label="Examples: drawings, and the tiny encoder"
        )
        button.click(answer, [chosen, *galleries, statistics], outputs, api_name="score")
    return page


def _gallery(label: str) -> "gr.Gallery":
    """One to be filled; those of a row stand one below the other in a narrow window."""
    with gr.Column(min_width=240):
        return gr.Gallery(label=label, file_types=["image"], columns=3, height=320, interactive=True, format="png")


def launch_page(metrics: Mapping[str, Any], **page: Any) -> None:
    """Serve [`build_page`] until it is stopped."""
    with tempfile.TemporaryDirectory() as folder:
        build_page(metrics, Path(folder), **page).launch(allowed_paths=[folder], css=CSS)
