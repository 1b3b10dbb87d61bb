"""The data set card of CIFAR-10 with noisy labels, from its manifest and from nothing else."""

import shlex
import textwrap
from importlib.resources import files

from datasets import ClassLabel, DatasetInfo, Features, Image, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from hf_common.tables import code, escaped, visible

from ..noise.kinds import KINDS, kind_of
from .figures import MATRICES_FIGURE, RATES_FIGURE
from .manifest import TEST_FILE, TRAIN_FILE

UNPUBLISHED = "USER/noisy-cifar10"  # stands for the repository in the card of a folder that no one has published


def dataset_card(manifest: dict) -> str:
    """The README.md of a data set folder: YAML that `datasets` reads, and what a reader wants to know.

    Its text is the template `model_cards/templates/noisy_cifar10.md.jinja` with what the kinds of noise say of
    themselves, its pictures lie in the folder as `write_figures` writes them.

    Args:
        manifest (`dict`): what `build_noisy_cifar10` returns.
    """
    there = {kind_of(name) for name in manifest["configs"]}
    kinds = [kind for kind in KINDS.values() if kind in there]
    recorded = any(kind.recorded for kind in kinds)
    data = DatasetCardData(
        pretty_name="CIFAR-10 with noisy labels",
        task_categories=["image-classification"],
        source_datasets=["uoft-cs/cifar10"],
        license=["unknown", "cc-by-nc-4.0"] if recorded else "unknown",
        tags=["noisy-labels", "label-noise", "cifar-10", *(["cifar-10n"] if recorded else [])],
    )
    _describe_configs(data, manifest)
    template = (files("model_cards") / "templates" / "noisy_cifar10.md.jinja").read_text(encoding="utf-8")
    # `configs`, `test`, `seed` and so on of the template are the manifest's.
    card = DatasetCard.from_template(
        data,
        template_str=template,
        **manifest | {"repo_id": manifest["repo_id"] or UNPUBLISHED},
        kinds=kinds,
        code=code,
        escaped=escaped,
        papers=sorted((kind.paper for kind in kinds if kind.paper), key=lambda paper: paper.where.split()[-1]),
        recorded=recorded,
        example=next((name for name in manifest["configs"] if name != "clean"), "clean"),
        command=_command(manifest, recorded),
        rates_figure=RATES_FIGURE,
        matrices_figure=MATRICES_FIGURE,
    )
    return str(card)


def _describe_configs(data: DatasetCardData, manifest: dict) -> None:
    """Tell `datasets`, in the YAML, which files a config has and what is in them."""
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    label = ClassLabel(names=manifest["class_names"])
    features = Features({"img": Image(), "label": label, "clean_label": label})
    for name, entry in manifest["configs"].items():
        configs[name] = {
            "data_files": [
                {"split": "train", "path": f"{name}/{TRAIN_FILE}"},
                {"split": "test", "path": f"test/{TEST_FILE}"},
            ],
            **({"default": True} if name == "clean" else {}),
        }
        splits = {"train": entry, "test": manifest["test"]}
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
        *("--source", shlex.quote(visible(manifest["source"]))),
        *("--seed", str(manifest["seed"]), "--sampling", manifest["sampling"]),
        *(("--human_labels", "CIFAR-10_human.pt") if recorded else ()),
        *("--configs", *manifest["configs"]),
    ]
    lines = textwrap.wrap(
        " ".join(words), 84, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)
