"""CIFAR-10 with noisy labels as one data set folder of many configs, readable by `load_dataset(folder, config)` alone.

Layout: `<config>/train-00000-of-00001.parquet` for each config, one `test/test-00000-of-00001.parquet` for all of
them, the card `README.md` that tells `datasets` which is which, its pictures in `figures`, and the manifest
`noisy_cifar10.json` that tells a later build what is finished. The image bytes are those of the source. They come
first in every file, in one row group cut into content-defined pages, so that storage that keeps equal chunks once
holds the images once for all configs.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Features, Image
from tqdm.auto import tqdm

from hf_common.environment import versions
from hf_common.files import replace_text, write_json
from hf_common.images import to_rgb

from .. import __version__
from ..noise.cifar10 import CIFAR10_CLASSES, NUM_CLASSES
from ..noise.cifar10n import check_same_order, read_human_labels
from ..noise.draw import make_noisy_labels
from ..noise.human import HUMAN_CONFIGS
from ..noise.labels import check_labels, realised_matrix, realised_rate
from ..noise.spec import NoiseSpec
from .card import dataset_card
from .figures import write_figures

MANIFEST = "noisy_cifar10.json"
IMAGE_SIZE = (32, 32)

CONFIGS = (
    "clean",
    *(f"symmetric_{rate}" for rate in (20, 30, 40, 50, 60, 70, 80)),
    *(f"asymmetric_{rate}" for rate in (10, 20, 30, 40)),
    *(f"semantic_{rate}" for rate in (10, 20, 30, 40)),
    *(f"instance_{rate}" for rate in (20, 40, 60)),
)
TRAIN_FILE = "train-00000-of-00001.parquet"
TEST_FILE = "test-00000-of-00001.parquet"
MANIFEST_KEYS = set("repo_id source source_fingerprint seed sampling class_names versions test configs".split())
# Those that the labels and the files' bytes may depend on.
LIBRARIES = ("datasets", "numpy", "pillow", "pyarrow")
# Whatever is unfinished carries this prefix until one rename makes it part of the data set.
UNFINISHED = ".building-"


def build_noisy_cifar10(
    source: str,
    output_dir: str | os.PathLike,
    *,
    configs: Sequence[str] | None = None,
    seed: int = 0,
    sampling: str = "quota",
    human_labels: str | os.PathLike | None = None,
    published: dict | None = None,
) -> dict:
    """Write the data set folder, or add to it the configs that it lacks.

    At any moment, also after a kill, the folder is a valid data set of the configs finished so far; the next call
    removes what was unfinished and goes on.

    Args:
        source (`str`): Hub id or local folder of a data set with splits `train` and `test` and columns `img` (`Image`,
            32x32) and `label` (`ClassLabel` of 10 names), such as `uoft-cs/cifar10`.
        output_dir (`str` or `os.PathLike`): new, empty, or built by this function from the same images, labels, seed
            and sampling.
        configs (`Sequence[str]`, *optional*): any noise that `NoiseSpec.parse` reads and, with `human_labels`, any of
            `HUMAN_CONFIGS`. Defaults to all of `CONFIGS`, and of `HUMAN_CONFIGS` if `human_labels` is given.
        seed, sampling: as for `make_noisy_labels`.
        human_labels (`str` or `os.PathLike`, *optional*): CIFAR-10N's labels, see `read_human_labels`.
        published (`dict`, *optional*): manifest of the data set that this one will replace on the Hub.

    Returns:
        `dict`: the manifest: `repo_id` (None until it is published), `source`, `source_fingerprint`, `seed`,
        `sampling`, `class_names`, `versions` (when a config was last built), `test` and `configs`, the last with
        `num_examples`, `num_bytes` (Arrow), `file_bytes`, `rate` (share of wrong labels, in [0, 1]) and `matrix`
        (10 x 10, rows are clean classes) for each config, in the order in which they were built.

    Raises:
        ValueError: bad name, seed, sampling, columns, labels, image size, human labels in another order, an output
            folder that holds something else, or a `published` one that this one can't replace, see `check_replaces`.
            Nothing has been written then.
        TypeError: an argument of the wrong type.
    """
    # Everything that can be said without the images is said first.
    make_noisy_labels([0], "clean", num_classes=NUM_CLASSES, seed=seed, sampling=sampling)
    names = _resolve_configs(configs, human_labels is not None)
    output_dir = Path(output_dir)
    manifest = read_manifest(output_dir, must_exist=False)
    settings = {"seed": seed, "sampling": sampling}
    if manifest:
        _check_same(repr(str(output_dir)), manifest, settings, "output_dir")
    if published:
        check_replaces(published, settings, [*names, *(manifest["configs"] if manifest else ())])
    human = {} if human_labels is None else read_human_labels(human_labels)

    train, test = _load_source(source)
    clean = train["labels"]
    if human:
        check_same_order(human_labels, human.pop("clean"), clean)
    if any(name.startswith("semantic_") for name in names) and train["class_names"] != list(CIFAR10_CLASSES):
        raise ValueError(
            f"configs: semantic noise is defined on the classes {list(CIFAR10_CLASSES)}, in this order; "
            f"the source has {train['class_names']}"
        )
    fingerprint = _fingerprint(train, test)
    for where, other, built in (
        (repr(str(output_dir)), "output_dir", manifest),
        ("the published data set", "repository", published),
    ):
        if built:
            _check_same(where, built, {"source_fingerprint": fingerprint}, other)
            _check_same_labels(where, built, human, clean, human_labels, other)
    if not manifest:
        # A folder's full path means nothing to those who read the published manifest.
        name = Path(source).resolve().name if os.path.isdir(source) else source
        manifest = {
            "repo_id": None,
            "source": name,
            "source_fingerprint": fingerprint,
            "seed": int(seed),
            "sampling": sampling,
            "class_names": train["class_names"],
            "versions": {"hf_robust": __version__, **versions(LIBRARIES)},
            "test": None,
            "configs": {},
        }

    todo = [name for name in names if name not in manifest["configs"]]
    _check_free(output_dir, manifest, todo)
    pixels = _decode(train["bytes"]) if any(name.startswith("instance_") for name in todo) else None

    _remove_unfinished(output_dir, manifest)
    output_dir.mkdir(parents=True, exist_ok=True)
    if todo:
        manifest["versions"] = {"hf_robust": __version__, **versions(LIBRARIES)}
    write_json(output_dir / MANIFEST, manifest)
    if manifest["configs"]:
        replace_text(output_dir / "README.md", dataset_card(manifest, TRAIN_FILE, TEST_FILE))
    if manifest["test"] is None:
        manifest["test"] = _add_folder(output_dir, manifest, "test", TEST_FILE, test, test["labels"])
        write_json(output_dir / MANIFEST, manifest)
    progress = tqdm(todo, desc="configs", unit="config")
    for name in progress:
        progress.set_postfix_str(name)
        if name in HUMAN_CONFIGS:
            noisy = human[name]
        else:
            noisy = make_noisy_labels(
                clean, name, num_classes=NUM_CLASSES, seed=seed, images=pixels, sampling=sampling
            )
        entry = _add_folder(output_dir, manifest, name, TRAIN_FILE, train, noisy)
        manifest["configs"][name] = entry | {
            "rate": realised_rate(clean, noisy),
            "matrix": realised_matrix(clean, noisy, NUM_CLASSES).tolist(),
        }
        # In this order: a config that the manifest has and the card lacks is announced by the next call, whereas one
        # that the card alone had would be taken for unfinished and removed.
        write_json(output_dir / MANIFEST, manifest)
        replace_text(output_dir / "README.md", dataset_card(manifest, TRAIN_FILE, TEST_FILE))
    write_figures(output_dir, manifest)
    return manifest


def check_replaces(published: dict, expected: dict, configs: Collection[str]) -> None:
    """Raise a `ValueError` unless a data set may take the place of a published one.

    Args:
        published (`dict`): its manifest.
        expected (`dict`): what of the other one's manifest must be equal: `seed`, `sampling`, `source_fingerprint`.
        configs: of the other one; it must have all of the published ones, which would be deleted otherwise.
    """
    _check_same("the published data set", published, expected, "repository")
    missing = [name for name in published["configs"] if name not in configs]
    if missing:
        raise ValueError(
            f"configs: the published data set has {', '.join(missing)} too, which this one lacks and would delete; "
            "build them as well or name another repository"
        )


# ------------------------------------------------------------------------------------------------------------ names


def _resolve_configs(configs, has_human_labels) -> list[str]:
    # Canonical names, each once, in the order given.
    if configs is None:
        return [*CONFIGS, *(HUMAN_CONFIGS if has_human_labels else ())]
    if isinstance(configs, str) or not isinstance(configs, Sequence):
        raise TypeError(f"configs: expected a sequence of names, got {configs!r}")
    if not configs:
        raise ValueError("configs: expected at least one name, got none")
    names = {}
    for name in configs:
        if name in HUMAN_CONFIGS:
            if not has_human_labels:
                raise ValueError(f"configs: {name!r} needs human_labels, the file of CIFAR-10N")
            names[name] = None
            continue
        try:
            names[str(NoiseSpec.parse(name))] = None
        except ValueError as error:
            raise ValueError(
                f"configs: cannot build {name!r} ({error}); the table has {', '.join(CONFIGS)}, any other rate works "
                f"too, and with human_labels {', '.join(HUMAN_CONFIGS)}"
            ) from error
    return list(names)


# ----------------------------------------------------------------------------------------------------------- source


def _load_source(source) -> tuple[dict, dict]:
    # Each split: images (pa.ChunkedArray of struct<bytes, path>), bytes (list), labels (N,) int64, class_names.
    splits = datasets.load_dataset(source)
    if not {"train", "test"} <= set(splits):
        raise ValueError(f"source: {source!r} must have the splits train and test, it has {sorted(splits)}")
    return _read_split(source, splits, "train"), _read_split(source, splits, "test")


def _read_split(source, splits, split) -> dict:
    features = splits[split].features
    image, label = features.get("img"), features.get("label")
    if (
        set(features) != {"img", "label"}
        or not isinstance(image, Image)
        or not isinstance(label, ClassLabel)
        or label.num_classes != NUM_CLASSES
    ):
        raise ValueError(
            f"source: split {split!r} of {source!r} must have exactly the columns img (Image) and label (ClassLabel "
            f"of {NUM_CLASSES} names), it has {dict(features)}"
        )
    # In Arrow format nothing is decoded: these are the encoded bytes as they lie in the source. Rows that hold only a
    # path get their file's bytes, as they are.
    table = splits[split].with_format("arrow")[:]
    images = pa.chunked_array([image.embed_storage(chunk) for chunk in table["img"].chunks], type=image.pa_type)
    encoded = pc.struct_field(images, "bytes").to_pylist()
    labels = check_labels(f"source: column 'label' of split {split!r}", table["label"].to_numpy(), NUM_CLASSES)
    for position, data in enumerate(encoded):
        _check_image(f"source: image {position} of split {split!r}", data)
    return {"images": images, "bytes": encoded, "labels": labels, "class_names": label.names}


def _check_image(name, data):
    if data is None:
        raise ValueError(f"{name} is missing")
    try:
        size = PIL.Image.open(io.BytesIO(data)).size  # reads the header only
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that can be read") from error
    if size != IMAGE_SIZE:
        raise ValueError(f"{name} is {size[0]}x{size[1]}, expected {IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}")


def _decode(encoded) -> np.ndarray:
    # list of N encoded images -> (N, 32, 32, 3) uint8
    pixels = np.empty((len(encoded), *IMAGE_SIZE, 3), np.uint8)
    for position, data in enumerate(encoded):
        pixels[position] = to_rgb({"bytes": data}, f"source: image {position} of split 'train'")
    return pixels


def _fingerprint(*splits) -> str:
    # Of the encoded images and the labels; not of paths, class names or the files that held them.
    digest = hashlib.sha256()
    for split in splits:
        for data in split["bytes"]:
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        digest.update(split["labels"].astype("<i8").tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------- output


def read_manifest(output_dir: Path, must_exist: bool) -> dict | None:
    """The manifest of a folder that `build_noisy_cifar10` wrote; None for a new or empty one, if it need not exist.

    Raises a `ValueError` for a folder that holds something else.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir: {str(output_dir)!r} is not a folder")
    path = output_dir / MANIFEST
    if path.is_file():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"output_dir: {str(path)!r} is damaged ({error}); name another folder") from error
        if not is_manifest(manifest):
            raise ValueError(
                f"output_dir: {str(path)!r} is not a manifest of build_noisy_cifar10; name another folder"
            )
        return manifest
    if must_exist:
        raise ValueError(f"output_dir: {str(output_dir)!r} has no {MANIFEST}; it was not built by build_noisy_cifar10")
    unfinished = {path.name for path in _unfinished(output_dir)}
    foreign = sorted(path.name for path in output_dir.glob("*") if path.name not in unfinished)
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds something else ({shown}) and no {MANIFEST}; "
            "name a new or empty folder"
        )
    return None


def is_manifest(content) -> bool:
    """Whether parsed JSON is a manifest of `build_noisy_cifar10`."""
    return isinstance(content, dict) and set(content) - {"building"} == MANIFEST_KEYS


def _check_same(where, manifest, expected, other):
    for key, value in expected.items():
        if manifest[key] != value:
            raise ValueError(
                f"{key}: {where} was built with {manifest[key]!r}, this call has {value!r}; "
                f"give the same or name another {other}"
            )


def _check_same_labels(where, manifest, human, clean, human_labels, other):
    for name in set(human) & set(manifest["configs"]):
        if manifest["configs"][name]["matrix"] != realised_matrix(clean, human[name], NUM_CLASSES).tolist():
            raise ValueError(
                f"human_labels: {where} has {name} from other labels than those in {str(human_labels)!r}; "
                f"give the same file or name another {other}"
            )


def _check_free(output_dir, manifest, todo):
    # The folder announced as being built may exist: it is a leftover of our own.
    folders = {*todo, *([] if manifest["test"] else ["test"])} - {manifest.get("building")}
    occupied = sorted(name for name in folders if (output_dir / name).exists())
    if occupied:
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds {occupied}, which {MANIFEST} does not know; move them"
        )


def _unfinished(output_dir) -> list[Path]:
    # Folders of ours, and the temporary files of texts and figures.
    return [path for pattern in (f"{UNFINISHED}*", ".*.tmp", "figures/.*.tmp") for path in output_dir.glob(pattern)]


def _remove_unfinished(output_dir, manifest):
    for path in _unfinished(output_dir):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # A kill between the rename and the manifest leaves a folder that is complete but not recorded.
    unrecorded = manifest.pop("building", None)
    if unrecorded is not None:
        shutil.rmtree(output_dir / unrecorded, ignore_errors=True)


def _add_folder(output_dir, manifest, name, file_name, split, labels) -> dict:
    write_json(output_dir / MANIFEST, manifest | {"building": name})
    label = ClassLabel(names=split["class_names"])
    dataset = Dataset.from_dict(
        {"img": split["images"], "label": pa.array(labels), "clean_label": pa.array(split["labels"])},
        features=Features({"img": Image(), "label": label, "clean_label": label}),
    )
    unfinished = output_dir / f"{UNFINISHED}{name}"
    unfinished.mkdir()
    with _quiet():
        # One row group: the label columns then lie after all of the images and break only the file's last chunks.
        num_bytes = dataset.to_parquet(
            unfinished / file_name, batch_size=len(dataset), use_content_defined_chunking=True
        )
    file_bytes = (unfinished / file_name).stat().st_size
    os.rename(unfinished, output_dir / name)
    return {"num_examples": len(dataset), "num_bytes": num_bytes, "file_bytes": file_bytes}


@contextlib.contextmanager
def _quiet():
    # `datasets` draws a bar of one step for each file, over the one of the configs.
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
