"""Train a Diffusion Transformer on images, with or without classes, on pixels or on the latents of an autoencoder.

    accelerate launch scripts/train_dit.py --dataset_name uoft-cs/cifar10 --model dit-tiny-4 --random_flip \\
        --train_batch_size 64 --max_train_steps 2000 --output_dir runs/cifar10
    accelerate launch --mixed_precision bf16 scripts/train_dit.py --train_data_dir my_images --resolution 64 \\
        --model dit-s-4 --attention na7 --dataloader_num_workers 4 --output_dir runs/my-images-na7
    accelerate launch --mixed_precision bf16 scripts/train_dit.py --train_data_dir my_images --resolution 256 \\
        --vae stabilityai/sd-vae-ft-mse --random_flip --model dit-s-2 --dataloader_num_workers 4 \\
        --output_dir runs/my-images-latents
    accelerate launch scripts/train_dit.py --train_data_dir my_images --resolution 64 --model dit-s-4 \\
        --objective flow --eval_metric evaluate_metrics/cmmd --eval_steps 5000 --output_dir runs/my-images-flow
    accelerate launch scripts/train_dit.py --train_data_dir my_images --resolution 64 --unconditional \\
        --model dit-s-4 --resume_from_checkpoint last --output_dir runs/my-images-unconditional

A data set is a Hub id, a folder of Parquet files (--dataset_name FOLDER), or a folder of image files with a subfolder
for each class (--train_data_dir FOLDER). Writes the pipeline (averaged weights), results.json, loss_curve.png, sample
grids and checkpoints to --output_dir, which one process at a time may have. A killed run goes on with
--resume_from_checkpoint last and ends with the same weights; Ctrl+C and SIGTERM write a checkpoint before they end
it (with status 128 + the signal's number).

On N GPUs, accelerate launch starts N processes, and an optimizer step takes N times --train_batch_size images: divide
it by N to keep the batch, and the weights are those of one GPU but for rounding. On CPUs, accelerate launch --cpu
starts one process only (without MPI); either of these starts two:

    accelerate launch --multi_gpu --num_processes 2 scripts/train_dit.py --use_cpu ...
    torchrun --nproc_per_node 2 scripts/train_dit.py --use_cpu --dataset_name uoft-cs/cifar10 --model dit-tiny-4 \\
        --train_batch_size 32 --max_train_steps 2000 --output_dir runs/cifar10

With --fsdp each of N processes holds its part of weights, average, gradients and optimizer states, in all five times
the weights; the first one gathers the weights alone, to save and to sample. Weights, pipeline and checkpoints are, but
for rounding, those of a training without it. It takes two processes or more, in float32 or --mixed_precision bf16.
accelerate launch --use_fsdp, which shards in another way, is refused.

Launchers give a process one CPU thread unless OMP_NUM_THREADS says more.

--push_to_hub --hub_model_id USER/NAME publishes the pipeline with its code (it loads where this package is not
installed), results.json, loss curve, samples and a model card, as one commit and without checkpoints. Name, token and
repository are checked before the training. If the push fails, the same command pushes the finished run and trains
nothing; with what sample_dit.py and evaluate_images.py have found out about it since, so does

    accelerate launch scripts/train_dit.py ... --output_dir runs/cifar10 --push_to_hub --hub_model_id USER/NAME \\
        --hub_study_dir runs/study --hub_score_dirs runs/scores-guidance1 runs/scores-guidance4 runs/scores-real

--eval_metric scores samples on the way, into results.json, the tracker and loss_curve.png, and keeps the best pipeline
in the folder best: that of the lowest first score, or what --metric_for_best_model and --greater_is_better say.
Several scores of one embedding:

    --eval_metric evaluate_metrics/image_quality --eval_arguments 'scores=["fd","precision_recall"]' \\
        --metric_for_best_model recall --greater_is_better

Flags are named as in diffusers' train_unconditional.py, but for --model (there --model_config_name_or_path),
--num_sample_images (--eval_batch_size), --sample_steps (--ddpm_num_inference_steps), --save_images_steps
(--save_images_epochs), --report_to (--logger) and --attention (--enable_xformers_memory_efficient_attention). Defaults
are those of the DiT paper: unlike there, the learning rate is constant without warm-up, Adam's first beta 0.9, weight
decay 0, gradients are not clipped (--max_grad_norm 1), weights are averaged (--no_use_ema) and one checkpoint is kept.
Images are never cropped at random. There is no --overwrite_output_dir, no --save_model_epochs (the checkpoints hold
the models) and no --logging_dir (it is OUTPUT_DIR/logs); a flag that is not known is an error.
"""

from dataclasses import dataclass, field, fields

from hf_common.flags import FlagParser
from hf_common.running import run_command
from hf_dit.training.arguments import DataArguments, DiTTrainingArguments, ModelArguments
from hf_dit.training.scoring_arguments import ScoringArguments


@dataclass
class HubArguments:
    """Whether and where the finished run is published."""

    _argument_group_name = "Hub"

    push_to_hub: bool = field(default=False, metadata={"help": "Publish the finished run on the Hub."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "USER/NAME of the repository; made if it does not exist."}
    )
    hub_token: str | None = field(default=None, metadata={"help": "Default: that of `hf auth login`, or HF_TOKEN."})
    hub_private_repo: bool = field(default=False, metadata={"help": "The repository is private."})
    hub_study_dir: str | None = field(
        default=None, metadata={"help": "Output folder of sample_dit.py: table and picture for the card."}
    )
    hub_score_dirs: list[str] | None = field(
        default=None, metadata={"help": "Output folders of evaluate_images.py: scores for the card."}
    )

    def __post_init__(self):
        given = [item.name for item in fields(self) if getattr(self, item.name) != item.default]
        if given and not self.push_to_hub:
            raise ValueError(f"{given[0]} has no effect without push_to_hub")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub needs hub_model_id, of the form user/name; got None")

    @property
    def target(self) -> dict:
        """Arguments that `check_push` and `push_folder` share."""
        from hf_dit.publishing.publish import REPOSITORY_FILES

        return {
            "repo_id": self.hub_model_id,
            "names": REPOSITORY_FILES,
            "token": self.hub_token,
            "private": self.hub_private_repo or None,
        }

    def check(self) -> None:
        """Raise what would make the push fail."""
        from hf_common.hub import check_push
        from hf_dit.publishing.publish import read_scores, read_study

        if self.hub_study_dir is not None:
            read_study(self.hub_study_dir)
        read_scores(self.hub_score_dirs or [])
        check_push(**self.target)


def push(output_dir: str, hub: HubArguments) -> None:
    """Publish the finished run in `output_dir`."""
    from hf_dit.publishing.publish import push_pipeline

    commit = push_pipeline(output_dir, hub.target, hub.hub_study_dir, hub.hub_score_dirs or [])
    print(f"published: {commit.repo_url}")


def main() -> None:
    parts = (DataArguments, ModelArguments, DiTTrainingArguments, ScoringArguments, HubArguments)
    data, model, args, scoring, hub = FlagParser(parts, description=__doc__).parse_args_into_dataclasses()
    from accelerate import PartialState

    from hf_common.processes import leave_processes
    from hf_dit.training.run import train_dit

    train_dit(data, model, args, scoring=scoring, check_push=hub.check if hub.push_to_hub else None)
    if hub.push_to_hub and PartialState().is_main_process:
        push(args.output_dir, hub)
    leave_processes()


def run() -> None:
    """The command."""
    run_command(
        main,
        "the newest checkpoint, if any yet, or the finished pipeline is kept in --output_dir; this goes on:",
        flags=("--resume_from_checkpoint=last",),
    )
