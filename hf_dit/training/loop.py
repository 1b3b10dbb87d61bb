"""The training loop of a DiT on accelerate: losses, averaged weights, checkpoints, sample grids, and nothing else."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from hf_common.files import digests, save_picture, write_json
from hf_common.signals import Stopped, deferred, requested_signal

from ..models.dit import DiTModel
from .arguments import DiTTrainingArguments
from .checkpoints import publish_checkpoint, temporary_checkpoint
from .lora import load_trained, save_trained, trained_parameters
from .objectives.make import TrainingScheduler, make_objective
from .optimizers import make_optimizer
from .scoring import SampleScores
from .sharding import WholeNetwork, keep_states_whole, shard_network
from .stream import DROPOUT, StepBatches, TrainingStream, position_rng

STATE = "training_state.json"


class DiTTrainer:
    """Trains a model on a stream of samples, from step 0 or from a checkpoint, to the last step.

    The optimizer step s takes the positions [s G, (s + 1) G) of the stream, where G is `global_batch`. As everything
    random is a function of seed and position, any number of processes and any accumulation with the same G give the
    same weights but for rounding, and a resumed training the very same (dropout inside the network, off by default,
    is drawn for each micro-batch: it differs where they do).

    Args:
        model (`DiTModel`): float32 weights.
        stream (`TrainingStream`): the samples.
        scheduler: its class and config say what is learned, see [`make_objective`].
        args (`DiTTrainingArguments`).
        accelerator (`Accelerator`): with the accumulation steps of `args`, and `step_scheduler_with_optimizer=False`.
        max_train_steps (`int`): the last step.
        sample: makes the sample grid of the (averaged) model in evaluation mode, on the main process.
        scores: scores samples of it, on the main process.

    Attributes:
        step: optimizer steps made.
        saved: the step of the newest checkpoint of this process's life; None if it wrote or read none.
        history: a dict for each `logging_steps` steps: `step`, mean `loss`, `mse` and (with a learned variance) `vb`,
            `learning_rate`.
        scored: a dict for each time that samples were scored: `step` and the scores by name.
        images_per_second: of this call of [`train`], all processes together, without its first step, checkpoints and
            sample grids; None where nothing was timed.
    """

    def __init__(
        self,
        model: DiTModel,
        stream: TrainingStream,
        scheduler: TrainingScheduler,
        args: DiTTrainingArguments,
        accelerator: Accelerator,
        *,
        max_train_steps: int,
        sample: Callable[[DiTModel], Image.Image],
        scores: SampleScores | None = None,
    ):
        self.args, self.accelerator, self.stream = args, accelerator, stream
        self.max_train_steps, self.output_dir = max_train_steps, Path(args.output_dir)
        self.global_batch = args.global_batch(accelerator.num_processes)
        self.step = 0
        self.history: list[dict] = []
        self.images_per_second: float | None = None
        self.scheduler, self._sample, self._scores = scheduler, sample, scores
        self.scored: list[dict] = []
        self._objective = make_objective(scheduler, args.snr_gamma).to(accelerator.device)
        self._window: list[list[float]] = []  # losses of steps since the last row of the history
        self._pending: list[torch.Tensor] = []  # the same, still on the device
        self.saved: int | None = None
        self._saved_at = time.monotonic()
        self._by_time: Path | None = None  # the newest checkpoint, if it was its time alone that asked for it

        self._prepare(model)
        self.network: DiTModel = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self._trained = list(trained_parameters(self.network).values())
        self.ema = None
        if args.use_ema:
            self.ema = EMAModel(
                self._trained,
                decay=args.ema_max_decay,
                use_ema_warmup=True,
                inv_gamma=args.ema_inv_gamma,
                power=args.ema_power,
                foreach=True,
            )
        accelerator.register_save_state_pre_hook(self._save_model)
        accelerator.register_load_state_pre_hook(self._load_model)

    def _prepare(self, model: DiTModel) -> None:
        """Set model, optimizer and learning rate as they are trained: on the device, for all processes."""
        args, accelerator = self.args, self.accelerator
        self._whole = WholeNetwork(model) if args.fsdp else None
        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if args.torch_compile:
            model.compile_repeated_blocks()  # in place: the names of the weights stay
        if args.fsdp:
            shard_network(model, accelerator)
        optimizer = make_optimizer(trained_parameters(model).values(), args)
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=self.max_train_steps,
        )
        if args.fsdp:
            # Not "for training", which would wrap it once more, as what each process holds whole.
            self.model = accelerator.prepare_model(model, evaluation_mode=True)
            self.optimizer, self.lr_scheduler = accelerator.prepare(optimizer, lr_scheduler)
            keep_states_whole(optimizer, accelerator.is_main_process)
        else:
            self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(model, optimizer, lr_scheduler)

    def train(self) -> None:
        """Make the steps that are left, with checkpoints and sample grids on the way, but no grid after the last.

        A signal to any of the processes ends it at the next step, with a checkpoint, on all of them; see
        `hf_common.signals`.

        Raises:
            RuntimeError: a loss is not finite; names its step.
            Stopped: a signal came.
        """
        with deferred():
            number = self._train()
        if number:  # on the processes, too, that no signal came to
            raise Stopped(number)

    def _train(self) -> int:
        """The steps that are left; the number of the signal that ended them early, or 0."""
        args, accelerator = self.args, self.accelerator
        batches: Any = StepBatches(  # of ranges, where DataLoader's types want lists
            range(self.step, self.max_train_steps),
            batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            processes=accelerator.num_processes,
            process=accelerator.process_index,
        )
        loader = torch.utils.data.DataLoader(
            self.stream,
            batch_sampler=batches,
            num_workers=args.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        bar = tqdm(total=self.max_train_steps, initial=self.step, unit="step", disable=not accelerator.is_main_process)
        first, micro_losses, started, paused, signal = self.step, [], 0.0, 0.0, 0
        self._saved_at = time.monotonic()
        self.model.train()
        with bar:
            for positions, batch in zip(batches, loader, strict=True):
                with accelerator.accumulate(self.model):
                    micro_losses.append(self._micro_step(batch, positions[0]))
                if not accelerator.sync_gradients:
                    continue
                self._pending.append(torch.stack(micro_losses).mean(dim=0))
                micro_losses = []
                learning_rate = self.optimizer.param_groups[0]["lr"]
                self.lr_scheduler.step()
                if self.ema is not None:
                    self.ema.step(self._trained)
                self.step += 1
                bar.update()
                if self.step % args.logging_steps == 0 or self.step == self.max_train_steps:
                    self._log(learning_rate)
                    bar.set_postfix(loss=f"{self.history[-1]['loss']:.4f}")
                if self.step == first + 1:
                    self._collect()  # waits for the device
                    started = time.perf_counter()
                signal, overdue = self._agreed(requested_signal(), self._overdue())
                paused += self._what_is_due(bool(signal), bool(overdue))
                if signal:
                    break
        timed = self.step - first - 1
        if timed > 0:
            seconds = time.perf_counter() - started - paused
            self.images_per_second = timed * self.global_batch / seconds
        return signal

    def _what_is_due(self, ends: bool, overdue: bool) -> float:
        """Write scores, checkpoint and sample grid where it is time; the seconds that they took."""
        last = self.step == self.max_train_steps
        checkpoint = ends or overdue or self._due(self.args.checkpointing_steps)
        images = not ends and self._due(self.args.save_images_steps) and not last
        scores = not ends and self._scores is not None and (last or self._due(self._scores.every))
        if not (checkpoint or images or scores):
            return 0.0
        self._collect()
        before = time.perf_counter()
        if scores:  # first: the checkpoint holds them
            self.save_scores()
        if checkpoint:
            self.save_checkpoint()
        if images:
            self.save_samples()
        return time.perf_counter() - before

    def save_checkpoint(self) -> None:
        """Write `checkpoint-{step}`: complete under that name or not there; older ones are deleted beyond the limit.

        `transformer` and `transformer_ema` are models that `DiTModel.from_pretrained` loads. accelerate writes the
        optimizer's tensors as a file of `torch.save`; it is read back by `torch.load(weights_only=True)`, which runs
        no code.
        """
        self._collect()
        temporary, accelerator = temporary_checkpoint(self.output_dir, self.step), self.accelerator
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            state = {
                "step": self.step,
                "global_batch": self.global_batch,
                "train_images": len(self.stream.samples),
                "history": self.history,
                **({"scored": self.scored} if self.scored else {}),
                "window": self._window,
                "files": digests(temporary, _files_below(temporary)),
            }
            write_json(temporary / STATE, state)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            folder = publish_checkpoint(self.output_dir, self.step, self.args.checkpoints_total_limit)
            if self._by_time is not None and self._by_time != folder:
                shutil.rmtree(self._by_time, ignore_errors=True)
            self._by_time = None if self._due(self.args.checkpointing_steps) else folder
        self.saved, self._saved_at = self.step, time.monotonic()
        accelerator.wait_for_everyone()

    def load_checkpoint(self, folder: str | os.PathLike, state: dict) -> None:
        """Go on from a checkpoint; `state` is the content of its `training_state.json`.

        Raises:
            ValueError: the data set has another number of images than the one that the checkpoint was trained on.
        """
        if state["train_images"] != len(self.stream.samples):
            raise ValueError(
                f"checkpoint {str(folder)!r} was trained on {state['train_images']} images; there are now "
                f"{len(self.stream.samples)}"
            )
        written = state.get("files") or {}
        changed = [name for name, digest in digests(folder, written).items() if digest != written[name]]
        missing = sorted(written.keys() - set(_files_below(Path(folder))))
        if changed or missing:
            what = f"lacks {', '.join(missing)}" if missing else f"has other {', '.join(changed)} than were written"
            raise ValueError(f"checkpoint {str(folder)!r} can't be resumed: it {what}")
        # The states of whole weights are cut into parts before they go to the device.
        self.accelerator.load_state(str(folder), map_location=None if self._whole is None else "cpu")
        # accelerate counts micro-batches to know when a step is full; it may now have other ones than before.
        self.accelerator.step = 0
        self.step, self.history, self._window = state["step"], state["history"], state["window"]
        self.saved, self.scored = self.step, state.get("scored", [])
        if self.ema is not None:
            self.ema.optimization_step = self.step

    def save_samples(self) -> None:
        """Write `samples/step-{step}.png`."""
        with self.averaged() as network:
            if network is not None:
                picture = self._sample(network)
                save_picture(picture, self.output_dir / "samples" / f"step-{self.step:07d}.png")
        self.accelerator.wait_for_everyone()

    def save_scores(self) -> None:
        """Score samples, once a step."""
        assert self._scores is not None
        with self.averaged() as network:
            row = None if network is None else self._scores.row(network, self.step, self.scored)
        if row is not None:
            self.scored.append(row)
            words = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            self.accelerator.print(f"\n{words}")
            self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=self.step)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def averaged(self) -> Iterator[DiTModel | None]:
        """The model in evaluation mode, with the averaged weights where there are any; training goes on after it.

        None on other processes than the main one. All enter it: of sharded weights each gives its parts.
        """
        if self._whole is not None:
            network = self._whole.of(self._weights(averaged=True), self.accelerator.is_main_process)
            yield network if network is None else network.to(self.accelerator.device)
            return
        if not self.accelerator.is_main_process:
            yield None
            return
        if self.ema is not None:
            self.ema.store(self._trained)
            self.ema.copy_to(self._trained)
        self.network.eval()
        try:
            yield self.network
        finally:
            self.network.train()
            if self.ema is not None:
                self.ema.restore(self._trained)

    def _weights(self, averaged: bool) -> dict[str, torch.Tensor]:
        """This process's weights by name; with the average of those that are trained, where there is one."""
        weights = self.network.state_dict()
        if averaged and self.ema is not None:
            weights |= dict(zip(trained_parameters(self.network), self.ema.shadow_params, strict=True))
        return weights

    def _micro_step(self, batch: dict[str, torch.Tensor], position: int) -> torch.Tensor:
        # -> (2,) or (3,): loss, mse and vb of a micro-batch whose first position is given
        device = self.accelerator.device
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        if self.network.config.dropout:
            torch.manual_seed(int(position_rng(self.stream.seed, DROPOUT, position).integers(2**63)))
        clean, noise, timestep = batch["clean"], batch["noise"], batch["timestep"]
        noisy = self._objective.add_noise(clean, noise, timestep)
        # No draw of the model's own where labels are never dropped: it may have no null class.
        drop = batch["drop"] if "drop" in batch and self.network.config.class_dropout_prob else None
        output = self.model(noisy, timestep, class_labels=batch.get("label"), force_drop_ids=drop).sample
        losses = self._objective.losses(output, clean, noise, timestep)
        self.accelerator.backward(losses.loss.mean())
        if self.accelerator.sync_gradients and self.args.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        parts = [losses.loss, losses.mse] + ([] if losses.vb is None else [losses.vb])
        return torch.stack([part.detach().mean() for part in parts])

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _overdue(self) -> bool:
        minutes = self.args.checkpointing_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def _agreed(self, *numbers: int) -> list[int]:
        """The largest of each number over the processes."""
        if self.accelerator.num_processes == 1:
            return [int(number) for number in numbers]
        mine = torch.tensor([numbers], dtype=torch.int64, device=self.accelerator.device)
        return self.accelerator.gather(mine).amax(dim=0).tolist()

    def _collect(self) -> None:
        """Fetch the losses of the last steps, which the device has perhaps not computed yet, of all processes."""
        if not self._pending:
            return
        losses = self.accelerator.reduce(torch.stack(self._pending), reduction="mean").tolist()
        first = self.step - len(losses) + 1
        self._pending = []
        for step, parts in enumerate(losses, first):
            if not all(map(math.isfinite, parts)):
                raise RuntimeError(
                    f"the loss is {parts[0]} at step {step}; try a lower learning_rate, max_grad_norm=1, or "
                    "mixed_precision bf16 or no"
                )
        self._window += losses

    def _log(self, learning_rate: float) -> None:
        self._collect()
        means = [sum(values) / len(values) for values in zip(*self._window, strict=True)]
        row = dict(zip(("loss", "mse", "vb"), means, strict=False)) | {"learning_rate": learning_rate}
        self._window = []
        self.history.append({"step": self.step} | row)
        self.accelerator.log(row, step=self.step)

    def _save_model(self, models: list, weights: list, folder: str) -> None:
        weights.clear()  # accelerate has nothing left to save of the model
        is_first, network = self.accelerator.is_main_process, self.network
        whole = network if self._whole is None else self._whole.of(self._weights(averaged=False), is_first)
        if is_first and whole is not None:
            save_trained(whole, Path(folder) / "transformer")
        del whole  # one at a time
        if self.ema is not None:
            with self.averaged() as averaged:
                if averaged is not None:
                    save_trained(averaged, Path(folder) / "transformer_ema")

    def _load_model(self, models: list, folder: str) -> None:
        models.clear()
        if self.ema is not None:
            load_trained(self.network, Path(folder) / "transformer_ema")
            self.ema.shadow_params = [parameter.detach().clone() for parameter in self._trained]
        load_trained(self.network, Path(folder) / "transformer")


def _files_below(folder: Path) -> list[str]:
    """All files below a checkpoint but for its state, by their names from there."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if name != STATE]
