"""The data set card of CIFAR-10 with noisy labels, from its manifest and from nothing else."""

import shlex
import textwrap
from importlib.resources import files

from datasets import ClassLabel, DatasetInfo, Features, Image, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from .figures import MATRICES_FIGURE, RATES_FIGURE

UNPUBLISHED = "USER/noisy-cifar10"  # stands for the repository in the card of a folder that no one has published


def dataset_card(manifest: dict, train_file: str, test_file: str) -> str:
    """The README.md of a data set folder: YAML that `datasets` reads, and what a reader wants to know.

    Its text is the template `model_cards/noisy_cifar10.md.jinja`, its pictures lie in the folder as `write_figures`
    writes them.

    Args:
        manifest (`dict`): what `build_noisy_cifar10` returns.
        train_file, test_file (`str`): names of the files in a config's folder and in the folder `test`.
    """
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    label = ClassLabel(names=manifest["class_names"])
    features = Features({"img": Image(), "label": label, "clean_label": label})
    test = manifest["test"]
    for name, entry in manifest["configs"].items():
        configs[name] = {
            "data_files": [
                {"split": "train", "path": f"{name}/{train_file}"},
                {"split": "test", "path": f"test/{test_file}"},
            ],
            **({"default": True} if name == "clean" else {}),
        }
        splits = {"train": entry, "test": test}
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
    kinds = {name.split("_")[0] for name in manifest["configs"]}
    data = DatasetCardData(
        pretty_name="CIFAR-10 with noisy labels",
        task_categories=["image-classification"],
        source_datasets=["uoft-cs/cifar10"],
        license=["unknown", "cc-by-nc-4.0"] if "human" in kinds else "unknown",
        tags=["noisy-labels", "label-noise", "cifar-10", *(["cifar-10n"] if "human" in kinds else [])],
    )
    infos.to_dataset_card_data(data)
    configs.to_dataset_card_data(data)
    template = files("model_cards").joinpath("noisy_cifar10.md.jinja").read_text(encoding="utf-8")
    # `configs`, `test`, `seed` and so on of the template are the manifest's.
    card = DatasetCard.from_template(
        data,
        template_str=template,
        **manifest | {"repo_id": manifest["repo_id"] or UNPUBLISHED},
        kinds=kinds,
        example=next((name for name in manifest["configs"] if name != "clean"), "clean"),
        command=_command(manifest, "human" in kinds),
        rates_figure=RATES_FIGURE,
        matrices_figure=MATRICES_FIGURE,
    )
    return str(card)


def _command(manifest: dict, human: bool) -> str:
    words = [
        *("python", "scripts/make_noisy_cifar10.py", "--output_dir", "noisy-cifar10"),
        *("--source", shlex.quote(manifest["source"])),
        *("--seed", str(manifest["seed"]), "--sampling", manifest["sampling"]),
        *(("--human_labels", "CIFAR-10_human.pt") if human else ()),
        *("--configs", *manifest["configs"]),
    ]
    lines = textwrap.wrap(
        " ".join(words), 84, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return " \\\n".join(lines)
