"""CIFAR-10 with noisy labels as one data set folder of many configs, readable by `load_dataset(folder, config)` alone.

Layout: `<config>/train-00000-of-00001.parquet` for each config, one `test/test-00000-of-00001.parquet` for all of
them, the card `README.md` that tells `datasets` which is which, its pictures in `figures`, and the manifest
`noisy_cifar10.json` that tells a later build what is finished. The image bytes are those of the source. They come
first in every file, in one row group cut into content-defined pages, so that storage that keeps equal chunks once
holds the images once for all configs.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, Image
from tqdm.auto import tqdm

from hf_common.environment import versions
from hf_common.files import replace_text, write_json
from hf_common.run_folder import HeldFolder

from .. import __version__
from ..noise.base import NOISE_VERSION, whole_shares
from ..noise.cifar10n import check_same_order, read_human_labels
from ..noise.draw import make_noisy_labels
from ..noise.human import HUMAN_CONFIGS
from ..noise.labels import realised_matrix, realised_rate
from ..noise.spec import NoiseSpec
from .card import dataset_card
from .figures import write_figures
from .manifest import (
    MANIFEST,
    NUM_CLASSES,
    TEST_FILE,
    TRAIN_FILE,
    UNFINISHED,
    check_replaces,
    check_same,
    read_manifest,
    unfinished_paths,
)
from .source import decode_all, load_source, source_fingerprint

CONFIGS = (
    "clean",
    *(f"symmetric_{rate}" for rate in (20, 30, 40, 50, 60, 70, 80)),
    *(f"asymmetric_{rate}" for rate in (10, 20, 30, 40)),
    *(f"semantic_{rate}" for rate in (10, 20, 30, 40)),
    *(f"instance_{rate}" for rate in (20, 40, 60)),
)
# Those that the labels and the files' bytes may depend on.
LIBRARIES = ("datasets", "numpy", "pillow", "pyarrow")


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
        `sampling`, `noise_version`, `class_names`, `versions` (when a config was last built), `test` and `configs`,
        the last with `num_examples`, `num_bytes` (Arrow), `file_bytes`, `rate` (share of wrong labels, in [0, 1]) and
        `matrix` (10 x 10, rows are clean classes) for each config, in the order in which they were built.

    Raises:
        ValueError: bad name, seed, sampling, columns, labels, image size, human labels in another order, an output
            folder that holds something else or that another process builds, or a `published` one that this one can't
            replace, see `check_replaces`. Nothing has been written then.
        TypeError: an argument of the wrong type.
    """
    # Everything that can be said without the images is said first.
    make_noisy_labels([0], "clean", num_classes=NUM_CLASSES, seed=seed, sampling=sampling)
    noises = _resolve_configs(configs, human_labels is not None)
    output_dir, settings = Path(output_dir), {"seed": seed, "sampling": sampling}
    with HeldFolder(output_dir, check=partial(read_manifest, must_exist=False)) as held:
        _read_checked(output_dir, settings, noises, published)
        given = _read_given(source, human_labels, noises)
        _, todo = _plan(output_dir, settings, noises, published, given)
        pixels = _pixels(given, todo)
        held.take()
        manifest, todo = _plan(output_dir, settings, noises, published, given)  # with what others built meanwhile
        _add_configs(output_dir, manifest, todo, given, pixels)
        write_figures(output_dir, manifest)
    return manifest


class _Given(NamedTuple):
    """What is read before anything is written: the source's splits, their fingerprint, and human labels, if any."""

    source: str
    train: dict
    test: dict
    fingerprint: str
    human: dict[str, np.ndarray]
    human_file: str | os.PathLike | None


def _read_given(source: str, human_file: str | os.PathLike | None, noises: dict[str, NoiseSpec | None]) -> _Given:
    human = {} if human_file is None else read_human_labels(human_file)
    train, test = load_source(source)
    if human_file is not None:
        check_same_order(human_file, human.pop("clean"), train["labels"])
    for spec in noises.values():
        if spec is not None:
            spec.noise.check_classes(spec, train["class_names"])
    return _Given(source, train, test, source_fingerprint(train, test), human, human_file)


def _read_checked(output_dir: Path, settings: dict, noises: dict, published: dict | None) -> dict | None:
    """The manifest of the folder, if it has one, as far as it can be checked without the images."""
    manifest = read_manifest(output_dir, must_exist=False)
    if manifest:
        check_same(repr(str(output_dir)), manifest, settings, "output_dir")
    if published:
        check_replaces(published, settings, [*noises, *(manifest["configs"] if manifest else ())])
    return manifest


def _plan(
    output_dir: Path, settings: dict, noises: dict, published: dict | None, given: _Given
) -> tuple[dict, dict[str, NoiseSpec | None]]:
    """The manifest that the folder has or begins with, and the configs that it lacks."""
    manifest = _read_checked(output_dir, settings, noises, published)
    if manifest:
        _check_same_source(repr(str(output_dir)), manifest, given, "output_dir")
    if published:
        _check_same_source("the published data set", published, given, "repository")
    manifest = manifest or _new_manifest(given, settings)
    todo = {name: spec for name, spec in noises.items() if name not in manifest["configs"]}
    _check_free(output_dir, manifest, todo)
    return manifest, todo


def _check_same_source(where: str, manifest: dict, given: _Given, other: str) -> None:
    """Raise a `ValueError` where a data set was built of other images or labels."""
    check_same(where, manifest, {"source_fingerprint": given.fingerprint}, other)
    _check_noise_version(where, manifest, given, other)
    for name in set(given.human) & set(manifest["configs"]):
        matrix = realised_matrix(given.train["labels"], given.human[name], NUM_CLASSES).tolist()
        if manifest["configs"][name]["matrix"] != matrix:
            raise ValueError(
                f"human_labels: {where} has {name} from other labels than those in {str(given.human_file)!r}; "
                f"give the same file or name another {other}"
            )


def _check_noise_version(where: str, manifest: dict, given: _Given, other: str) -> None:
    """Raise a `ValueError` where a data set has labels that are drawn otherwise now; without any, it is as if new."""
    if manifest.get("noise_version") == NOISE_VERSION:
        return
    counts = np.bincount(given.train["labels"], minlength=NUM_CLASSES)
    drawn = {name: NoiseSpec.parse(name) for name in manifest["configs"] if name not in HUMAN_CONFIGS}
    # Version 1 differs where the quota of a class is rounded, and there alone.
    rounded = [name for name, spec in drawn.items() if not whole_shares(spec.rate, counts)]
    if manifest.get("noise_version", 1) != 1 or (rounded and manifest["sampling"] == "quota"):
        raise ValueError(
            f"noise_version: {where} has {rounded or list(manifest['configs'])} of version "
            f"{manifest.get('noise_version', 1)}, this call draws by version {NOISE_VERSION}; name another {other}"
        )
    manifest["noise_version"] = NOISE_VERSION


def _new_manifest(given: _Given, settings: dict) -> dict:
    return {
        "repo_id": None,
        # A folder's full path means nothing to those who read the published manifest.
        "source": Path(given.source).resolve().name if os.path.isdir(given.source) else given.source,
        "source_fingerprint": given.fingerprint,
        "seed": int(settings["seed"]),
        "sampling": settings["sampling"],
        "noise_version": NOISE_VERSION,
        "class_names": given.train["class_names"],
        "versions": _versions(),
        "test": None,
        "configs": {},
    }


def _versions() -> dict:
    return {"hf_robust": __version__, **versions(LIBRARIES)}


# ------------------------------------------------------------------------------------------------------------ names


def _resolve_configs(configs: Sequence[str] | None, has_human_labels: bool) -> dict[str, NoiseSpec | None]:
    """Canonical names, each once, in the order given, and what is drawn for each; None: labels that were recorded."""
    if configs is None:
        configs = [*CONFIGS, *(HUMAN_CONFIGS if has_human_labels else ())]
    if isinstance(configs, str) or not isinstance(configs, Sequence):
        raise TypeError(f"configs: expected a sequence of names, got {configs!r}")
    if not configs:
        raise ValueError("configs: expected at least one name, got none")
    names: dict[str, NoiseSpec | None] = {}
    for name in configs:
        if name in HUMAN_CONFIGS:
            if not has_human_labels:
                raise ValueError(f"configs: {name!r} needs human_labels, the file of CIFAR-10N")
            names[name] = None
            continue
        try:
            spec = NoiseSpec.parse(name)
        except ValueError as error:
            raise ValueError(
                f"configs: cannot build {name!r} ({error}); the table has {', '.join(CONFIGS)}, any other rate works "
                f"too, and with human_labels {', '.join(HUMAN_CONFIGS)}"
            ) from error
        names[str(spec)] = spec
    return names


# ----------------------------------------------------------------------------------------------------------- output


def _check_free(output_dir: Path, manifest: dict, todo: Iterable[str]) -> None:
    # The folder announced as being built may exist: it is a leftover of our own.
    folders = {*todo, *([] if manifest["test"] else ["test"])} - {manifest.get("building")}
    occupied = sorted(name for name in folders if (output_dir / name).exists())
    if occupied:
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds {occupied}, which {MANIFEST} does not know; move them"
        )


def _pixels(given: _Given, todo: dict[str, NoiseSpec | None]) -> np.ndarray | None:
    """The training images, where what is to be drawn depends on them."""
    drawn = [spec.noise for spec in todo.values() if spec is not None]
    return decode_all(given.train["bytes"]) if any(kind.needs_images for kind in drawn) else None


def _add_configs(
    output_dir: Path,
    manifest: dict,
    todo: dict[str, NoiseSpec | None],
    given: _Given,
    pixels: np.ndarray | None,
) -> None:
    """Write what is missing, one folder after the other; manifest and card tell of each as soon as it is there."""
    _remove_unfinished(output_dir, manifest)
    output_dir.mkdir(parents=True, exist_ok=True)
    if todo:
        manifest["versions"] = _versions()
    write_json(output_dir / MANIFEST, manifest)
    if manifest["configs"]:
        replace_text(output_dir / "README.md", dataset_card(manifest))
    if manifest["test"] is None:
        test = given.test
        manifest["test"] = _add_folder(output_dir, manifest, "test", TEST_FILE, test, test["labels"])
        write_json(output_dir / MANIFEST, manifest)
    clean = given.train["labels"]
    draw = {"seed": manifest["seed"], "sampling": manifest["sampling"], "images": pixels, "num_classes": NUM_CLASSES}
    progress = tqdm(todo.items(), desc="configs", unit="config")
    for name, spec in progress:
        progress.set_postfix_str(name)
        noisy = given.human[name] if spec is None else make_noisy_labels(clean, spec, **draw)
        entry = _add_folder(output_dir, manifest, name, TRAIN_FILE, given.train, noisy)
        manifest["configs"][name] = entry | {
            "rate": realised_rate(clean, noisy),
            "matrix": realised_matrix(clean, noisy, NUM_CLASSES).tolist(),
        }
        # In this order: a config that the manifest has and the card lacks is announced by the next call, whereas one
        # that the card alone had would be taken for unfinished and removed.
        write_json(output_dir / MANIFEST, manifest)
        replace_text(output_dir / "README.md", dataset_card(manifest))


def _remove_unfinished(output_dir: Path, manifest: dict) -> None:
    for path in unfinished_paths(output_dir):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # A kill between the rename and the manifest leaves a folder that is complete but not recorded.
    unrecorded = manifest.pop("building", None)
    if unrecorded is not None:
        shutil.rmtree(output_dir / unrecorded, ignore_errors=True)


def _add_folder(output_dir: Path, manifest: dict, name: str, file_name: str, split: dict, labels: np.ndarray) -> dict:
    """Write the images of a split with these labels and theirs to a folder; what the manifest says of it."""
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
