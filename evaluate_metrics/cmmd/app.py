"""The Space: two sets of images in, their scores out."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import evaluate
import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SCORES = {
    "cmmd": "CMMD",
    "cmmd_unbiased": "CMMD, unbiased",
    "standard_error": "standard error",
    "error_bound": "error bound",
    "frechet_distance": "Fréchet distance",
    "n_predictions": "generated images",
    "n_references": "real images",
    "encoder": "encoder",
}
TEXT = """# CMMD
How far is a set of generated images from a set of real ones? The squared maximum mean discrepancy of their embeddings
([Jayasumana et al. 2024](https://arxiv.org/abs/2401.09603)), 0 for one and the same distribution. The unbiased value
is the one to read for small sets; differences below about two standard errors mean nothing. Values of different
encoders cannot be compared. The first call loads the encoder."""


def score(metric: evaluate.Metric, predictions: list | None, references: list | None) -> list[list[str]]:
    """Rows of name and value. Each set is what a `gr.Gallery` holds: pairs of path and caption."""
    sets = {"generated": predictions, "real": references}
    empty = [name for name, images in sets.items() if not images]
    if empty:
        raise gr.Error(f"Add {' and '.join(empty)} images first.")
    paths = {name: [path for path, _ in images] for name, images in sets.items()}
    try:
        result = metric.compute(predictions=paths["generated"], references=paths["real"])
    except (OSError, ValueError) as error:
        raise gr.Error(str(error)) from error
    return [[label, shown(result[key])] for key, label in SCORES.items()]


def shown(value: float | int | str | None) -> str:
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
    paths = {name: [folder / f"{name}-{i}.png" for i in range(len(images))] for name, images in sets.items()}
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


def build(metrics: dict[str, evaluate.Metric], folder: Path) -> gr.Blocks:
    """The page, for metrics by the name of their choice; the example sets are written to `folder`."""
    with gr.Blocks(title="CMMD") as page:
        gr.Markdown(TEXT)
        with gr.Row():
            predictions, references = (
                gr.Gallery(label=f"{name} images", file_types=["image"], columns=5, height=320, interactive=True)
                for name in ("Generated", "Real")
            )
        encoder = gr.Radio(list(metrics), value=next(iter(metrics)), label="Encoder")
        button = gr.Button("Compare", variant="primary")
        table = gr.Dataframe(headers=["score", "value"], interactive=False, label="Scores")
        gr.Examples(
            example_sets(folder),
            [predictions, references],
            example_labels=["one distribution", "generated images blurred", "other shapes"],
        )
        button.click(
            lambda name, *sets: score(metrics[name], *sets),
            [encoder, predictions, references],
            table,
            api_name="score",
        )
    return page


if __name__ == "__main__":
    script = str(Path(__file__).with_name("cmmd.py"))
    with tempfile.TemporaryDirectory() as folder:
        page = build({name: evaluate.load(script, name) for name in ("clip", "siglip", "align")}, Path(folder))
        page.launch(allowed_paths=[folder])
