"""CIFAR-10 with noisy labels as one data set folder of many configs, readable by `load_dataset(folder, config)` alone.

Layout: `<config>/train-00000-of-00001.parquet` for each config, one `test/test-00000-of-00001.parquet` for all of
them, the card `README.md` that tells `datasets` which is which, and the manifest `noisy_cifar10.json` that tells a
later build what is finished. The image bytes are those of the source. They come first in every file, in one row group
cut into content-defined pages, so that storage that keeps equal chunks once holds the images once for all configs.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData
from tqdm.auto import tqdm

from .noise import NoiseSpec, check_labels, make_noisy_labels, realised_matrix, realised_rate

MANIFEST = "noisy_cifar10.json"
NUM_CLASSES = 10
IMAGE_SIZE = (32, 32)
CLASS_NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()

CONFIGS = (
    "clean",
    *(f"symmetric_{rate}" for rate in (20, 30, 40, 50, 60, 70, 80)),
    *(f"asymmetric_{rate}" for rate in (10, 20, 30, 40)),
    *(f"semantic_{rate}" for rate in (10, 20, 30, 40)),
    *(f"instance_{rate}" for rate in (20, 40, 60)),
)
# CIFAR-10N (Wei et al. 2022): the config, and the key of its labels in the published CIFAR-10_human.pt.
HUMAN_CONFIGS = {
    "human_aggregate": "aggre_label",
    "human_random1": "random_label1",
    "human_random2": "random_label2",
    "human_random3": "random_label3",
    "human_worst": "worse_label",
}

TRAIN_FILE = "train-00000-of-00001.parquet"
TEST_FILE = "test-00000-of-00001.parquet"
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

    Returns:
        `dict`: the manifest: `source`, `source_fingerprint`, `seed`, `sampling`, `class_names`, `test` and `configs`,
        the last with `num_examples`, `num_bytes` (Arrow), `file_bytes`, `rate` (share of wrong labels, in [0, 1]) and
        `matrix` (10 x 10, rows are clean classes) for each config, in the order in which they were built.

    Raises:
        ValueError: bad name, seed, sampling, columns, labels, image size, human labels in another order, or an output
            folder that holds something else. Nothing has been written then.
        TypeError: an argument of the wrong type.
    """
    # Everything that can be said without the images is said first.
    make_noisy_labels([0], "clean", num_classes=NUM_CLASSES, seed=seed, sampling=sampling)
    names = _resolve_configs(configs, human_labels is not None)
    output_dir = Path(output_dir)
    manifest = _read_manifest(output_dir, must_exist=False)
    if manifest:
        _check_same(output_dir, manifest, {"seed": seed, "sampling": sampling})
    human = {} if human_labels is None else read_human_labels(human_labels)

    train, test = _load_source(source)
    clean = train["labels"]
    if human:
        _check_same_order(human_labels, human.pop("clean"), clean)
    if any(name.startswith("semantic_") for name in names) and train["class_names"] != CLASS_NAMES:
        raise ValueError(
            f"configs: semantic noise is defined on the classes {CLASS_NAMES}, in this order; "
            f"the source has {train['class_names']}"
        )
    fingerprint = _fingerprint(train, test)
    if manifest:
        _check_same(output_dir, manifest, {"source_fingerprint": fingerprint})
    else:
        # A folder's full path means nothing to those who read the published manifest.
        name = Path(source).resolve().name if os.path.isdir(source) else source
        manifest = {
            "source": name,
            "source_fingerprint": fingerprint,
            "seed": int(seed),
            "sampling": sampling,
            "class_names": train["class_names"],
            "test": None,
            "configs": {},
        }

    todo = [name for name in names if name not in manifest["configs"]]
    _check_free(output_dir, manifest, todo)
    pixels = _decode(train["bytes"]) if any(name.startswith("instance_") for name in todo) else None

    _remove_unfinished(output_dir, manifest)
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_json(output_dir, manifest)
    if manifest["configs"]:
        _write_card(output_dir, manifest)
    if manifest["test"] is None:
        manifest["test"] = _add_folder(output_dir, manifest, "test", TEST_FILE, test, test["labels"])
        _write_json(output_dir, manifest)
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
        _write_json(output_dir, manifest)
        _write_card(output_dir, manifest)
    return manifest


def read_human_labels(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read CIFAR-10N (Wei et al. 2022).

    Args:
        path (`str` or `os.PathLike`): the published `CIFAR-10_human.pt`, a pickled dict of int64 arrays, or a
            `.parquet` file with the columns `clean` and `HUMAN_CONFIGS`. Of the pickle only arrays are read; a file
            that asks for anything else is refused before anything in it runs.

    Returns:
        `dict[str, np.ndarray]`: `clean` and each of `HUMAN_CONFIGS`: (N,) int64 in 0..9, N the same for all.

    Raises:
        ValueError: no such file, another suffix, missing columns or keys, labels outside 0..9, unequal lengths.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".pt"):
        raise ValueError(f"human_labels: expected a .parquet or .pt file, got {str(path)!r}")
    if not path.is_file():
        raise ValueError(f"human_labels: there is no file {str(path)!r}")
    if path.suffix == ".parquet":
        keys = {name: name for name in ("clean", *HUMAN_CONFIGS)}
        table = pq.read_table(path)
        columns = {name: table[name].to_numpy() for name in table.column_names}
    else:
        keys = {"clean": "clean_label", **HUMAN_CONFIGS}
        columns = _unpickle_arrays(path)

    missing = [key for key in keys.values() if key not in columns]
    if missing:
        raise ValueError(f"human_labels: {str(path)!r} lacks {missing}; it has {sorted(columns)}")
    labels = {
        name: check_labels(f"human_labels: {key!r} in {str(path)!r}", columns[key], NUM_CLASSES)
        for name, key in keys.items()
    }
    lengths = {name: len(column) for name, column in labels.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"human_labels: {str(path)!r} has columns of unequal lengths {lengths}")
    return labels


def chunk_reuse(folder: str | os.PathLike, average: int = 65536) -> list[dict]:
    """How many bytes each config adds to storage that keeps equal chunks once.

    The train file of each config, in the manifest's order, is cut by FastCDC (Xia et al. 2016) into content-defined
    chunks of `average` bytes on average, `average / 8` at least and `2 * average` at most; a chunk counts as new where
    no chunk before it, in this config or an earlier one, has the same SHA-256. The Hub's storage cuts at 64 KiB alike.

    Args:
        folder (`str` or `os.PathLike`): a folder written by `build_noisy_cifar10`.
        average (`int`, *optional*, defaults to 65536): bytes, in 512..2**28.

    Returns:
        `list[dict]`: per config `config`, `bytes`, `new_bytes` and `percent` (of its own bytes that are new).

    Raises:
        ValueError: a folder without manifest, or `average` out of range.
        ImportError: the package `fastcdc` is missing.
    """
    if not 512 <= average <= 2**28:
        raise ValueError(f"average: expected bytes in 512..{2**28}, got {average}")
    folder = Path(folder)
    manifest = _read_manifest(folder, must_exist=True)
    try:
        from fastcdc import fastcdc
    except ImportError as error:
        raise ImportError("chunk_reuse needs the package fastcdc: pip install fastcdc") from error

    seen, rows = set(), []
    for name in manifest["configs"]:
        size = new = 0
        path = str(folder / name / TRAIN_FILE)
        for chunk in fastcdc(path, average // 8, average, 2 * average, hf=hashlib.sha256):
            size += chunk.length
            if chunk.hash not in seen:
                seen.add(chunk.hash)
                new += chunk.length
        rows.append({"config": name, "bytes": size, "new_bytes": new, "percent": 100 * new / size})
    return rows


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
        try:
            pixels[position] = PIL.Image.open(io.BytesIO(data)).convert("RGB")
        except OSError as error:
            raise ValueError(f"source: image {position} of split 'train' cannot be decoded: {error}") from error
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


def _unpickle_arrays(path) -> dict:
    import torch  # here, because nothing else needs it

    # NumPy 2 renamed numpy.core to numpy._core; files name whichever wrote them.
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    reconstruct, scalar = np.ndarray(0).__reduce__()[0], np.int64(0).__reduce__()[0]
    allowed = [
        *((reconstruct, f"{module}._reconstruct") for module in modules),
        *((scalar, f"{module}.scalar") for module in modules),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.int64)),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"human_labels: {str(path)!r} is no pickled dict of NumPy arrays: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"human_labels: {str(path)!r} holds a {type(content).__name__}, expected a dict of arrays")
    return content


def _check_same_order(path, theirs, ours):
    if len(theirs) != len(ours):
        raise ValueError(f"human_labels: {str(path)!r} has {len(theirs)} rows, the source's train split {len(ours)}")
    different = np.flatnonzero(theirs != ours)
    if len(different):
        first = different[0]
        raise ValueError(
            f"human_labels: the clean labels of {str(path)!r} are not the source's, position by position: the first "
            f"difference is at {first} (file {theirs[first]}, source {ours[first]}), {len(different)} of {len(ours)} "
            "differ; the two are in different orders"
        )


# ----------------------------------------------------------------------------------------------------------- output


def _read_manifest(output_dir, must_exist) -> dict | None:
    # None for a folder that is new or empty; ValueError for one that is neither that nor ours.
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir: {str(output_dir)!r} is not a folder")
    path = output_dir / MANIFEST
    if path.is_file():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"output_dir: {str(path)!r} is damaged ({error}); name another folder") from error
        return manifest
    if must_exist:
        raise ValueError(f"output_dir: {str(output_dir)!r} has no {MANIFEST}; it was not built by build_noisy_cifar10")
    foreign = sorted(p.name for p in output_dir.glob("*") if not p.name.startswith(UNFINISHED))
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds something else ({shown}) and no {MANIFEST}; "
            "name a new or empty folder"
        )
    return None


def _check_same(output_dir, manifest, expected):
    for key, value in expected.items():
        if manifest[key] != value:
            raise ValueError(
                f"{key}: {str(output_dir)!r} was built with {manifest[key]!r}, this call has {value!r}; "
                "give the same or name another output_dir"
            )


def _check_free(output_dir, manifest, todo):
    # The folder announced as being built may exist: it is a leftover of our own.
    folders = {*todo, *([] if manifest["test"] else ["test"])} - {manifest.get("building")}
    occupied = sorted(name for name in folders if (output_dir / name).exists())
    if occupied:
        raise ValueError(
            f"output_dir: {str(output_dir)!r} holds {occupied}, which {MANIFEST} does not know; move them"
        )


def _remove_unfinished(output_dir, manifest):
    for path in output_dir.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    # A kill between the rename and the manifest leaves a folder that is complete but not recorded.
    unrecorded = manifest.pop("building", None)
    if unrecorded is not None:
        shutil.rmtree(output_dir / unrecorded, ignore_errors=True)


def _add_folder(output_dir, manifest, name, file_name, split, labels) -> dict:
    _write_json(output_dir, manifest | {"building": name})
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


def _replace_text(output_dir, name, text):
    unfinished = output_dir / f"{UNFINISHED}{name}"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, output_dir / name)


def _write_json(output_dir, manifest):
    _replace_text(output_dir, MANIFEST, json.dumps(manifest, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------- card


def _write_card(output_dir, manifest):
    configs, infos = MetadataConfigs(), DatasetInfosDict()
    label = ClassLabel(names=manifest["class_names"])
    features = Features({"img": Image(), "label": label, "clean_label": label})
    test = manifest["test"]
    for name, entry in manifest["configs"].items():
        configs[name] = {
            "data_files": [
                {"split": "train", "path": f"{name}/{TRAIN_FILE}"},
                {"split": "test", "path": f"test/{TEST_FILE}"},
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
    _replace_text(output_dir, "README.md", f"---\n{data}\n---\n{_card_body(manifest, human)}")


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
