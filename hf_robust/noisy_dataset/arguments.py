"""What the two commands that build data set folders share: where they publish, how, and what they print."""

from dataclasses import dataclass, field

from .form import megabytes

GOES_ON = "the configs that are finished are kept in --output_dir; the same command builds the others:"


@dataclass
class RepositoryArguments:
    _argument_group_name = "Hub"

    push_to_hub: str | None = field(
        default=None,
        metadata={
            "help": "USER/NAME of a data set repository, made if need be: publish the folder there by one commit, "
            "without the files that are there already. What would make it fail is told before anything is built."
        },
    )
    private: bool = field(
        default=False, metadata={"help": "Make the repository a private one (default: as its owner's settings say)."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch of the repository, made if need be (default: main)."}
    )
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})
    hub_token: str | None = field(
        default=None, metadata={"help": "Token of the Hub (default: of hf auth login, or HF_TOKEN)."}
    )

    def __post_init__(self):
        if self.push_to_hub is None and (self.private or self.revision or self.create_pr or self.hub_token):
            raise ValueError("private, revision, create_pr and hub_token need push_to_hub")

    @property
    def target(self) -> dict:
        """What both the check before the build and the push are given."""
        return {"token": self.hub_token, "private": self.private or None, "revision": self.revision}


def print_configs(manifest: dict, output_dir: str, what: str) -> None:
    """A line a config: how many rows, how many of them wrong, and the size of the files."""
    width = max(18, 2 + max(map(len, manifest["configs"])))
    print(f"{'config':<{width}}{what:>8}{'realised rate':>16}{'MB':>9}")
    for name, entry in manifest["configs"].items():
        print(f"{name:<{width}}{entry['num_examples']:>8}{entry['rate']:>16.3%}{megabytes(entry['file_bytes']):>9}")
    print(f"{len(manifest['configs'])} configs in {output_dir}")


def publish_built(output_dir: str, hub: RepositoryArguments) -> None:
    """Push the folder, where a repository was named, and print where it is."""
    if hub.push_to_hub is None:
        return
    from .hub import publish_noisy_dataset

    commit = publish_noisy_dataset(output_dir, hub.push_to_hub, create_pr=hub.create_pr, **hub.target)
    print(commit.pr_url or commit.commit_url)
