"""What was found to be wrong: as rows, as a table, as pictures, and as a data set without it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from ..data.features import picture
from ..data.labelled import LabelledSamples, LabelledSplits
from ..data.load import ImageSplits
from ..data.text import LabelledTexts
from ..reports.contact_sheet import Suspect

CLEANED = ("drop", "relabel")
SHARD = 5000  # images of a Parquet file


def found_rows(splits: LabelledSplits, probabilities: np.ndarray, issues: np.ndarray) -> list[dict]:
    """One row an issue, in their order; `file` or `text` as the samples are described, `is_flipped` where the truth is
    known.

    Args:
        probabilities: (N, K), of all training samples.
        issues: (n,), places of labels that look wrong, the most suspicious first.
    """
    train, names = splits.train, splits.label_names
    given, clean = train.given_and_clean()
    rows = []
    for rank, place in enumerate(issues.tolist(), 1):
        row = {
            "rank": rank,
            "index": place,
            **train.described(place),
            "given_label": names[given[place]],
            "suggested_label": names[int(probabilities[place].argmax())],
            "self_confidence": float(probabilities[place, given[place]]),
            "suggested_confidence": float(probabilities[place].max()),
        }
        if clean is not None:
            row["is_flipped"] = bool(given[place] != clean[place])
        rows.append(row)
    if all(row.get("file", "") is None for row in rows):
        for row in rows:
            del row["file"]
    return rows


def rows_csv(rows: Sequence[dict]) -> str:
    """The rows as CSV, with a head; empty without rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}
            for row in rows
        )
    return text.getvalue()


def suspects(splits: ImageSplits, rows: Sequence[dict]) -> list[Suspect]:
    """What a contact sheet shows of these rows."""
    return [
        Suspect(
            splits.train.pixels(row["index"]).numpy(),
            row["given_label"],
            row["suggested_label"],
            row["self_confidence"],
            Path(row["file"]).name if row.get("file") else f"image {row['index']}",
        )
        for row in rows
    ]


def save_cleaned_samples(
    splits: LabelledSplits, probabilities: np.ndarray, issues: np.ndarray, folder: Path, how: str
) -> None:
    """Write the training samples as a data set of Parquet files, without the issues or with other labels.

    Files keep their bytes; images that were made in memory become PNG. Texts keep the names of their columns. `label`
    is the label to train on, `given_label` what it was, `index` the place in the data set that was read.
    """
    given = splits.train.labels.numpy()
    labels = given.copy()
    labels[issues] = probabilities[issues].argmax(axis=1)
    kept = np.arange(len(given)) if how == "relabel" else np.setdiff1d(np.arange(len(given)), issues)
    classes = datasets.ClassLabel(names=splits.label_names)
    features = datasets.Features(
        {**_cleaned_features(splits.train), "label": classes, "given_label": classes, "index": datasets.Value("int64")}
    )
    making = folder.with_name(f".{folder.name}.making")
    shards = range(0, len(kept), SHARD)
    for number, start in enumerate(shards):
        places = kept[start : start + SHARD].tolist()
        columns = {
            **_cleaned_columns(splits, places),
            "label": labels[places].tolist(),
            "given_label": given[places].tolist(),
            "index": places,
        }
        name = f"train-{number:05d}-of-{len(shards):05d}.parquet"
        datasets.Dataset.from_dict(columns, features=features).to_parquet(making / "data" / name)
    making.rename(folder)


def _cleaned_features(samples: LabelledSamples) -> dict:
    if isinstance(samples, LabelledTexts):
        return {name: datasets.Value("string") for name in samples.columns}
    return {"image": datasets.Image()}


def _cleaned_columns(splits: LabelledSplits, places: list[int]) -> dict[str, list]:
    if isinstance(splits.train, LabelledTexts):
        return splits.train.subset(np.asarray(places)).columns
    assert isinstance(splits, ImageSplits)
    return {"image": [_file(splits, place) for place in places]}


def _file(splits: ImageSplits, place: int) -> dict:
    source = splits.train.source
    content = None if source is None else source.encoded(place)
    if content is None:
        buffer = io.BytesIO()
        image: Image.Image = picture(splits.train, place)
        image.save(buffer, "PNG")
        content = buffer.getvalue()
    name = None if source is None else source.name(place)
    return {"bytes": content, "path": None if name is None else Path(name).name}
