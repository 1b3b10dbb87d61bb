"""Score a set of images against a reference set: CMMD, Frechet distance, KID, with any encoders.

    accelerate launch scripts/evaluate_images.py --predictions my_samples --references my_photos
    accelerate launch scripts/evaluate_images.py --predictions my_samples --references uoft-cs/cifar10 \\
        --references_split train --metrics cmmd fd kid --encoders clip siglip inception --save_moments
    accelerate launch scripts/evaluate_images.py --predictions my_samples \\
        --references runs/evaluate_images/references-clip.safetensors --encoders clip --curve

A source is a folder of image files (subfolders too), a data set (Hub id or folder; with config, split and column where
it has several), or a file of moments that --save_moments wrote, which stands for its images and is made for one
encoder. Numbers of images may differ.

Metrics:
{scores}

Embeddings are unit vectors, as CMMD is defined for, but those of inception and fd-dinov2 are taken as they are, as the
FID, the KID and FD-DINOv2 are; with --no_normalize all are. A score that an encoder's vectors don't allow is left out
of its row, and the row says so.

Captions, for clip_score: of a data set the column --caption_column, of a folder that column of a metadata.jsonl or
metadata.csv with file_name, or a .txt beside each image. --per_class gives CMMD and Frechet distance of each class
too, by class folders or the labels of a data set.

Encoders:
    clip, siglip, align, dinov2      openai/clip-vit-large-patch14-336, and so on
    fd-dinov2                        DINOv2 ViT-L by the protocol of the published FD-DINOv2, not normalised
    inception                        the FID network as first published; inception-pytorch and inception-clean resize
                                     as pytorch-fid and clean-fid do
    Hub id or folder                 a vision model of transformers
    module:function                  a Python callable, list of RGB images -> (n, d) floats
    file.py:function                 the same of a file, relative to the working folder

Image files are told by their endings, links are followed; what a folder holds beside them is left out, counted and
said.

Embeddings are kept in --cache_dir by the images' content and the encoder's weights, and never computed twice; those of
callables, whose weights nobody knows, are not kept. Written to --output_dir: results.json, results.md (the table),
with --save_moments predictions-ENCODER.safetensors and references-ENCODER.safetensors, with --curve curve.png: each
metric against the number of predictions with its error band. An output folder that holds results is written over, by
one command at a time. SIGINT and SIGTERM end it with status 128 + signal; the same command goes on with what is kept.

Images are split over the processes of accelerate launch. On CPUs, either of these starts two:

    accelerate launch --multi_gpu --num_processes 2 scripts/evaluate_images.py --use_cpu ...
    torchrun --nproc_per_node 2 scripts/evaluate_images.py --use_cpu ...
"""

import re
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from evaluate_metrics import LIBRARIES
from evaluate_metrics.core.inception_weights import WEIGHTS_SHA256, WEIGHTS_URL
from evaluate_metrics.scoring.registry import SCORES, score_lines
from evaluate_metrics.scoring.settings import CACHE, DTYPES, Evaluation
from hf_common.environment import hardware, versions
from hf_common.files import replace_text, save_figure, write_json
from hf_common.flags import FlagParser
from hf_common.locks import locked
from hf_common.plugins import plugins_field
from hf_common.processes import from_first_process
from hf_common.running import run_command

if TYPE_CHECKING:
    from accelerate import PartialState

    from evaluate_metrics.scoring.evaluation import Encoded
    from evaluate_metrics.scoring.sources import ImageSource, MomentsSource

KEPT = "embeddings so far are kept in the cache (not those of callables, and none with --no_use_cache); go on with"


@dataclass
class EvaluateArguments:
    _argument_group_name = "scoring"

    predictions: str = field(metadata={"help": "The images to score: folder, data set, or file of moments."})
    references: str = field(metadata={"help": "The images to score them against: the same."})
    predictions_config: str | None = field(default=None, metadata={"help": "Config of a data set of predictions."})
    predictions_split: str | None = field(default=None, metadata={"help": "Its split, also as train[:5000]."})
    predictions_column: str | None = field(default=None, metadata={"help": "Its image column."})
    references_config: str | None = field(default=None, metadata={"help": "Config of a data set of references."})
    references_split: str | None = field(default=None, metadata={"help": "Its split, also as train[:5000]."})
    references_column: str | None = field(default=None, metadata={"help": "Its image column."})
    metrics: list[str] = field(
        default_factory=lambda: ["cmmd", "fd"], metadata={"help": "Default: cmmd fd.", "choices": SCORES}
    )
    encoders: list[str] = field(default_factory=lambda: ["clip"], metadata={"help": "Default: clip."})
    batch_size: int = field(default=64, metadata={"help": "Images that a model sees at once."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights.", "choices": list(DTYPES)})
    normalize: bool = field(
        default=True,
        metadata={"help": "Divide embeddings by their norm (inception, fd-dinov2: never)."},
    )
    inception_weights: str = field(default=WEIGHTS_URL, metadata={"help": "File or URL of the FID network's weights."})
    inception_sha256: str = field(default=WEIGHTS_SHA256, metadata={"help": "The SHA-256 that it must have."})
    use_cache: bool = field(default=True, metadata={"help": "Keep embeddings, and take those that are kept."})
    cache_dir: str = field(default=str(CACHE), metadata={"help": "Where."})
    kid_subsets: int = field(default=100, metadata={"help": "Pairs of subsets for the KID."})
    kid_subset_size: int = field(default=1000, metadata={"help": "Images in each."})
    permutations: int = field(default=999, metadata={"help": "Of the permutation test."})
    precision_k: int = field(default=3, metadata={"help": "Neighbours, of precision and recall."})
    density_k: int = field(default=5, metadata={"help": "Neighbours, of density and coverage."})
    inception_splits: int = field(default=10, metadata={"help": "Parts, of the Inception Score."})
    per_class: bool = field(default=False, metadata={"help": "CMMD and Frechet distance of each class too."})
    caption_column: str = field(default="text", metadata={"help": "Where the captions of clip_score are."})
    save_moments: bool = field(default=False, metadata={"help": "Write the moments of both sets."})
    curve: bool = field(default=False, metadata={"help": "Draw the metrics against the number of predictions."})
    curve_repeats: int = field(default=8, metadata={"help": "Disjoint subsets at each number, where so many fit."})
    seed: int = field(default=0, metadata={"help": "Of subsets and permutations."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even where there is an accelerator."})
    output_dir: str = field(default="runs/evaluate_images", metadata={"help": "The folder of the results."})


def main() -> None:
    parser = FlagParser(EvaluateArguments, description=(__doc__ or "").replace("{scores}", score_lines()))
    (args,) = parser.parse_args_into_dataclasses()
    shared = {name.name: getattr(args, name.name) for name in fields(Evaluation) if name.name != "cache_dir"}
    try:
        settings = Evaluation(**shared, cache_dir=args.cache_dir if args.use_cache else None)
    except ValueError as error:
        parser.error(str(error))
    from accelerate import PartialState

    from evaluate_metrics.scoring.evaluation import check_sources, embed_sources

    state, folder = PartialState(cpu=args.use_cpu), Path(args.output_dir)
    with ExitStack() as held:  # of the lock of the output folder
        try:
            with state.local_main_process_first():
                sources = open_sources(args, state)
            check_sources(**sources, settings=settings)
            from_first_process(lambda: held.enter_context(locked(folder)), state.process_index, state.num_processes)
            encoded = embed_sources(**sources, encoders=args.encoders, settings=settings, progress=True)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        if state.num_processes > 1:  # the others need not wait for the scores
            state.wait_for_everyone()
            state.destroy_process_group()
        if state.is_main_process:
            write_results(args, settings, encoded, sources, state)


def open_sources(args: EvaluateArguments, state: "PartialState") -> "dict[str, ImageSource | MomentsSource]":
    """Both sources; what they leave out is told by one process."""
    from evaluate_metrics.scoring.sources import open_source

    with warnings.catch_warnings():
        if not state.is_main_process:
            warnings.simplefilter("ignore", UserWarning)
        return {
            role: open_source(
                getattr(args, role),
                getattr(args, f"{role}_config"),
                getattr(args, f"{role}_split"),
                getattr(args, f"{role}_column"),
            )
            for role in ("predictions", "references")
        }


def write_results(
    args: EvaluateArguments,
    settings: Evaluation,
    encoded: "list[Encoded]",
    sources: "dict[str, ImageSource | MomentsSource]",
    state: "PartialState",
) -> None:
    """Score, write, and print the table. results.json comes last: where it is, the rest is of the same call."""
    from evaluate_metrics.scoring.evaluation import score_sources
    from evaluate_metrics.scoring.report import plot_score_curves, score_table

    scores, folder = score_sources(encoded, settings), Path(args.output_dir)
    table = score_table(scores)
    for old in (folder / "results.json", *folder.glob(".*.tmp")):  # tmp: what a kill left
        old.unlink(missing_ok=True)
    if args.save_moments:
        save_moments(folder, args.encoders, encoded, {role: source.name for role, source in sources.items()})
    if args.curve:
        save_figure(plot_score_curves(scores), folder / "curve.png")
    replace_text(folder / "results.md", table + "\n")
    results = {"arguments": asdict(args), "processes": state.num_processes, "hardware": hardware(state.device)}
    results |= {"versions": versions(LIBRARIES), **plugins_field()}
    write_json(folder / "results.json", {**results, "scores": scores})
    print(f"\n{table}\n\nresults: {folder.resolve()}")


def save_moments(folder: Path, encoders: list[str], encoded: "list[Encoded]", names: dict[str, str]) -> None:
    """Write `ROLE-ENCODER.safetensors` for each role, whose source's name is told, and each encoder."""
    for encoder, one in zip(encoders, encoded, strict=True):
        slug = re.sub(r"[^\w.-]+", "-", encoder).strip("-")
        for role, name in names.items():
            path = folder / f"{role}-{slug}.safetensors"
            one.sets[role].moments.save(path, {**one.metadata, "source": name})


def run() -> None:
    """The command."""
    run_command(main, KEPT)
