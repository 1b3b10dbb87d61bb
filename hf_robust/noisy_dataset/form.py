"""The two forms of a data set folder: CIFAR-10 as it was published first, and any other data set; and their files."""

from dataclasses import dataclass
from pathlib import Path

TRAIN_FILE = "train-00000-of-00001.parquet"
TEST_FILE = "test-00000-of-00001.parquet"


@dataclass(frozen=True)
class Form:
    """How a folder calls what it holds.

    Attributes:
        name: before its manifest, its pictures and its card's template.
        builder: the function that writes such a folder.
        command: what users type for that.
        title: of a commit.
    """

    name: str
    builder: str
    command: str
    title: str

    @property
    def manifest(self) -> str:
        """The file that tells a later build what is finished."""
        return f"{self.name}.json"

    @property
    def rates_figure(self) -> str:
        return f"figures/{self.name}_rates.png"

    @property
    def matrices_figure(self) -> str:
        return f"figures/{self.name}_matrices.png"

    @property
    def template(self) -> str:
        return f"{self.name}.md.jinja"


CIFAR10 = Form(
    "noisy_cifar10", "build_noisy_cifar10", "python scripts/make_noisy_cifar10.py", "CIFAR-10 with noisy labels"
)
ANY = Form("noisy_dataset", "build_noisy_dataset", "hf-robust make-noisy-dataset", "Data set with noisy labels")
FORMS = (CIFAR10, ANY)


def form_of(folder: Path) -> Form:
    """That of a folder by its manifest; CIFAR-10's where there is none."""
    return next((form for form in FORMS if (folder / form.manifest).is_file()), CIFAR10)


def manifest_form(manifest: dict) -> Form:
    """That of a manifest by what it holds."""
    return ANY if "maps" in manifest else CIFAR10


def megabytes(num_bytes: int) -> str:
    """With one decimal place, or two digits of what would be 0.0."""
    return f"{num_bytes / 1e6:.1f}" if num_bytes >= 1e5 else f"{num_bytes / 1e6:.2g}"


def split_files(split: str, count: int) -> list[str]:
    """The names of a split's files: shards of consecutive rows."""
    return [f"{split}-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]


def entry_files(manifest: dict, config: str) -> list[str]:
    """The files of a config's training split, or those of `test`, relative to the folder."""
    entry = manifest["test"] if config == "test" else manifest["configs"][config]
    split = "test" if config == "test" else "train"
    return [f"{config}/{name}" for name in split_files(split, entry.get("num_files", 1))]
