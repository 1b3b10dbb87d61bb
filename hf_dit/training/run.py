"""One training from arguments to `results.json`: images, model, loop, sample grids, the pipeline that is left."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
)
from torch import Tensor

from hf_common.environment import hardware, versions
from hf_common.files import publish_folder, save_figure, sync, write_json
from hf_common.plugins import loaded_plugins
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, SETTINGS, HeldFolder
from hf_common.sample_scores import SampleScorer
from hf_common.signals import deferred

from .. import LIBRARIES
from ..models.dit import DiTModel
from ..models.sizes import DIT_SIZES
from ..sampling.pipeline import DiTImagePipeline
from .arguments import PRECISIONS, DataArguments, DiTTrainingArguments, ModelArguments
from .checkpoints import checkpoint_step, claimed_checkpoint, finished_training
from .figures import plot_loss, sample_grid, sampling_pipeline, smoothed
from .files import FileSamples, fits_in_memory
from .images import ImageFormat, ImageRows, image_format, load_images, open_rows
from .latents import LatentMoments, cached_latents
from .loop import STATE, DiTTrainer
from .lora import has_adapter, merged, trained_parameters
from .network import DTYPES, check_attention, load_vae, open_network, sample_shape, training_scheduler
from .objectives.flow import FlowTimes
from .objectives.make import TrainingScheduler
from .pretrained import trained_prediction
from .records import read_state
from .scoring import SampleScores, reference_images
from .scoring_arguments import ScoringArguments
from .settings import settings_from_hub, settings_of_weights
from .sharding import check_sharding
from .stream import CleanSamples, PixelSamples, TrainingStream

# In these a process holds a part of the weights, not the whole model that is averaged, sampled and saved here.
SHARDED = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


def train_dit(
    data: DataArguments,
    model: ModelArguments,
    args: DiTTrainingArguments,
    *,
    scoring: ScoringArguments | None = None,
    check_push: Callable[[], None] | None = None,
) -> dict:
    """Train, and write into `args.output_dir`, which no other process may have at the same time:

    the pipeline (averaged weights, scheduler, autoencoder if any, class names), which
    `DiTImagePipeline.from_pretrained` loads; `results.json`; `loss_curve.png`; `samples/step-*.png`; the newest
    `checkpoint-*`.

    Args:
        scoring: what scores samples on the way, into `results.json`, the tracker and the picture of the loss, and
            keeps the best pipeline in the folder `best`; None, or without a metric: nothing.
        check_push: called on the first process before anything else; what it raises (`ValueError`, `OSError`) is
            raised on all. Where it is given, `output_dir` may hold this very run, finished: it is left as it is, for
            a push that failed.

    Returns:
        The content of `results.json`, on every process.

    Raises:
        ValueError: arguments, images, labels or the output folder do not fit, or another process has the folder;
            before the training begins.
        Stopped: a signal came (`hf_common.signals`); the checkpoint of the step is written.
        RuntimeError, ImportError: the attention cannot run here (before images are decoded); a loss is not finite.
    """
    if args.prediction_type == "flow":
        model = replace(model, learn_sigma=False)
    accelerator = make_accelerator(model, args)
    if check_push is not None:
        _decided(accelerator, check_push)
    check_guidance(data, model, args, scoring or ScoringArguments())
    with HeldFolder(args.output_dir, accelerator.process_index, accelerator.num_processes) as held:
        run = _Run(data, model, args, accelerator, scoring or ScoringArguments())
        held.take()
        return _finished(run, accelerator, check_push is not None)


def check_training(
    data: DataArguments, model: ModelArguments, args: DiTTrainingArguments, scoring: ScoringArguments
) -> None:
    """Raise what [`train_dit`] would of arguments, images, attention and network, and leave nothing.

    The metric and the output folder are looked at by [`train_dit`] alone.
    """
    if args.prediction_type == "flow":
        model = replace(model, learn_sigma=False)
    accelerator = make_accelerator(model, args)
    check_guidance(data, model, args, scoring)
    run = _Run(data, model, args, accelerator, scoring)
    if model.model not in DIT_SIZES:  # of a size the attention's check has made the network already
        run.network(lambda words: None)


def _finished(run: "_Run", accelerator: Accelerator, may_be_done: bool) -> dict:
    """The results of the run, which is trained unless it is done already and may be."""
    args = run.args
    results = None
    if may_be_done:
        results = _decided(accelerator, lambda: finished_training(run.output_dir, run.settings, run.steps))
    if results is not None:
        accelerator.print(f"{run.output_dir.resolve()} holds this run, finished")
    else:
        checkpoint = _decided(
            accelerator,
            lambda: claimed_checkpoint(run.output_dir, run.settings, run.steps, args.resume_from_checkpoint),
        )
        trainer = run.trainer()
        run.begin(trainer, checkpoint)
        trainer.train()
        results = run.finish(trainer)
    # Not `end_training`, which parts the processes: there may be another training.
    for tracker in accelerator.trackers:
        tracker.finish()
    return results


def _decided(accelerator: Accelerator, decide: Callable[[], Any]) -> Any:
    return from_first_process(decide, accelerator.process_index, accelerator.num_processes)


class _Run:
    """A training whose images are found and fit, from its samples to what it leaves in its folder."""

    def __init__(
        self,
        data: DataArguments,
        model: ModelArguments,
        args: DiTTrainingArguments,
        accelerator: Accelerator,
        scoring: ScoringArguments,
    ):
        self.data, self.model, self.args, self.accelerator = data, model, args, accelerator
        self.scoring = scoring
        self.output_dir = Path(args.output_dir)
        self.vae = load_vae(model.vae)
        if data.resolution is not None:
            check_attention(model, accelerator, sample_shape(self.vae, (data.resolution, data.resolution)))
        self.rows: ImageRows = open_rows(data)
        self.form: ImageFormat = image_format(self.rows, data)
        self.shape = sample_shape(self.vae, self.form.size)
        if data.resolution is None:
            check_attention(model, accelerator, self.shape)
        global_batch = args.global_batch(accelerator.num_processes)
        self.steps = args.max_train_steps or max(1, -(-round(args.num_epochs * len(self.rows)) // global_batch))
        self.settings = settings_of_weights(data, model, args, global_batch, accelerator.mixed_precision, self.steps)

    @property
    def id2label(self) -> dict[int, str] | None:
        return None if self.rows.label_names is None else dict(enumerate(self.rows.label_names))

    def samples(self) -> tuple[CleanSamples, Tensor | None]:
        """What is trained on, and the labels: images, or latents, which are encoded if need be."""
        skip_corrupt, printed = self.data.skip_corrupt, self.accelerator.print
        samples: CleanSamples
        progress = self.accelerator.is_local_main_process
        keep = self.data.keep_in_memory
        if self.vae is None and not (fits_in_memory(len(self.rows), self.form) if keep is None else keep):
            samples = files = FileSamples(self.rows, self.form, skip_corrupt=skip_corrupt, progress=progress)
            labels = None if self.rows.labels is None else torch.from_numpy(self.rows.labels[files.kept])
            printed("images are decoded as they are visited")
        elif self.vae is None:
            loaded = load_images(self.rows, self.form, skip_corrupt=skip_corrupt, progress=progress)
            samples, labels = PixelSamples(loaded.images), loaded.labels
        else:
            self.vae.to(self.accelerator.device)
            encode = partial(
                cached_latents,
                self.rows,
                self.form,
                self.vae,
                self.model.latent_cache_dir,
                mirrored=self.data.random_flip,
                skip_corrupt=skip_corrupt,
                progress=True,
            )
            folder = _decided(self.accelerator, encode)
            samples = latents = LatentMoments(folder, self.vae.config, len(self.rows))
            labels = None if self.rows.labels is None else torch.from_numpy(self.rows.labels)[latents.rows]
            printed(f"latents: {folder}")
        if skipped := len(self.rows) - len(samples):
            printed(f"{skipped} of {len(self.rows)} images can't be decoded and are left out")
        return samples, labels

    def network(self, said: Callable[[str], object]) -> DiTModel:
        """What is trained, as at step 0; `said` gets what was done to a trained one."""
        names = self.rows.label_names
        return open_network(self.model, self.shape, None if names is None else len(names), said)

    def trainer(self) -> DiTTrainer:
        """The trainer at step 0."""
        args = self.args
        torch.manual_seed(args.seed)  # of the initial weights
        network = self.network(self.accelerator.print)
        before = None if self.model.model in DIT_SIZES else trained_prediction(self.model.model)
        if before not in (None, args.prediction_type):
            self.accelerator.print(f"{self.model.model} was trained to predict {before}, now {args.prediction_type}")
        samples, labels = self.samples()
        stream = TrainingStream(
            samples,
            labels,
            seed=args.seed,
            num_timesteps=args.ddpm_num_steps,
            class_dropout_prob=self.model.class_dropout_prob,
            random_flip=self.data.random_flip,
            draw_time=flow_times(args),
        )
        if args.snr_gamma is not None and args.rescale_betas_zero_snr:
            self.accelerator.print("snr_gamma weighs the last timestep, which is pure noise, with 0: it's not learned")
        scheduler = training_scheduler(args, network.config.learn_sigma, latents=self.vae is not None)
        sample = partial(
            sample_grid,
            scheduler=scheduler,
            vae=self.vae,
            id2label=self.id2label,
            args=args,
            dtype=DTYPES[self.accelerator.mixed_precision],
        )
        return DiTTrainer(
            network,
            stream,
            scheduler,
            args,
            self.accelerator,
            max_train_steps=self.steps,
            sample=sample,
            scores=self.scores(scheduler),
        )

    def scores(self, scheduler: TrainingScheduler) -> SampleScores | None:
        """What scores samples, if that was asked for."""
        scoring = self.scoring
        if scoring.eval_metric is None:
            return None
        rows, form = self.rows, self.form
        scorer = SampleScorer(
            scoring.eval_metric,
            lambda: reference_images(scoring, rows, form),
            encoder=scoring.eval_encoder,
            arguments=scoring.metric_arguments,
        )
        scores = SampleScores(
            scoring,
            scorer,
            partial(
                sampling_pipeline,
                scheduler=scheduler,
                vae=self.vae,
                id2label=self.id2label,
                dtype=DTYPES[self.accelerator.mixed_precision],
            ),
            self.output_dir,
            sample_steps=self.args.sample_steps,
            seed=self.args.seed,
        )
        _decided(self.accelerator, scores.prepare)  # before long work
        return scores

    def begin(self, trainer: DiTTrainer, checkpoint: Path | None) -> None:
        """Go on from the checkpoint, if there is one, and write down whose run the folder holds."""
        if checkpoint is not None:
            trainer.load_checkpoint(checkpoint, read_state(checkpoint / STATE, checkpoint_step(checkpoint)))
        elif self.args.resume_from_checkpoint is not None:
            self.accelerator.print(f"{self.output_dir} has no checkpoint yet: starting at step 0")
        if self.accelerator.is_main_process:
            write_json(self.output_dir / SETTINGS, self.settings)
        config = {name: str(value) for name, value in self.settings.items()}
        self.accelerator.init_trackers("train_dit", config=config)

    def finish(self, trainer: DiTTrainer) -> dict:
        """Write the pipeline, then what takes longer: samples, curve, results; the results, on every process."""
        results = self.results(trainer)
        with deferred(), trainer.averaged() as averaged:
            if averaged is not None:
                pipeline = DiTImagePipeline(merged(averaged), trainer.scheduler, self.vae, self.id2label)
                save_pipeline(pipeline, self.output_dir)
                if has_adapter(averaged):
                    averaged.save_lora_adapter(self.output_dir, adapter_name="default")
        trainer.save_samples()
        if self.accelerator.is_main_process:
            figure = plot_loss(results["history"], trainer.scored, self.scoring.greater_is_better)
            save_figure(figure, self.output_dir / "loss_curve.png")
            write_json(self.output_dir / RESULTS, results)  # last: its presence says that the run is finished
        self.accelerator.wait_for_everyone()
        self.accelerator.print(f"pipeline, {RESULTS}, loss_curve.png, samples: {self.output_dir.resolve()}")
        return results

    def results(self, trainer: DiTTrainer) -> dict:
        network, trained_on = trainer.network, len(trainer.stream.samples)
        return {
            "settings": self.settings,
            "steps": trainer.step,
            "loss": trainer.history[-1]["loss"],
            "history": smoothed(trainer.history),
            **({"scored": trainer.scored} if trainer.scored else {}),
            "images_per_second": trainer.images_per_second,  # of this call; None where it made fewer than two steps
            "processes": self.accelerator.num_processes,
            **({"sharded": True} if self.args.fsdp else {}),
            "train_images": trained_on,
            "skipped_images": len(self.rows) - trained_on,
            "label_names": self.rows.label_names,
            "sample_shape": list(self.shape),
            "config": {name: value for name, value in network.config.items() if not name.startswith("_")},
            "from_hub": settings_from_hub(self.settings),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "trained_parameters": sum(parameter.numel() for parameter in trained_parameters(network).values()),
            "hardware": hardware(self.accelerator.device),
            "versions": versions(LIBRARIES),
            **({"plugins": loaded_plugins()} if loaded_plugins() else {}),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def make_accelerator(model: ModelArguments, args: DiTTrainingArguments) -> Accelerator:
    """accelerate as the trainer needs it; a `ValueError` where its own configuration asks for something else."""
    _check_configuration(args)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # A step is full by its number of micro-batches: accelerate's other sign, the end of a loader, would be that of
        # whatever training of this Python process was left in mid-epoch.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        cpu=args.use_cpu,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
        # accelerate's own way steps the learning rate once for each process.
        step_scheduler_with_optimizer=False,
        # The others wait for the first process while it encodes images.
        kwargs_handlers=[] if model.vae is None else [InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    if accelerator.mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {list(PRECISIONS)}; got {accelerator.mixed_precision!r}")
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"accelerate is configured to {accelerator.distributed_type.value}; each process must hold the whole "
            "model, or its part by --fsdp"
        )
    if args.fsdp:
        check_sharding(accelerator.num_processes, accelerator.mixed_precision)
    return accelerator


def _check_configuration(args: DiTTrainingArguments) -> None:
    """A `ValueError` where accelerate's environment asks for what is not done here, on any device."""
    configured = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if configured not in (None, str(args.gradient_accumulation_steps)):
        raise ValueError(
            f"gradient_accumulation_steps is {args.gradient_accumulation_steps}, but accelerate is configured to "
            f"{configured} (ACCELERATE_GRADIENT_ACCUMULATION_STEPS); unset it"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":  # which accelerate overlooks on CPUs
        raise ValueError(
            "accelerate is configured to its own FSDP (ACCELERATE_USE_FSDP); launch without it (--use_fsdp), with "
            "--fsdp of this command, which shards the weights itself"
        )


def flow_times(args: DiTTrainingArguments) -> FlowTimes | None:
    """How a flow draws its times; None for diffusion."""
    if args.prediction_type != "flow":
        return None
    return FlowTimes(args.flow_times, args.flow_logit_mean, args.flow_logit_std, args.flow_mode_scale, args.flow_shift)


def check_guidance(
    data: DataArguments, model: ModelArguments, args: DiTTrainingArguments, scoring: ScoringArguments
) -> None:
    """Raise a `ValueError` where sample grids or scored samples ask for a guidance that the model can't give."""
    if scoring.eval_guidance_scale != 1 and (data.unconditional or model.class_dropout_prob == 0):
        why = "unconditional" if data.unconditional else "class_dropout_prob=0, which trains no null class"
        raise ValueError(f"eval_guidance_scale must be 1 with {why}; got {scoring.eval_guidance_scale}")
    if not data.unconditional and model.class_dropout_prob == 0 and set(args.sample_guidance_scales) != {1.0}:
        raise ValueError(
            "class_dropout_prob=0 trains no null class, so that sample_guidance_scales can be 1 alone; "
            f"got {args.sample_guidance_scales}"
        )


def save_pipeline(pipeline: DiTImagePipeline, output_dir: Path) -> None:
    """`save_pretrained` under a temporary name, then one rename for each file and folder."""
    temporary = output_dir / ".pipeline.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    for path in temporary.iterdir():
        if path.is_dir():
            publish_folder(path, output_dir / path.name)
        else:
            sync(path)
            os.replace(path, output_dir / path.name)
    temporary.rmdir()
