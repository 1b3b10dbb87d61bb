"""A trained model on the Hub: one commit of a whole model, checked before anything is sent."""

from pathlib import Path

from huggingface_hub import CommitInfo
from transformers import TrainingArguments

from hf_common.hub import check_push, push_folder

from ..reports.card import MODEL_FILES
from .arguments import refuse_pushed_checkpoints


def check_hub_repo(args: TrainingArguments, *, token: str | None = None, private: bool | None = None) -> None:
    """Raise now what would make a push of the model fail later: see [`check_push`]."""
    refuse_pushed_checkpoints(args)  # again: `args.set_push_to_hub` changes them late
    if args.hub_model_id is None:
        raise ValueError("hub_model_id must be of the form user/name to push to the Hub; got None")
    check_push(
        args.hub_model_id or "",
        names=MODEL_FILES,
        token=args.hub_token if token is None else token,
        private=args.hub_private_repo if private is None else private,
        revision=args.hub_revision,
    )


def push_model(
    args: TrainingArguments,
    folder: str | Path,
    commit_message: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """Make `args.hub_model_id` hold what of a model's files lies in `folder`: see [`push_folder`].

    What is None is as `args` say.
    """
    return push_folder(
        folder,
        args.hub_model_id or "",
        names=MODEL_FILES,
        token=args.hub_token if token is None else token,
        private=args.hub_private_repo if private is None else private,
        revision=args.hub_revision if revision is None else revision,
        commit_message=commit_message,
    )
