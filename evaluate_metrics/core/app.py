"""The page of a metric's Space: two sets of images in, their scores out. Of the core it alone needs gradio."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Gallery = list[tuple[str, str | None]] | None  # path and caption of each image, as `gr.Gallery` gives them


def score_galleries(
    metric: evaluate.Metric, predictions: Gallery, references: Gallery, two_each: bool = False, **options: Any
) -> dict:
    """What `metric` computes, with these options; what is wrong is a `gr.Error`.

    Args:
        two_each: whether a set needs two images.
    """
    sets = {"generated": predictions, "real": references}
    few = [name for name, images in sets.items() if len(images or []) < 1 + two_each]
    if few and two_each:
        raise gr.Error(f"Add two {' and two '.join(few)} images or more first.")
    if few:
        raise gr.Error(f"Add {' and '.join(few)} images first.")
    paths = {name: [path for path, _ in images or ()] for name, images in sets.items()}
    try:
        return metric.compute(predictions=paths["generated"], references=paths["real"], **options)
    except (OSError, ValueError) as error:
        raise gr.Error(str(error)) from error


def shown(value: float | int | str | None) -> str:
    """A score as a cell of the table."""
    if value is None:
        return "needs more images"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def example_sets(folder: Path) -> list[list[list[str]]]:
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
    return [[found[name], found["references"]] for name in ("same", "blurred", "other")]


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
    metrics: Mapping[str, evaluate.Metric],
    folder: Path,
    *,
    title: str,
    text: str,
    choice: Mapping[str, str],
    score: Callable,
    notes: bool = False,
) -> gr.Blocks:
    """The page, for metrics by the name of their choice; the example sets are written to `folder`.

    Args:
        text: Markdown, the head of the page.
        choice: `label`, and `info` if any, of the choice between the metrics.
        score: of a metric and two galleries the rows of the table, name and value; with `notes` these and a Markdown
            text, which is shown below.
    """
    with gr.Blocks(title=title) as page:
        gr.Markdown(text)
        with gr.Row():
            galleries = [
                gr.Gallery(label=f"{name} images", file_types=["image"], columns=5, height=320, interactive=True)
                for name in ("Generated", "Real")
            ]
        chosen = gr.Radio(list(metrics), value=next(iter(metrics)), **choice)
        button = gr.Button("Compare", variant="primary")
        outputs = [gr.Dataframe(headers=["score", "value"], interactive=False, label="Scores", wrap=True)]
        if notes:
            outputs.append(gr.Markdown())
        labels = ["one distribution", "generated images blurred", "other shapes"]
        gr.Examples(example_sets(folder), galleries, example_labels=labels)
        button.click(lambda name, *sets: score(metrics[name], *sets), [chosen, *galleries], outputs, api_name="score")
    return page


def launch_page(metrics: Mapping[str, evaluate.Metric], **page: Any) -> None:
    """Serve [`build_page`] until it is stopped."""
    with tempfile.TemporaryDirectory() as folder:
        build_page(metrics, Path(folder), **page).launch(allowed_paths=[folder])
