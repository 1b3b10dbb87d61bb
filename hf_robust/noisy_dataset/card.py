"""The card of a data set with noisy labels, from its manifest and from nothing else."""

import shlex
import textwrap
from importlib.resources import files
from typing import Any

from datasets import DatasetInfo, Features, Image, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from hf_common.commands import command_line, shell_word
from hf_common.plugins import FLAG, needs_plugins
from hf_common.tables import code, escaped, visible

from ..noise.base import NoiseKind
from ..noise.from_matrix import PREFIX, MatrixByName, is_matrix_name
from ..noise.human import is_human_name
from ..noise.kinds import KINDS, kind_of
from ..noise.mapped import MappedNoise
from .figures import MOST_NAMES, has_matrices
from .form import ANY, CIFAR10, entry_files, manifest_form, megabytes
from .manifest import features_of
from .shards import config_features
from .source import image_columns

# Stand for the repository in the card of a folder that no one has published.
UNPUBLISHED = {CIFAR10: "USER/noisy-cifar10", ANY: "USER/noisy-dataset"}
MOST_CONFUSIONS = 10  # that are shown of a matrix which is too large to be


def dataset_card(manifest: dict) -> str:
    """The README.md of a data set folder: YAML that `datasets` reads, and what a reader wants to know.

    Its text is the template `model_cards/templates/noisy_cifar10.md.jinja`, or `noisy_dataset.md.jinja`, with what the
    kinds of noise say of themselves, its pictures lie in the folder as `write_figures` writes them.

    Args:
        manifest (`dict`): what `build_noisy_cifar10` or `build_noisy_dataset` returns.

    Raises:
        ValueError: a config whose noise a plugin registers that is not imported.
    """
    form = manifest_form(manifest)
    kinds = _kinds(manifest)
    recorded = any(kind.recorded for kind in kinds)
    features = config_features(_kept(manifest), manifest["class_names"])
    data = _dataset_card_data(manifest, features, recorded)
    _describe_configs(data, manifest, features)
    template = (files("model_cards") / "templates" / form.template).read_text(encoding="utf-8")
    # `configs`, `test`, `seed` and so on of the template are the manifest's.
    card = DatasetCard.from_template(
        data,
        template_str=template,
        **manifest | {"repo_id": manifest["repo_id"] or UNPUBLISHED[form]},
        published=manifest["repo_id"] is not None,
        kinds=kinds,
        code=code,
        escaped=escaped,
        papers=sorted((kind.paper for kind in kinds if kind.paper), key=lambda paper: paper.where.split()[-1]),
        recorded=recorded,
        example=next((name for name in manifest["configs"] if name != "clean"), "clean"),
        command=_command(manifest, recorded) if form is CIFAR10 else _any_command(manifest, recorded),
        rates_figure=form.rates_figure,
        matrices_figure=form.matrices_figure,
        **({} if form is CIFAR10 else _any_words(manifest, kinds, features)),
    )
    return str(card)


def _kinds(manifest: dict) -> list[NoiseKind]:
    """Of the configs, in the order of the table; those of matrices, which have no place in it, last."""
    unknown = [name for name in manifest["configs"] if kind_of(name) is None]
    if unknown and manifest.get("plugins"):
        raise ValueError(f"config {unknown[0]!r} {needs_plugins(manifest['plugins'])}")
    there = {kind_of(name) for name in manifest["configs"]}
    matrices = [MatrixByName()] if any(map(is_matrix_name, manifest["configs"])) else []
    return [*(kind for kind in KINDS.values() if kind in there), *matrices]


def _kept(manifest: dict) -> Features:
    return Features({"img": Image()}) if manifest_form(manifest) is CIFAR10 else features_of(manifest)


def _dataset_card_data(manifest: dict, features: Features, recorded: bool) -> DatasetCardData:
    if manifest_form(manifest) is CIFAR10:
        return DatasetCardData(
            pretty_name="CIFAR-10 with noisy labels",
            task_categories=["image-classification"],
            source_datasets=["uoft-cs/cifar10"],
            license=["unknown", "cc-by-nc-4.0"] if recorded else "unknown",
            tags=["noisy-labels", "label-noise", "cifar-10", *(["cifar-10n"] if recorded else [])],
        )
    return DatasetCardData(
        pretty_name=f"{visible(manifest['source'])} with noisy labels",
        task_categories=["image-classification" if image_columns(features) else "text-classification"],
        license="unknown",
        tags=["noisy-labels", "label-noise"],
    )


def _describe_configs(data: DatasetCardData, manifest: dict, features: Features) -> None:
    """Tell `datasets`, in the YAML, which files a config has and what is in them."""
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    for name, entry in manifest["configs"].items():
        splits = {"train": entry} | ({} if manifest["test"] is None else {"test": manifest["test"]})
        paths = {split: entry_files(manifest, "test" if split == "test" else name) for split in splits}
        configs[name] = {
            "data_files": [
                {"split": split, "path": found[0] if len(found) == 1 else found} for split, found in paths.items()
            ],
            **({"default": True} if name == "clean" else {}),
        }
        infos[name] = DatasetInfo(
            config_name=name,
            features=features,
            splits=SplitDict(
                {
                    split: SplitInfo(split, num_bytes=of["num_bytes"], num_examples=of["num_examples"])
                    for split, of in splits.items()
                }
            ),
            download_size=sum(of["file_bytes"] for of in splits.values()),
            dataset_size=sum(of["num_bytes"] for of in splits.values()),
        )
    infos.to_dataset_card_data(data)
    configs.to_dataset_card_data(data)


def _command(manifest: dict, recorded: bool) -> str:
    words = [
        *("python", "scripts/make_noisy_cifar10.py", "--output_dir", "noisy-cifar10"),
        *((FLAG, *(shlex.quote(visible(name)) for name in manifest["plugins"])) if manifest.get("plugins") else ()),
        *("--source", shlex.quote(visible(manifest["source"]))),
        *("--seed", str(manifest["seed"]), "--sampling", manifest["sampling"]),
        *(("--human_labels", "CIFAR-10_human.pt") if recorded else ()),
        *("--configs", *manifest["configs"]),
    ]
    lines = textwrap.wrap(
        " ".join(words), 84, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)


def _any_command(manifest: dict, recorded: bool) -> str:
    split, share = manifest["test_split"], manifest["validation_split"]
    flags = {
        "plugins": manifest.get("plugins"),
        "source": manifest["source"],
        "source_config": manifest["source_config"],
        "label_column_name": manifest["label_column"],
        "text_column_name": manifest["text_columns"],
        "columns": list(manifest["features"]),
        "test_split": "none" if split is share is None else split,
        "validation_split": share,
        "superclass_column": manifest["superclass_column"],
        "skip_corrupt": manifest.get("skip_corrupt") or None,
        "human_labels": "FILE" if recorded else None,
        "semantic_map": "FILE" if "semantic" in manifest["maps"] else None,
        "seed": manifest["seed"],
        "sampling": manifest["sampling"],
        "max_shard_size": manifest["max_shard_size"],
        "output_dir": "noisy-dataset",
        "configs": [f"{PREFIX}FILE" if is_matrix_name(name) else name for name in manifest["configs"]],
    }
    return command_line(ANY.command.split(), flags)


def _any_words(manifest: dict, kinds: list[NoiseKind], features: Features) -> dict[str, Any]:
    """What the template of any data set says beyond the manifest."""
    images = image_columns(features)
    return {
        "entries": {kind.pattern: _noise_words(kind, manifest) for kind in kinds},
        "contents": {name: _column_words(name, feature, images) for name, feature in features.items()},
        "image": images[0] if images else None,
        "small": len(manifest["class_names"]) <= MOST_NAMES,
        "confusions": {name: _confusions(entry["matrix"] or []) for name, entry in manifest["configs"].items()},
        "matrices": has_matrices(manifest),
        "texts": " ".join(map(shell_word, manifest["text_columns"] or ())),
        "megabytes": megabytes,
        "recorded_configs": [name for name in manifest["configs"] if is_human_name(name)],
    }


def _noise_words(kind: NoiseKind, manifest: dict) -> str:
    """What a kind does to these classes."""
    names = manifest["class_names"]
    if isinstance(kind, MappedNoise) and kind.name in manifest["maps"]:
        targets = {int(source): target for source, target in manifest["maps"][kind.name].items()}
        return kind.with_targets(targets, len(names)).entry_of([escaped(name) for name in names])
    if kind.recorded:
        return "labels that people gave. Recorded, not drawn."
    if isinstance(kind, MatrixByName):
        return kind.entry
    return f"{kind.words.format(rate='RR')}."  # its `entry` is of CIFAR-10's ten classes


def _column_words(name: str, feature: Any, images: list[str]) -> str:
    ours = {"label": "the label to train on: noisy in `train`, clean in `test`", "clean_label": "the source's label"}
    if name in ours:
        return ours[name]
    return "the image, its bytes as they are in the source" if name in images else "as in the source"


def _confusions(matrix: list[list[float]]) -> list[tuple[int, int, float]]:
    """The largest shares off the diagonal: clean class, label, share."""
    pairs = [(i, j, share) for i, row in enumerate(matrix) for j, share in enumerate(row) if i != j and share]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))[:MOST_CONFUSIONS]
