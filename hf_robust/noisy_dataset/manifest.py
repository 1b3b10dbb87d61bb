"""The files of a data set folder, and its manifest: what is built, and of what."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from datasets import Features

from hf_common.foreign import Check, check_fields, dict_of, file_name, list_of, number, read_json, refuse, short, whole
from hf_common.locks import LOCK

from ..noise.base import SAMPLINGS
from ..noise.cifar10 import CIFAR10_CLASSES
from ..noise.from_matrix import is_matrix_name
from ..noise.human import is_human_name
from ..noise.spec import NoiseSpec
from .form import ANY, CIFAR10, Form, form_of

NUM_CLASSES = len(CIFAR10_CLASSES)
MANIFEST = CIFAR10.manifest
MANIFEST_KEYS = set("repo_id source source_fingerprint seed sampling class_names versions test configs".split())


def _is_repo_id(value: object) -> bool:
    """the name of a repository"""
    return isinstance(value, str) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is not None


def _is_sampling(value: object) -> bool:
    return isinstance(value, str) and value in SAMPLINGS


def _are_versions(value: object) -> bool:
    """an object of str, hf_robust's among them"""
    return isinstance(value, dict) and dict_of(str)(value) and "hf_robust" in value


_is_sampling.__doc__ = f"one of {', '.join(SAMPLINGS)}"
MANIFEST_FIELDS: dict[str, Check] = {
    "repo_id?": _is_repo_id,
    "source": str,
    "source_fingerprint": str,
    "seed": whole(),
    "sampling": _is_sampling,
    "noise_version?": whole(1),
    "class_names": list_of(str),
    "versions": _are_versions,
    "test?": dict,
    "configs": dict_of(dict),
    "building?": str,
    "skip_corrupt?": bool,
    "plugins?": list_of(str),
}
MOST_FILES = 99_999  # of a split: the number has five digits
MOST_CLASSES = 256  # of a matrix that a manifest holds
OPTIONAL = {"building", "noise_version", "skip_corrupt", "plugins"}
# What the manifest of any data set has beyond that of CIFAR-10.
ANY_FIELDS: dict[str, Check] = {
    "source_config?": str,
    "label_column": str,
    "features": dict,
    "text_columns?": list_of(str),
    "test_split?": str,
    "validation_split?": number(0, 1),
    "superclass_column?": str,
    "max_shard_size": whole(1),
    "maps": dict_of(dict_of(whole())),
}
# Whatever is unfinished carries this prefix until one rename makes it part of the data set.
UNFINISHED = ".building-"


def read_manifest(output_dir: Path, must_exist: bool, form: Form | None = None) -> dict | Any:
    """The manifest of a folder of that form, or of its own; None for a new or empty one, if it need not exist.

    Raises a `ValueError` for a folder that holds something else.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir: {str(output_dir)!r} is not a folder")
    form = form or form_of(output_dir)
    path = output_dir / form.manifest
    if path.is_file():
        manifest = read_json(path)
        check_manifest(manifest, path, form)
        _check_folders(manifest, path)
        return manifest
    if must_exist:
        raise ValueError(f"output_dir: {str(output_dir)!r} has no {form.manifest}; it was not built by {form.builder}")
    unfinished = {LOCK, *(path.name for path in unfinished_paths(output_dir))}
    foreign = sorted(path.name for path in output_dir.glob("*") if path.name not in unfinished)
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds something else ({shown}) and no {form.manifest}; "
            "name a new or empty folder"
        )
    return None


def check_manifest(content: dict, path: Path, form: Form) -> None:
    """Raise a `ValueError` that names the file unless it is a manifest of that form."""
    more = ANY_FIELDS if form is ANY else {}
    if set(content) - OPTIONAL != MANIFEST_KEYS | {key.removesuffix("?") for key in more}:
        raise refuse(path, f"is not a manifest of {form.builder}; name another folder")
    check_fields(content, MANIFEST_FIELDS | more, path)
    classes = len(content["class_names"])
    if classes < 2 or (form is CIFAR10 and classes != NUM_CLASSES):
        wanted = "2 or more" if form is ANY else NUM_CLASSES
        raise refuse(path, f"'class_names' must be of {wanted} classes, is of {classes}")
    if form is ANY:
        _check_any(content, path, classes)
    sizes: dict[str, Check] = {"num_examples": whole(), "num_bytes": whole(), "file_bytes": whole()}
    if form is ANY:
        sizes["num_files"] = whole(1, MOST_FILES)
    if content["test"] is not None:
        check_fields(content["test"], sizes, path, "test.")
    for name, entry in content["configs"].items():
        matrix = None if classes > MOST_CLASSES else list_of(list_of(number(0, 1), classes), classes)
        check_fields(entry, sizes | {"rate": number(0, 1), "matrix": matrix}, path, f"configs.{name[:40]}.")
        if matrix is None:
            continue
        kept = [row[place] for place, row in enumerate(entry["matrix"])]
        # The share of wrong labels is a mean over the classes, whatever their sizes.
        if any(abs(sum(row) - 1) > 1e-6 for row in entry["matrix"]) or not (
            1 - max(kept) - 1e-6 <= entry["rate"] <= 1 - min(kept) + 1e-6
        ):
            raise refuse(path, f"configs.{name[:40]} must have rows that sum to 1, and a rate that is theirs")


def _check_any(content: dict, path: Path, classes: int) -> None:
    """Raise a `ValueError` unless the columns are some that `datasets` knows, and maps are of the classes."""
    try:
        features_of(content)
    except Exception as error:  # whatever `datasets` makes of what it does not know
        raise refuse(path, f"'features' are none of datasets: {short(error, 80)}") from None
    for kind, targets in content["maps"].items():
        if any(not (source.isdigit() and int(source) < classes > target) for source, target in targets.items()):
            raise refuse(path, f"'maps.{kind[:40]}' must be of the {classes} classes")


def features_of(manifest: dict) -> Features:
    """Of the columns beside the labels."""
    return Features.from_dict(manifest["features"])


def _check_folders(manifest: dict, path: Path) -> None:
    """Raise a `ValueError` unless what a manifest names lies beside it, and what it builds is an unfinished config.

    The folder may come from elsewhere, and the one that is being built is deleted when the build goes on.
    """
    for name in manifest["configs"]:
        file_name(name, path)
    building = manifest.get("building")
    if building is None:
        return
    file_name(building, path)
    if building in manifest["configs"] or (building == "test" and manifest["test"] is not None):
        raise refuse(path, f"says that {building!r} is being built, which is finished")
    if building != "test" and not _is_config(building):
        raise refuse(path, f"says that {building!r} is being built, which is no config of such a data set")


def _is_config(name: str) -> bool:
    """Whether a config has such a name."""
    if is_human_name(name) or is_matrix_name(name):
        return True
    try:
        return str(NoiseSpec.parse(name)) == name
    except ValueError:
        return False


def unfinished_paths(output_dir: Path) -> list[Path]:
    """What a kill may leave in a folder: folders of ours, and the temporary files of texts and figures."""
    return [path for pattern in (f"{UNFINISHED}*", ".*.tmp", "figures/.*.tmp") for path in output_dir.glob(pattern)]


def check_same(where: str, manifest: dict, expected: dict, other: str) -> None:
    """Raise a `ValueError` where a manifest does not say what is expected; `other` is what to name instead."""
    for key, value in expected.items():
        if manifest[key] != value:
            raise ValueError(
                f"{key}: {where} was built with {short(repr(manifest[key]), 90)}, this call has "
                f"{short(repr(value), 90)}; give the same or name another {other}"
            )


def check_replaces(published: dict, expected: dict, configs: Collection[str]) -> None:
    """Raise a `ValueError` unless a data set may take the place of a published one.

    Args:
        published (`dict`): its manifest.
        expected (`dict`): what of the other one's manifest must be equal: `seed`, `sampling`, `source_fingerprint`.
        configs: of the other one; it must have all of the published ones, which would be deleted otherwise.
    """
    check_same("the published data set", published, expected, "repository")
    missing = [name for name in published["configs"] if name not in configs]
    if missing:
        raise ValueError(
            f"configs: the published data set has {', '.join(missing)} too, which this one lacks and would delete; "
            "build them as well or name another repository"
        )
