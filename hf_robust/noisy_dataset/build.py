"""A data set with noisy labels as one folder of many configs, readable by `load_dataset(folder, config)` alone.

Layout: `<config>/train-*.parquet` for each config, one `test/test-*.parquet` for all of them, the card `README.md`
that tells `datasets` which is which, its pictures in `figures`, and the manifest, `noisy_cifar10.json` or
`noisy_dataset.json`, that tells a later build what is finished. The rows are those of the source, the bytes of images
too. They come first in every file, in one row group cut into content-defined pages, so that storage that keeps equal
chunks once holds them once for all configs.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from hf_common.files import replace_text, write_json
from hf_common.plugins import loaded_plugins
from hf_common.public import without_paths
from hf_common.run_folder import HeldFolder

from ..noise.cifar10n import read_human_labels
from ..noise.draw import make_noisy_labels
from ..noise.human import HUMAN_CONFIGS
from ..noise.labels import realised_matrix, realised_rate
from ..noise.map_file import read_map, targets_of
from ..noise.mapped import check_targets
from .any_source import Reading, load_any
from .card import dataset_card
from .figures import write_figures
from .form import ANY, CIFAR10, Form
from .manifest import MOST_CLASSES, MOST_FILES, UNFINISHED, read_manifest, unfinished_paths
from .plan import (
    Given,
    Noises,
    build_versions,
    check_human,
    check_noises,
    maps_of,
    plan_build,
    read_checked,
    resolve_configs,
)
from .shards import size_in_bytes, write_split
from .source import SourceData, Split, decode_all, load_cifar10

CONFIGS = (
    "clean",
    *(f"symmetric_{rate}" for rate in (20, 30, 40, 50, 60, 70, 80)),
    *(f"asymmetric_{rate}" for rate in (10, 20, 30, 40)),
    *(f"semantic_{rate}" for rate in (10, 20, 30, 40)),
    *(f"instance_{rate}" for rate in (20, 40, 60)),
)
# A fifth of what `datasets` pushes a file, and its row group: a file here is one, and takes 9 times that memory.
SHARD_SIZE = "100MB"


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
    """Write CIFAR-10 with noisy labels as a data set folder, or add to it the configs that it lacks.

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
    human_names = HUMAN_CONFIGS if human_labels is not None else {}
    noises = resolve_configs(
        [*CONFIGS, *human_names] if configs is None else configs, list(human_names), partial(_cannot_cifar10)
    )

    def read() -> Given:
        human = {} if human_labels is None else read_human_labels(human_labels)
        data = load_cifar10(source)
        check_human(human, human_labels, noises, data)
        check_noises(noises, data.class_names, {})
        return Given(data, human, human_labels, {}, {}, None)

    return _build(CIFAR10, output_dir, {"seed": seed, "sampling": sampling}, noises, published, read)


def build_noisy_dataset(
    source: str,
    output_dir: str | os.PathLike,
    *,
    configs: Sequence[str],
    reading: Reading | None = None,
    semantic_map: str | Mapping[int, int] | None = None,
    human_labels: str | os.PathLike | None = None,
    seed: int = 0,
    sampling: str = "quota",
    max_shard_size: int | str = SHARD_SIZE,
    published: dict | None = None,
) -> dict:
    """Write any data set of classes, images or text, with noisy labels as a data set folder, or add configs to it.

    A config has the columns of the source as they are but for its labels, then `label` and `clean_label`. What
    `build_noisy_cifar10` says of kills holds here.

    Args:
        source (`str`): what [`~hf_robust.data.sources.open_data`] takes: a Hub id, a folder of class folders or one
            that `datasets` knows, or a CSV, TSV, JSON or Parquet file.
        output_dir (`str` or `os.PathLike`): new, empty, or built by this function from the same rows, labels, seed and
            sampling.
        configs (`Sequence[str]`): any noise that `NoiseSpec.parse` reads and, with `human_labels`, names in it.
        reading ([`Reading`], *optional*): the columns and splits of the source.
        semantic_map (`str` or `Mapping[int, int]`, *optional*): of `semantic_RR`: what
            [`~hf_robust.noise.map_file.read_map`] takes, or class -> class. By default CIFAR-10's, on its classes.
        human_labels (`str` or `os.PathLike`, *optional*): labels of the training split that people gave, see
            `read_human_labels` with `any_configs`.
        seed, sampling: as for `make_noisy_labels`.
        max_shard_size (`int` or `str`, *optional*, defaults to `"100MB"`): of the rows of a file.
        published (`dict`, *optional*): manifest of the data set that this one will replace on the Hub.

    Returns:
        `dict`: the manifest, as `build_noisy_cifar10` has it, and `source_config`, `label_column`, `features` (of the
        columns beside the labels), `text_columns`, `test_split`, `validation_split`, `superclass_column`,
        `max_shard_size` (bytes), `maps` (kind -> class -> class) and, for each config and `test`, `num_files`. `test`
        is None for a source that has none, `matrix` where there are more than 256 classes.

    Raises:
        ValueError, TypeError: as for `build_noisy_cifar10`; also a source without such a split or column.
    """
    how = reading or Reading()
    noises = resolve_configs(configs, None if human_labels is not None else (), _cannot)
    content = read_map(semantic_map) if isinstance(semantic_map, str) else semantic_map
    kinds = {spec.kind for spec in noises.values() if spec is not None}
    if content is not None and "semantic" not in kinds:
        raise ValueError("semantic_map: it is of semantic_RR, which is none of the configs")
    shard_bytes = size_in_bytes(max_shard_size, "max_shard_size")
    if Path(source).is_dir() and Path(source).resolve() in Path(output_dir).resolve().parents:
        raise ValueError(
            f"output_dir: {str(output_dir)!r} lies in the source {source!r:.120}, which it would become a part of"
        )

    read = partial(_read_any, source, how, noises, content, human_labels, shard_bytes)
    return _build(ANY, output_dir, {"seed": seed, "sampling": sampling}, noises, published, read)


def _read_any(
    source: str,
    how: Reading,
    noises: Noises,
    content: str | Mapping | None,
    human_labels: str | os.PathLike | None,
    shard_bytes: int,
) -> Given:
    own: dict[str, dict[int, int]] = {}

    def check(names: list[str], ring: dict[int, int] | None) -> None:
        if ring is not None:
            own["superclass"] = ring
        if content is not None:
            own["semantic"] = _targets(content, names)
        try:
            check_noises(noises, names, own)
        except ValueError as error:
            hints = {"semantic": "--semantic_map MAP", "superclass": "--superclass_column NAME"}
            hint = next((f"; give {flag}" for kind, flag in hints.items() if f"'{kind}_" in str(error)), "")
            raise ValueError(f"{error}{hint}") from None

    superclasses = any(spec and spec.kind == "superclass" for spec in noises.values())
    data = load_any(source, how, superclasses, check)
    largest = max(split.num_bytes for split in (data.train, data.test) if split is not None)
    if largest > MOST_FILES * shard_bytes:
        raise ValueError(
            f"max_shard_size: {shard_bytes} bytes are too few for {largest} in at most {MOST_FILES} files"
        )
    classes = len(data.class_names)
    human = {} if human_labels is None else read_human_labels(human_labels, classes, any_configs=True)
    check_human(human, human_labels, noises, data)
    return Given(data, human, human_labels, maps_of(noises, own, classes), _more(data, how, shard_bytes), shard_bytes)


def _targets(content: str | Mapping, names: list[str]) -> dict[int, int]:
    if isinstance(content, str) or all(isinstance(key, str) for key in content):
        return targets_of(content, names)
    return check_targets(content, len(names))


def _more(source: SourceData, how: Reading, shard_bytes: int) -> dict:
    """What the manifest of any data set says beyond that of CIFAR-10."""
    return {
        "source_config": source.config,
        "label_column": how.label_column or "label",
        # As they come back from a file: tuples are lists there.
        "features": json.loads(json.dumps(source.train.rows.features.to_dict())),
        "text_columns": None if how.text_columns is None else list(how.text_columns),
        "test_split": None if how.validation_split is not None else how.test_split,
        "validation_split": how.validation_split,
        "superclass_column": how.superclass_column,
        "max_shard_size": shard_bytes,
        "maps": {},
        **({"skip_corrupt": True} if how.skip_corrupt else {}),
    }


def _cannot_cifar10(name: str, error: Exception) -> str:
    if name in HUMAN_CONFIGS:
        return f"configs: {name!r} needs human_labels, the file of CIFAR-10N"
    return (
        f"configs: cannot build {name!r} ({error}); the table has {', '.join(CONFIGS)}, any other rate works "
        f"too, and with human_labels {', '.join(HUMAN_CONFIGS)}"
    )


def _cannot(name: str, error: Exception) -> str:
    return f"configs: cannot build {name!r} ({error})"


def _build(
    form: Form,
    output_dir: str | os.PathLike,
    settings: dict,
    noises: Noises,
    published: dict | None,
    read: Callable[[], Given],
) -> dict:
    # Everything that can be said without the rows is said first.
    make_noisy_labels([0], "clean", num_classes=2, **settings)
    output_dir = Path(output_dir)
    with HeldFolder(output_dir, check=partial(read_manifest, form=form, must_exist=False)) as held:
        read_checked(form, output_dir, settings, noises, published)
        given = read()
        _, todo = plan_build(form, output_dir, settings, noises, published, given)
        pixels = _pixels(given, todo)
        held.take()
        # Once more, with what others built meanwhile.
        manifest, todo = plan_build(form, output_dir, settings, noises, published, given)
        _add_configs(form, output_dir, manifest, todo, given, pixels)
        write_figures(output_dir, manifest)
    return manifest


# ----------------------------------------------------------------------------------------------------------- output


def _pixels(given: Given, todo: Noises) -> np.ndarray | None:
    """The training images, where what is to be drawn depends on them."""
    drawn = [spec.noise for spec in todo.values() if spec is not None]
    return decode_all(given.source) if any(kind.needs_images for kind in drawn) else None


def _add_configs(
    form: Form, output_dir: Path, manifest: dict, todo: Noises, given: Given, pixels: np.ndarray | None
) -> None:
    """Write what is missing, one folder after the other; manifest and card tell of each as soon as it is there."""
    _remove_unfinished(form, output_dir, manifest)
    output_dir.mkdir(parents=True, exist_ok=True)
    if todo:
        manifest["versions"] = build_versions()
        plugins = dict.fromkeys([*manifest.get("plugins", ()), *without_paths(loaded_plugins())])
        manifest |= {"plugins": list(plugins)} if plugins else {}
    write_json(output_dir / form.manifest, manifest)
    if manifest["configs"]:
        replace_text(output_dir / "README.md", dataset_card(manifest))
    source = given.source
    add = partial(_add_folder, form, output_dir, manifest, given)
    if manifest["test"] is None and source.test is not None:
        manifest["test"] = add("test", "test", source.test, source.test.labels)
        write_json(output_dir / form.manifest, manifest)
    clean, classes = source.train.labels, len(source.class_names)
    draw = {"seed": manifest["seed"], "sampling": manifest["sampling"], "images": pixels, "num_classes": classes}
    progress = tqdm(todo.items(), desc="configs", unit="config")
    for name, spec in progress:
        progress.set_postfix_str(name)
        if spec is None:
            noisy = given.human[name]
        else:
            noisy = make_noisy_labels(clean, spec, **draw, targets=given.maps.get(spec.kind))
        manifest["configs"][name] = add(name, "train", source.train, noisy) | {
            "rate": realised_rate(clean, noisy),
            "matrix": realised_matrix(clean, noisy, classes).tolist() if classes <= MOST_CLASSES else None,
        }
        # In this order: a config that the manifest has and the card lacks is announced by the next call, whereas one
        # that the card alone had would be taken for unfinished and removed.
        write_json(output_dir / form.manifest, manifest)
        replace_text(output_dir / "README.md", dataset_card(manifest))


def _remove_unfinished(form: Form, output_dir: Path, manifest: dict) -> None:
    for path in unfinished_paths(output_dir):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # A kill between the rename and the manifest leaves a folder that is complete but not recorded.
    unrecorded = manifest.pop("building", None)
    if unrecorded is not None:
        shutil.rmtree(output_dir / unrecorded, ignore_errors=True)


def _add_folder(
    form: Form,
    output_dir: Path,
    manifest: dict,
    given: Given,
    name: str,
    split_name: str,
    split: Split,
    labels: np.ndarray,
) -> dict:
    """Write a split with these labels and theirs to a folder; what the manifest says of it."""
    write_json(output_dir / form.manifest, manifest | {"building": name})
    shard_bytes = given.shard_bytes or split.num_bytes
    num_files = min(max(1, math.ceil(split.num_bytes / shard_bytes)), len(split.labels))
    unfinished = output_dir / f"{UNFINISHED}{name}"
    unfinished.mkdir()
    entry = write_split(unfinished, split_name, split, labels, given.source.class_names, num_files)
    os.rename(unfinished, output_dir / name)
    return entry if given.shard_bytes is None else entry | {"num_files": num_files}
