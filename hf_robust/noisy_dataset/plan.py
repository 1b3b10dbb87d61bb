"""What is to be built of what, looked at before anything is written: names, settings, and what is there already."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_common.environment import versions

from .. import __version__
from ..noise.base import NOISE_VERSION, whole_shares
from ..noise.cifar10n import check_same_order
from ..noise.from_matrix import is_matrix_name
from ..noise.human import is_human_name
from ..noise.labels import realised_matrix, realised_rate
from ..noise.mapped import MappedNoise, check_targets
from ..noise.spec import NoiseSpec
from .form import ANY, Form
from .manifest import check_replaces, check_same, read_manifest
from .source import SourceData

# Those that the labels and the files' bytes may depend on.
LIBRARIES = ("datasets", "numpy", "pillow", "pyarrow")
Noises = dict[str, NoiseSpec | None]  # by config; None: labels that were recorded


class Given(NamedTuple):
    """What was read before anything is written.

    Attributes:
        human: config -> (N,) int64, labels that people gave.
        human_file: they come from.
        maps: kind -> source -> target, of the kinds that go by a map.
        more: what the manifest says beyond what that of CIFAR-10 does.
        shard_bytes: that a file should have at most; None: all in one.
    """

    source: SourceData
    human: dict[str, np.ndarray]
    human_file: str | os.PathLike | None
    maps: dict[str, dict[int, int]]
    more: dict
    shard_bytes: int | None


def resolve_configs(
    configs: Sequence[str], human: Sequence[str] | None, cannot: Callable[[str, Exception], str]
) -> Noises:
    """Canonical names, each once, in the order given, and what is drawn for each; None: labels that were recorded.

    Args:
        human: the names of recorded labels that there may be; None: any.
        cannot: what is said of a name that is none.
    """
    if isinstance(configs, str) or not isinstance(configs, Sequence):
        raise TypeError(f"configs: expected a sequence of names, got {configs!r}")
    if not configs:
        raise ValueError("configs: expected at least one name, got none")
    names: Noises = {}
    for name in configs:
        if isinstance(name, str) and (is_human_name(name) if human is None else name in human):
            names[name] = None
            continue
        try:
            spec = NoiseSpec.parse(name)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(cannot(name, error)) from error
        names[str(spec)] = spec
    return names


def check_noises(noises: Noises, names: Sequence[str], maps: Mapping[str, Mapping[int, int]]) -> None:
    """Raise a `ValueError` where a noise is not defined on the classes, and no map says how it is."""
    for spec in noises.values():
        if spec is None or spec.kind in maps:
            continue
        spec.noise.check_classes(spec, names)
        spec.noise.check_num_classes(spec, len(names))


def maps_of(noises: Noises, maps: Mapping[str, Mapping[int, int]], num_classes: int) -> dict[str, dict[int, int]]:
    """The map of each kind that goes by one: the given one, or the kind's own."""
    used = [spec.noise for spec in noises.values() if spec is not None and isinstance(spec.noise, MappedNoise)]
    found = {kind.name: maps.get(kind.name, kind.targets) for kind in used}
    return {name: check_targets(targets, num_classes) for name, targets in found.items()}


def check_human(
    human: dict[str, np.ndarray], file: str | os.PathLike | None, noises: Noises, source: SourceData
) -> None:
    """Raise a `ValueError` where recorded labels are of other rows, or lack a config; takes `clean` out of them."""
    if file is not None:
        check_same_order(file, human.pop("clean"), source.train.labels)
    lacking = [name for name, spec in noises.items() if spec is None and name not in human]
    if lacking:
        raise ValueError(f"configs: {lacking[0]!r} needs human_labels with such labels; there are {sorted(human)}")


def read_checked(form: Form, output_dir: Path, settings: dict, noises: Noises, published: dict | None) -> dict | None:
    """The manifest of the folder, if it has one, as far as it can be checked without the rows."""
    manifest = read_manifest(output_dir, must_exist=False, form=form)
    if manifest:
        check_same(repr(str(output_dir)), manifest, settings, "output_dir")
    if published:
        check_replaces(published, settings, [*noises, *(manifest["configs"] if manifest else ())])
    return manifest


def plan_build(
    form: Form, output_dir: Path, settings: dict, noises: Noises, published: dict | None, given: Given
) -> tuple[dict, Noises]:
    """The manifest that the folder has or begins with, and the configs that it lacks."""
    manifest = read_checked(form, output_dir, settings, noises, published)
    if manifest:
        _check_same_source(repr(str(output_dir)), manifest, given, "output_dir")
    if published:
        _check_same_source("the published data set", published, given, "repository")
    manifest = manifest or _new_manifest(given, settings)
    if form is ANY:
        manifest["maps"] |= {kind: {str(s): t for s, t in targets.items()} for kind, targets in given.maps.items()}
    todo = {name: spec for name, spec in noises.items() if name not in manifest["configs"]}
    _check_free(form, output_dir, manifest, todo, given)
    return manifest, todo


def _check_same_source(where: str, manifest: dict, given: Given, other: str) -> None:
    """Raise a `ValueError` where a data set was built of other rows or labels."""
    check_same(where, manifest, {"source_fingerprint": given.source.fingerprint}, other)
    check_same(
        where, manifest, {key: given.more[key] for key in ("features", "max_shard_size") if key in given.more}, other
    )
    if given.more:
        check_same(where, manifest, {"class_names": given.source.class_names}, other)
    _check_noise_version(where, manifest, given, other)
    for kind in set(given.maps) & set(manifest.get("maps", ())):
        if manifest["maps"][kind] != {str(source): target for source, target in given.maps[kind].items()}:
            raise ValueError(
                f"maps: {where} has {kind} noise by another map of classes; give the same or name another {other}"
            )
    for name in set(given.human) & set(manifest["configs"]):
        classes = len(given.source.class_names)
        clean, entry = given.source.train.labels, manifest["configs"][name]
        matrix = None if entry["matrix"] is None else realised_matrix(clean, given.human[name], classes).tolist()
        if (entry["rate"], entry["matrix"]) != (realised_rate(clean, given.human[name]), matrix):
            raise ValueError(
                f"human_labels: {where} has {name} from other labels than those in {str(given.human_file)!r}; "
                f"give the same file or name another {other}"
            )


def _check_noise_version(where: str, manifest: dict, given: Given, other: str) -> None:
    """Raise a `ValueError` where a data set has labels that are drawn otherwise now; without any, it is as if new."""
    if manifest.get("noise_version") == NOISE_VERSION:
        return
    counts = np.bincount(given.source.train.labels, minlength=len(given.source.class_names))
    names = [name for name in manifest["configs"] if not is_human_name(name) and not is_matrix_name(name)]
    # Version 1 differs where the quota of a class is rounded, and there alone.
    rounded = [name for name in names if not whole_shares(NoiseSpec.parse(name).rate, counts)]
    if manifest.get("noise_version", 1) != 1 or (rounded and manifest["sampling"] == "quota"):
        raise ValueError(
            f"noise_version: {where} has {rounded or list(manifest['configs'])} of version "
            f"{manifest.get('noise_version', 1)}, this call draws by version {NOISE_VERSION}; name another {other}"
        )
    manifest["noise_version"] = NOISE_VERSION


def _new_manifest(given: Given, settings: dict) -> dict:
    source = given.source
    return {
        "repo_id": None,
        # A path means nothing to those who read the published manifest.
        "source": Path(source.name).resolve().name if os.path.exists(source.name) else source.name,
        "source_fingerprint": source.fingerprint,
        "seed": int(settings["seed"]),
        "sampling": settings["sampling"],
        "noise_version": NOISE_VERSION,
        "class_names": source.class_names,
        "versions": build_versions(),
        **given.more,
        "test": None,
        "configs": {},
    }


def build_versions() -> dict:
    """Of what the labels and files may depend on."""
    return {"hf_robust": __version__, **versions(LIBRARIES)}


def _check_free(form: Form, output_dir: Path, manifest: dict, todo: Iterable[str], given: Given) -> None:
    test = [] if manifest["test"] or given.source.test is None else ["test"]
    # The folder announced as being built may exist: it is a leftover of our own.
    folders = {*todo, *test} - {manifest.get("building")}
    occupied = sorted(name for name in folders if (output_dir / name).exists())
    if occupied:
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds {occupied}, which {form.manifest} does not know; move them"
        )
