"""The data set card of CIFAR-10 with noisy labels, from its manifest and from nothing else."""

from datasets import ClassLabel, DatasetInfo, Features, Image, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from .cifar10n import HUMAN_CONFIGS


def dataset_card(manifest: dict, train_file: str, test_file: str) -> str:
    """The README.md of a data set folder: YAML that `datasets` reads, and what a reader wants to know.

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
    human = any(name in HUMAN_CONFIGS for name in manifest["configs"])
    data = DatasetCardData(
        pretty_name="CIFAR-10 with noisy labels",
        task_categories=["image-classification"],
        source_datasets=["uoft-cs/cifar10"],
        license=["unknown", "cc-by-nc-4.0"] if human else "unknown",
        tags=["noisy-labels", "label-noise", "cifar-10", *(["cifar-10n"] if human else [])],
    )
    infos.to_dataset_card_data(data)
    configs.to_dataset_card_data(data)
    # The text that DatasetCard would give, which parses its YAML and dumps it again: four times as long, per config.
    return f"---\n{data}\n---\n{_card_body(manifest, human)}"


def _card_body(manifest, human) -> str:
    entries = manifest["configs"]
    example = next((name for name in entries if name != "clean"), "clean")
    rates = [
        f"| `{name}` | {entry['num_examples']} | {round(entry['rate'] * entry['num_examples'])} "
        f"| {100 * entry['rate']:.3f} |"
        for name, entry in entries.items()
    ]
    matrices = [_card_matrix(name, entry["matrix"], manifest["class_names"]) for name, entry in entries.items()]
    made = {
        "quota": "of each class that the noise flips exactly round(RR / 100 * n) of its n images",
        "bernoulli": "each image for itself with probability RR / 100",
    }[manifest["sampling"]]
    return CARD.format(
        example=example,
        rates="\n".join(rates),
        matrices="\n\n".join(matrices),
        source=manifest["source"],
        fingerprint=manifest["source_fingerprint"],
        seed=manifest["seed"],
        sampling=manifest["sampling"],
        made=made,
        human_noise=CARD_HUMAN_NOISE if human else "",
        human_licence=CARD_HUMAN_LICENCE if human else "",
        human_citation=CARD_HUMAN_CITATION if human else "",
    )


def _card_matrix(name, matrix, class_names) -> str:
    lines = [f"| clean \\ noisy | {' | '.join(class_names)} |", f"|---{'|---:' * len(class_names)}|"]
    for clean_class, row in zip(class_names, matrix, strict=True):
        lines.append(f"| {clean_class} | {' | '.join(f'{100 * share:.2f}' for share in row)} |")
    table = "\n".join(lines)
    return f"<details><summary><code>{name}</code></summary>\n\n{table}\n\n</details>"


CARD = """
# CIFAR-10 with noisy labels

The training images of CIFAR-10 with wrong labels of several kinds and rates, one config for each, and the clean test
split, the same for all of them.

```python
from datasets import load_dataset

dataset = load_dataset("<this repository or folder>", "{example}")
dataset["train"][0]  # {{"img": <PIL image>, "label": 3, "clean_label": 6}}
```

| column | content |
|---|---|
| `img` | the 32x32 RGB image, its bytes as they are in the source |
| `label` | the label to train on: noisy in `train`, clean in `test` |
| `clean_label` | the label of CIFAR-10 |

## The noise

- `clean`: `label` equals `clean_label`.
- `symmetric_RR`: RR percent of each class go to the nine *other* classes in equal parts (Ma et al. 2020).
- `asymmetric_RR`: RR percent of each class c go to class (c + 1) mod 10 (Han et al. 2018, pair flip).
- `semantic_RR`: RR percent of truck go to automobile, of bird to airplane, of deer to horse, of cat to dog and of dog
  to cat (Patrini et al. 2017). The images are told apart by their clean labels, so that no cat turned dog is turned
  back. The other five classes stay clean, so RR / 2 percent of all labels are wrong.
- `instance_RR`: the wrong label, and how likely it is, depend on the pixels (Xia et al. 2020): flip probability
  from a normal (RR / 100, 0.1) truncated to [0, 1], wrong class from softmax(x W[y]) with W ~ N(0, 1) and x the raw
  pixels 0..255.
{human_noise}
Drawn with seed {seed} and `{sampling}` sampling: {made}.
Source: `{source}`, SHA-256 of its images and labels
`{fingerprint}`.

Measured on the training split:

| config | images | wrong labels | rate (%) |
|---|---:|---:|---:|
{rates}

### Transition matrices

Percent of each clean class (row) that bears each label (column), measured on the training split.

{matrices}

## Licence

CIFAR-10 was published for research without a licence text; its authors ask for the citation below.
{human_licence}
## Citation

- A. Krizhevsky. *Learning Multiple Layers of Features from Tiny Images.* Technical report, University of Toronto,
  2009.
- G. Patrini, A. Rozza, A. K. Menon, R. Nock, L. Qu. *Making Deep Neural Networks Robust to Label Noise: a Loss
  Correction Approach.* CVPR 2017.
- B. Han, Q. Yao, X. Yu, G. Niu, M. Xu, W. Hu, I. Tsang, M. Sugiyama. *Co-teaching: Robust Training of Deep Neural
  Networks with Extremely Noisy Labels.* NeurIPS 2018.
- X. Ma, H. Huang, Y. Wang, S. Romano, S. Erfani, J. Bailey. *Normalized Loss Functions for Deep Learning with Noisy
  Labels.* ICML 2020.
- X. Xia, T. Liu, B. Han, N. Wang, M. Gong, H. Liu, G. Niu, D. Tao, M. Sugiyama. *Part-dependent Label Noise: Towards
  Instance-dependent Label Noise.* NeurIPS 2020.
{human_citation}"""

CARD_HUMAN_NOISE = """- `human_*`: the labels that people gave (CIFAR-10N, Wei et al. 2022): by the first, second and
  third annotator of each image (`random1`, `random2`, `random3`), by their majority (`aggregate`), and a wrong one of
  the three wherever there is one (`worst`). Recorded, not drawn.
"""

CARD_HUMAN_LICENCE = """
The labels of the `human_*` configs are those of CIFAR-10N, under CC BY-NC 4.0.
"""

CARD_HUMAN_CITATION = """- J. Wei, Z. Zhu, H. Cheng, T. Liu, G. Niu, Y. Liu. *Learning with Noisy Labels Revisited: A
  Study Using Real-World Human Annotations.* ICLR 2022.
"""
