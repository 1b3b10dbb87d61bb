"""Publish a metric of `evaluate` as a Gradio Space on the Hub, by one commit.

    python scripts/publish_metric.py evaluate_metrics/cmmd USER/cmmd
    python scripts/publish_metric.py evaluate_metrics/fid USER/fid --private

The Space is the folder's .py files, README.md and requirements.txt, and is made if it does not exist. What the
metric's script and the app import from the packages of this repository is written into them. After that
evaluate.load("USER/cmmd", "clip") works wherever the packages of requirements.txt are installed (gradio is for the
Space's page alone), and the page shows the app.

The repository must be called as the folder and its script are. Whatever would keep the metric from loading elsewhere,
or the push from succeeding, is told before anything is sent: a file that evaluate would not copy, a package that
requirements.txt lacks, a name that evaluate can't import, no right to write there, a Space of something else. Nothing
is sent that is there already; files of an earlier version that the folder lacks are deleted.

evaluate takes the branch or tag v<its version> (v0.4.6) where a Space has one, else main; those who want another
branch name it: evaluate.load("USER/cmmd", revision="BRANCH").
"""

from dataclasses import dataclass, field

from hf_common.flags import FlagParser
from hf_common.running import STARTS_OVER, run_command


@dataclass
class PublishArguments:
    _argument_group_name = "Space"

    private: bool = field(
        default=False, metadata={"help": "Make the Space a private one (default: as its owner's settings say)."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch of the Space, made if need be (default: main)."}
    )
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of committing."})
    hub_token: str | None = field(
        default=None, metadata={"help": "Token of the Hub (default: of hf auth login, or HF_TOKEN)."}
    )


def main() -> None:
    parser = FlagParser(PublishArguments, description=__doc__)
    parser.add_argument("folder", help="The metric: a folder NAME with NAME.py, README.md, requirements.txt, app.py.")
    parser.add_argument("repo_id", help="USER/NAME of the Space.")
    args, positional = parser.parse_args_into_dataclasses()
    from huggingface_hub.errors import HTTPError

    from evaluate_metrics.publishing import publish_space

    folder, repo_id = positional.folder, positional.repo_id
    try:
        commit = publish_space(
            folder,
            repo_id,
            token=args.hub_token,
            private=args.private or None,
            revision=args.revision,
            create_pr=args.create_pr,
        )
    except (ValueError, OSError, HTTPError) as error:
        parser.error(str(error))
    assert commit is not None  # it was sent
    revision = commit.pr_revision or args.revision
    where = "" if revision is None else f", revision={revision!r}"
    print(f"{commit.pr_url or commit.repo_url}\nevaluate.load({repo_id!r}{where})")


def run() -> None:
    """The command."""
    run_command(main, STARTS_OVER)
