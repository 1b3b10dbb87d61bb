"""The Space: two sets of images in, FID and KID out.

    python app.py

INCEPTION_WEIGHTS and INCEPTION_SHA256 name a file or URL of the network's weights and its digest, where they are not
to be downloaded from their first address.
"""

import os
import tempfile
import warnings
from pathlib import Path

import evaluate
import gradio as gr
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

LARGEST_SUBSET, SUBSETS = 1000, 10  # of the KID
TEXT = """# FID
How far is a set of generated images from a set of real ones? The Frechet Inception Distance
([Heusel et al. 2017](https://arxiv.org/abs/1706.08500)) and the kernel distance KID
([Binkowski et al. 2018](https://arxiv.org/abs/1801.01401)) of their Inception embeddings, 0 for one and the same
distribution. **The FID of a few images is far too high**: published values are of 10,000 to 50,000, and below 2,049
its covariances are singular. The KID has no such bias, and may be below 0. The first call loads the network."""


def score(metric: evaluate.Metric, predictions: list | None, references: list | None) -> tuple[list[list[str]], str]:
    """Rows of name and value, and what is to be known of them. Each set is pairs of path and caption."""
    sets = {"generated": predictions, "real": references}
    few = [name for name, images in sets.items() if len(images or []) < 2]
    if few:
        raise gr.Error(f"Add two {' and two '.join(few)} images or more first.")
    paths = {name: [path for path, _ in images] for name, images in sets.items()}
    subset = max(2, min(LARGEST_SUBSET, *(len(of_set) // 2 for of_set in paths.values())))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            result = metric.compute(
                predictions=paths["generated"],
                references=paths["real"],
                kid_subsets=SUBSETS,
                kid_subset_size=subset,
            )
    except (OSError, ValueError) as error:
        raise gr.Error(str(error)) from error
    rows = [
        ["FID", f"{result['frechet_distance']:.4g}"],
        ["KID", f"{result['kid']:.4g} ± {result['kid_std']:.2g} ({SUBSETS} subsets of {subset})"],
        ["generated images", str(result["n_predictions"])],
        ["real images", str(result["n_references"])],
        ["resizing", result["preprocessing"]],
    ]
    return rows, " ".join(f"Note: {w.message}." for w in caught if "Frechet" in str(w.message))


def example_sets(folder: Path) -> list[list[list[str]]]:
    """Three pairs of sets of drawn images: one distribution, the first set blurred, squares for discs."""
    discs, others = drawings("ellipse", 0), drawings("ellipse", 1)
    sets = {
        "same": discs,
        "blurred": [image.filter(ImageFilter.GaussianBlur(3)) for image in discs],
        "squares": drawings("rectangle", 2),
        "references": others,
    }
    for name, images in sets.items():
        for number, image in enumerate(images):
            image.save(folder / f"{name}-{number:02}.png")
    found = {name: [str(path) for path in sorted(folder.glob(f"{name}-*.png"))] for name in sets}
    return [[found[name], found["references"]] for name in ("same", "blurred", "squares")]


def drawings(shape: str, seed: int, images: int = 24) -> list[Image.Image]:
    """One shape of random place, size and colour on a ground of random colour, 64 x 64."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(images):
        ground, colour = (tuple(rng.integers(0, 256, 3).tolist()) for _ in range(2))
        x, y, side = rng.integers((0, 0, 24), (24, 24, 40)).tolist()
        image = Image.new("RGB", (64, 64), ground)
        getattr(ImageDraw.Draw(image), shape)((x, y, x + side, y + side), fill=colour)
        found.append(image)
    return found


def build(metrics: dict[str, evaluate.Metric], folder: Path) -> gr.Blocks:
    """The page, for metrics by the name of their choice; the example sets are written to `folder`."""
    with gr.Blocks(title="FID") as page:
        gr.Markdown(TEXT)
        with gr.Row():
            predictions, references = (
                gr.Gallery(label=f"{name} images", file_types=["image"], columns=5, height=320, interactive=True)
                for name in ("Generated", "Real")
            )
        resizing = gr.Radio(
            list(metrics),
            value=next(iter(metrics)),
            label="Resizing",
            info="tensorflow: as first published; pytorch: as pytorch-fid; clean: as clean-fid",
        )
        button = gr.Button("Compare", variant="primary")
        table = gr.Dataframe(headers=["score", "value"], interactive=False, label="Scores", wrap=True)
        note = gr.Markdown()
        gr.Examples(
            example_sets(folder),
            [predictions, references],
            example_labels=["one distribution", "generated images blurred", "squares for discs"],
        )
        button.click(
            lambda name, *sets: score(metrics[name], *sets),
            [resizing, predictions, references],
            [table, note],
            api_name="score",
        )
    return page


if __name__ == "__main__":
    script, options = str(Path(__file__).with_name("fid.py")), {"keep_embeddings": True}
    if "INCEPTION_WEIGHTS" in os.environ:
        options |= {"weights": os.environ["INCEPTION_WEIGHTS"], "sha256": os.environ["INCEPTION_SHA256"]}
    with tempfile.TemporaryDirectory() as folder:
        names = ("tensorflow", "pytorch", "clean")
        page = build({name: evaluate.load(script, name, **options) for name in names}, Path(folder))
        page.launch(allowed_paths=[folder])
