"""The trainer's way to the Hub: a card, and one commit of a whole model."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer

from hf_common.files import replace_text

from .card import first_name, trainer_card
from .push import check_hub_repo, push_model


class PushingTrainer(Trainer):
    """A `Trainer` that pushes what it has trained as one commit: no checkpoint and nothing pickled."""

    args: Any
    hub_model_id: str | None  # type: ignore[assignment]  # None in Trainer before it is set

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """On the first process, raise what would make a push fail. The repository itself is made by the push."""
        if self.is_world_process_zero():
            check_hub_repo(self.args, token=token, private=private)
            self.hub_model_id = self.args.hub_model_id

    def push_to_hub(  # type: ignore[override]  # Trainer's, too, returns None where it pushes nothing
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> CommitInfo | None:
        """Upload weights, config, code, processor and card to `args.hub_model_id`, as one commit.

        They are saved anew: nothing else of `output_dir` is sent, no checkpoint and nothing pickled. Every process
        has to call this, the first one pushes.

        Args:
            token, revision, private: by default `args.hub_token`, `args.hub_revision`, `args.hub_private_repo`.
            card: arguments of [`~RobustTrainer.create_model_card`].

        Returns:
            `CommitInfo`, on the first process.

        Raises:
            ValueError: `blocking` is False, or what [`check_push`] refuses.
            PermissionError, ConnectionError: as for [`push_folder`].
        """
        if not blocking:
            raise ValueError(
                "blocking=False is not supported: a push that fails later would fail unseen. Allowed: True"
            )
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        with tempfile.TemporaryDirectory() as folder:
            self.save_model(folder, _internal_call=True)
            if not self.is_world_process_zero():
                return None
            self.create_model_card(**card)
            shutil.copyfile(Path(self.args.output_dir) / "README.md", Path(folder) / "README.md")
            return push_model(self.args, folder, commit_message or "", token=token, private=private, revision=revision)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `README.md` to `output_dir`: what the trainer knows, from its arguments, loss and log history.

        Args:
            language, license: of the card's metadata.
            tags: beside those that the card has anyway.
            model_name: the title. By default the last part of `hub_model_id`.
            finetuned_from: Hub id. By default the one that the model was loaded from.
            tasks: by default `image-classification` with an image processor, `text-classification` with a tokenizer.
            dataset_tags: Hub ids of the training data.
            dataset: their names.
            dataset_args: their configs, such as `symmetric_40`.
        """
        if not self.is_world_process_zero():
            return
        card = trainer_card(
            self,
            base_model=finetuned_from,
            dataset=first_name(dataset_tags) or first_name(dataset),
            noise=first_name(dataset_args),
            name=model_name,
            task=first_name(tasks),
            metadata={"language": language, "license": license, "datasets": dataset_tags},
            tags=[tags] if isinstance(tags, str) else tags or [],
        )
        replace_text(Path(self.args.output_dir) / "README.md", card)
