"""Sample a DiT over guidance scales, steps, attentions and schedulers, all from the same initial noise.

    python scripts/sample_dit.py --model_name_or_path runs/dit
    python scripts/sample_dit.py --model_name_or_path runs/dit --guidance_scales 1 2 4 --num_inference_steps 20 50 \\
        --attentions full na7 --schedulers ddim dpmsolver++
    python scripts/sample_dit.py --model_name_or_path facebook/DiT-XL-2-256 --class_labels "white shark" 360 \\
        --guidance_scales 4 --num_inference_steps 50 --dtype bfloat16 --device cuda

The default is guidance 0, 1, 4, 10 by 50, 250, 500 steps of DDIM. Guidance 0 is the unconditional model (labels have
no effect), 1 the conditional one, and more than 1 exaggerates the labels. A folder or Hub id may hold a pipeline of
this package or diffusers' DiTPipeline, which is converted.

Written to the output folder: study.png (one picture for each attention and scheduler if there are several; rows are
guidance scales, columns steps), study.md and study.json (seconds, images/s, model evaluations, peak memory, change
from collections.abc import Sequence
from collections.abc import Sequence
from the cell with the most steps), and every image under cells/. Interrupted or run again with further values, it
samples what is missing. Started several times at once, each takes the next cell that is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_common.flags import FlagParser
from hf_common.running import run_command
from hf_dit.studies.axes import DTYPES, FLOW_SCHEDULERS, SCHEDULERS, check_axes, check_sampling_flags

GUIDANCE_SCALES, STEPS = [0.0, 1.0, 4.0, 10.0], [50, 250, 500]
ALL_CLASSES, FIRST_CLASSES = 10, 8  # without --class_labels: all classes of a model of up to 10, else the first 8


@dataclass
class SampleArguments:
    _argument_group_name = "sampling"

    model_name_or_path: str = field(metadata={"help": "A folder or Hub id of a pipeline."})
    class_labels: list[str] | None = field(
        default=None,
        metadata={"help": "Ids or names; a number is an id. Default: all classes, or the first 8 of more than 10."},
    )
    guidance_scales: list[float] | None = field(
        default=None, metadata={"help": "Default: 0 1 4 10 (1 for a model that was trained without label dropout)."}
    )
    num_inference_steps: list[int] = field(
        default_factory=lambda: list(STEPS), metadata={"help": "Default: 50 250 500."}
    )
    attentions: list[str] | None = field(
        default=None, metadata={"help": "Specs as full, na7, na7x5d2, swa64, na7*11,full. Default: the model's own."}
    )
    schedulers: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Of {', '.join(SCHEDULERS)}, or scheduler classes of diffusers. A flow takes "
            f"{', '.join(FLOW_SCHEDULERS)}. Default: ddim, for a flow euler."
        },
    )
    images_per_class: int = field(default=1, metadata={"help": "Images of each label in a cell."})
    seed: int = field(default=0, metadata={"help": "Of the noise."})
    guidance_interval: list[float] | None = field(
        default=None, metadata={"help": "Two training timesteps, low and high: no guidance outside of these."}
    )
    cfg_channels: str = field(
        default="all",
        metadata={"help": "Channels of the noise that are guided: all, or the first n (3: as the paper)."},
    )
    batch_size: int | None = field(default=None, metadata={"help": "Images at once. Default: all of a cell."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights.", "choices": list(DTYPES)})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, cuda:1, ... Default: cuda if there is one."}
    )
    output_dir: str = field(default="runs/sample_dit", metadata={"help": "The folder of the study."})


def check_flags(args: SampleArguments) -> None:
    """Raise a ValueError for what no model could take."""
    for name in ("images_per_class", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be 1 or more; got {value}")
    check_sampling_flags(args.seed, args.cfg_channels, args.guidance_interval)
    attentions = [None] if args.attentions is None else args.attentions
    check_axes(
        args.guidance_scales or GUIDANCE_SCALES, args.num_inference_steps, attentions, args.schedulers or ["ddim"]
    )


def main() -> None:
    parser = FlagParser(SampleArguments, description=__doc__)
    (args,) = parser.parse_args_into_dataclasses()
    try:
        check_flags(args)
    except ValueError as error:
        parser.error(str(error))
    import torch

    from hf_dit.sampling.export import load_pipeline
    from hf_dit.studies.schedulers import scheduler_class
    from hf_dit.studies.study import class_ids, run_study
    from hf_dit.studies.study_report import study_markdown

    try:
        for name in args.schedulers or []:
            scheduler_class(name)
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error).splitlines()[0])
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device: torch sees no CUDA device; got {args.device!r}")

    try:
        pipeline = load_pipeline(args.model_name_or_path, getattr(torch, args.dtype)).to(device)
    except (ValueError, OSError) as error:
        parser.error(f"--model_name_or_path: {error}")
    config = pipeline.transformer.config
    labels: Sequence[int] | None = None
    if config.num_classes is not None:
        labels = range(config.num_classes if config.num_classes <= ALL_CLASSES else FIRST_CLASSES)
    try:
        if args.class_labels is not None:
            labels = class_ids(pipeline, [int(label) if label.isdecimal() else label for label in args.class_labels])
    except ValueError as error:
        parser.error(f"--class_labels: {error}")
    guided = config.num_classes is not None and config.class_dropout_prob > 0
    study = run_study(
        pipeline,
        labels,
        output_dir=args.output_dir,
        guidance_scales=args.guidance_scales or (GUIDANCE_SCALES if guided else [1.0]),
        steps=args.num_inference_steps,
        attentions=args.attentions or [None],
        schedulers=args.schedulers,
        images_per_class=args.images_per_class,
        batch_size=args.batch_size,
        seed=args.seed,
        guidance_interval=args.guidance_interval,
        cfg_channels=args.cfg_channels if args.cfg_channels == "all" else int(args.cfg_channels),
    )
    folder = Path(args.output_dir).resolve()
    print(f"\n{study_markdown(study)}\n")
    print(f"pictures: {', '.join(str(folder / name) for name in study['pictures'])}")
    print(f"images, table, figures: {folder}")


def run() -> None:
    """The command."""
    run_command(main, "the finished cells are kept in --output_dir; the same command samples the rest:")
