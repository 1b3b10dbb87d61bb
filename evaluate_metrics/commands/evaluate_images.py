"""Score sets of images against a reference set: CMMD, Frechet distance, KID, with any encoders.

    evaluate-images my_photos my_samples
    evaluate-images my_photos step-1000 step-2000 --json - --fail_above cmmd=0.5 fd=20
    accelerate launch scripts/evaluate_images.py --predictions my_samples --references uoft-cs/cifar10 \\
        --references_split train --metrics cmmd fd kid --encoders clip siglip inception --save_moments
    evaluate-images VIRTUAL_imagenet256_labeled.npz my_samples.npz --encoders inception --metrics fd

First words that are no flags are the references, then the sets of predictions, as --references and --predictions. Each
set is scored against the same references, in one table. A source is

    folder                           of image files, subfolders too
    .zip, .tar, .tar.gz              of image files, such as shards of webdataset; also several, 'shard-{000..099}.tar'
    .npz, .npy                       one array of images, (N, H, W, C) or (N, C, H, W)
    .parquet                         with a column of images
    Hub id, folder of a data set     with config, split and column where it has several; --streaming stores nothing
    .safetensors                     moments or embeddings that --save_moments or --save_embeddings wrote
    .npz, .npy, .pt of statistics    of pytorch-fid, clean-fid, ADM, EDM, dgm-eval, torch-fidelity, cmmd-pytorch

The last two stand for their images and are made for one encoder; statistics don't name it, and mostly lack the number
of images: --reference_count gives it. Of ADM's files mean and covariance are read; with --references_column arr_0 the
images are. Numbers of images may differ. Nothing is unpacked to disk, and nothing is unpickled.

Metrics:
{scores}

Embeddings are unit vectors, as CMMD is defined for, but those of inception, fd-dinov2 and clip-score are taken as they
are, as the FID, the KID and FD-DINOv2 are; with --no_normalize all are. A score that an encoder's vectors don't allow
is left out of its row, and the row says so.

Captions, for clip_score: of a data set the column --caption_column, of a folder that column of a metadata.jsonl or
metadata.csv with file_name, or a .txt beside each image. --per_class gives CMMD and Frechet distance of each class
too, by class folders or the labels of a data set.

Encoders:
    clip, siglip, align, dinov2      openai/clip-vit-large-patch14-336, and so on
    tiny                             colours and roughness, without a network: for trying things out
    fd-dinov2                        DINOv2 ViT-L by the protocol of the published FD-DINOv2, not normalised
    clip-score                       CLIP ViT-B/32 as the CLIPScore was published
    inception                        the FID network as first published; inception-pytorch and inception-clean resize
                                     as pytorch-fid and clean-fid do
    Hub id or folder                 a vision model of transformers
    module:function                  a Python callable, list of RGB images -> (n, d) floats
    file.py:function                 the same of a file, relative to the working folder

Image files are told by their endings, links are followed; what a folder or archive holds beside them is left out,
counted and said.

With --json - one JSON object is all that goes to standard output, the rest goes to standard error; NaN is null. A
score beyond its limit of --fail_above or --fail_below, or without a value, ends the command with status 1 and says so,
after all is written; limits hold for every encoder and set. Status 2: wrong flags or inputs.

Embeddings are kept in --cache_dir by the images' content and the encoder's weights, and never computed twice; those of
callables, whose weights nobody knows, are not kept. Written to --output_dir: results.json, results.md (the table),
with --save_moments predictions-ENCODER.safetensors and references-ENCODER.safetensors, with --save_embeddings
predictions-ENCODER-embeddings.safetensors and so on (of several sets predictions-1-ENCODER...), from which KID and
p-values can be had without the images; with --curve curve.png: CMMD, Frechet distance and KID (of all pairs), those
that are asked for, against the number of predictions with error bands. --save_stats writes the references' mean and
covariance as pytorch-fid does, with the sFID asked for also those of the spatial features, as ADM; it needs no
predictions, as the other two. An output folder that holds results is written over, by one command at a time. SIGINT
and SIGTERM end it with status 128 + signal; the same command goes on with what is kept.

Images are split over the processes of accelerate launch. On CPUs, either of these starts two:

    accelerate launch --multi_gpu --num_processes 2 scripts/evaluate_images.py --use_cpu ...
    torchrun --nproc_per_node 2 scripts/evaluate_images.py --use_cpu ...
"""

import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from evaluate_metrics import LIBRARIES
from evaluate_metrics.core.inception_weights import WEIGHTS_SHA256, WEIGHTS_URL
from evaluate_metrics.scoring.limits import Limit, failed_limits, parse_limits
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

    from evaluate_metrics.scoring.evaluation import Encoded, Source

KEPT = "embeddings so far are kept in the cache (not those of callables, and none with --no_use_cache); go on with"


@dataclass
class EvaluateArguments:
    _argument_group_name = "scoring"

    references: str = field(metadata={"help": "The images to score against: folder, file, data set, statistics."})
    predictions: list[str] | None = field(default=None, metadata={"help": "The sets of images to score: the same."})
    predictions_config: str | None = field(default=None, metadata={"help": "Config of a data set of predictions."})
    predictions_split: str | None = field(default=None, metadata={"help": "Its split, also as train[:5000]."})
    predictions_column: str | None = field(default=None, metadata={"help": "Its image column."})
    references_config: str | None = field(default=None, metadata={"help": "Config of a data set of references."})
    references_split: str | None = field(default=None, metadata={"help": "Its split, also as train[:5000]."})
    references_column: str | None = field(default=None, metadata={"help": "Its image column."})
    streaming: bool = field(default=False, metadata={"help": "Read data sets as they come, and store none of them."})
    reference_count: int | None = field(
        default=None, metadata={"help": "The number of images that mean and covariance without one are of."}
    )
    metrics: list[str] = field(
        default_factory=lambda: ["cmmd", "fd"], metadata={"help": "Default: cmmd fd.", "choices": SCORES}
    )
    encoders: list[str] = field(default_factory=lambda: ["clip"], metadata={"help": "Default: clip."})
    batch_size: int = field(default=64, metadata={"help": "Images that a model sees at once."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights.", "choices": list(DTYPES)})
    normalize: bool = field(
        default=True,
        metadata={"help": "Divide embeddings by their norm (inception, fd-dinov2, clip-score: never)."},
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
    save_moments: bool = field(default=False, metadata={"help": "Write the moments of all sets."})
    save_embeddings: bool = field(default=False, metadata={"help": "Write the embeddings of all sets."})
    embeddings_dtype: str = field(
        default="float32", metadata={"help": "Of these files.", "choices": ["float32", "float16"]}
    )
    save_stats: str | None = field(
        default=None, metadata={"help": "A new .npz: mean and covariance of the references, as of pytorch-fid."}
    )
    curve: bool = field(default=False, metadata={"help": "Draw the metrics against the number of predictions."})
    curve_repeats: int = field(default=8, metadata={"help": "Disjoint subsets at each number, where so many fit."})
    seed: int = field(default=0, metadata={"help": "Of subsets and permutations."})
    num_workers: int | None = field(
        default=None, metadata={"help": "Threads that decode and resize. Default: one for each core, 8 at most."}
    )
    json: str | None = field(default=None, metadata={"help": "Write the results there too; -: to standard output."})
    fail_above: list[str] = field(
        default_factory=list, metadata={"help": "cmmd=0.5 ...: status 1 where a score is larger."}
    )
    fail_below: list[str] = field(
        default_factory=list, metadata={"help": "p_value=0.01 ...: status 1 where a score is smaller."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even where there is an accelerator."})
    output_dir: str = field(default="runs/evaluate_images", metadata={"help": "The folder of the results."})


def main() -> None:
    parser = FlagParser(EvaluateArguments, description=(__doc__ or "").replace("{scores}", score_lines()))
    (args,) = parser.parse_args_into_dataclasses(with_sources(sys.argv[1:]))
    shared = {name.name: getattr(args, name.name) for name in fields(Evaluation) if name.name != "cache_dir"}
    try:
        settings = Evaluation(**shared, cache_dir=args.cache_dir if args.use_cache else None)
        limits = checked_limits(args)
    except ValueError as error:
        parser.error(str(error))
    with ExitStack() as held:  # of standard output, of which JSON alone is to make use, and of the lock
        printed = sys.stdout
        if args.json == "-":
            held.enter_context(redirect_stdout(sys.stderr))
        failed = evaluate_to_folder(parser, args, settings, limits, held, printed)
    if failed:
        print("\n".join(f"{parser.prog}: failed: {failure['words']}" for failure in failed), file=sys.stderr)
        sys.exit(1)


def with_sources(words: list[str]) -> list[str]:
    """The words of a command whose first ones, up to a flag, are references and predictions, with those flags."""
    count = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    first, rest = words[:count], words[count:]
    flags = ["--references", first[0]] if first else []
    return [*flags, *(["--predictions", *first[1:]] if first[1:] else []), *rest]


def checked_limits(args: EvaluateArguments) -> list[Limit]:
    """The limits; a ValueError for flags that don't fit each other, before anything is loaded."""
    limits = parse_limits(args.fail_above, args.fail_below, args.metrics)
    if not args.predictions and not (args.save_moments or args.save_embeddings or args.save_stats):
        raise ValueError("predictions are missing; without them save_stats, save_moments or save_embeddings is needed")
    if not args.predictions and (limits or args.curve):
        raise ValueError("predictions are missing, which limits and curve are of")
    if args.save_stats is not None:
        if len(args.encoders) > 1:
            raise ValueError(f"save_stats writes one file, of one encoder; got the encoders {args.encoders}")
        path = Path(args.save_stats)
        if path.suffix.lower() != ".npz" or path.exists():
            what = "is there already" if path.exists() else "must end in .npz"
            raise ValueError(f"save_stats: {path} {what}; name another file")
    for flag, name in (("json", args.json), ("save_stats", args.save_stats)):
        if name is not None and name != "-":
            check_place(flag, Path(name))
    for flag, name in (("output_dir", args.output_dir), ("cache_dir", args.cache_dir if args.use_cache else None)):
        if name is not None and not Path(name).is_dir():  # what there is, may be full and need no more
            check_place(flag, Path(name), folder=True)
    if args.save_moments or args.save_embeddings:
        check_names(args.encoders)
    return limits


def check_names(encoders: Sequence[str]) -> None:
    """A ValueError where the files of two encoders would have one name."""
    named: dict[str, str] = {}
    for encoder in encoders:
        other = named.setdefault(file_part(encoder), encoder)
        if other != encoder:
            raise ValueError(
                f"encoders: the files of {other} and {encoder} would both be called {file_part(encoder)}; save them "
                "in two calls, in two output folders"
            )


def file_part(encoder: str) -> str:
    """What names of files call an encoder."""
    return re.sub(r"[^\w.-]+", "-", encoder).strip("-")


def check_place(flag: str, path: Path, folder: bool = False) -> None:
    """A ValueError where no file, or folder, of that name can be made, which is known before all work."""
    above = next(place for place in path.absolute().parents if place.exists())
    device = os.path.realpath(path.absolute().parent) == "/dev" or os.path.realpath(above).startswith("/proc/")
    device = device or (path.exists() and not path.is_file())
    for wrong, words in (
        (path.is_dir(), "is a folder"),
        (folder and path.exists(), "is a file and no folder"),
        (device, "is no plain file, and is not replaced by one; --json - writes to standard output"),
        (not above.is_dir(), f"can't be written: {above} is no folder"),
        (not os.access(above, os.W_OK), f"can't be written: {above} is not writable"),
    ):
        if wrong:
            raise ValueError(f"{flag}: {path} {words}")


def evaluate_to_folder(
    parser: FlagParser,
    args: EvaluateArguments,
    settings: Evaluation,
    limits: list[Limit],
    held: ExitStack,
    printed: TextIO,
) -> list[dict]:
    """Embed, score and write; the limits that are not kept. `printed`: where JSON goes."""
    from accelerate import PartialState

    from evaluate_metrics.scoring.evaluation import check_sources, embed_sets

    state, folder = PartialState(cpu=args.use_cpu), Path(args.output_dir)
    try:
        with state.local_main_process_first():
            predictions, references = open_sources(args, state)
        for source in predictions:
            check_sources(source, references, settings)
        check_saved(args, [*predictions, references])
        from_first_process(lambda: held.enter_context(locked(folder)), state.process_index, state.num_processes)
        encoded = embed_sets(predictions, references, args.encoders, settings, progress=True)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if state.num_processes > 1:  # the others need not wait for the scores
        state.wait_for_everyone()
        state.destroy_process_group()
    return write_results(args, settings, encoded, limits, state, printed) if state.is_main_process else []


def open_sources(args: EvaluateArguments, state: "PartialState") -> "tuple[list[Source], Source]":
    """All sources; what they leave out, and what files of statistics are, is told by one process."""
    from evaluate_metrics.core.stored import allowed_scores
    from evaluate_metrics.scoring.sources import MomentsSource, open_source

    def opened(role: str, name: str, count: int | None = None) -> "Source":
        config, split, column = (getattr(args, f"{role}_{part}") for part in ("config", "split", "column"))
        source = open_source(name, config, split, column, count, args.streaming)
        if isinstance(source, MomentsSource) and state.is_main_process:
            allowed = allowed_scores(source.stored, role == "references")
            print(f"{role}: {name}: {source.stored.words}; {allowed}", file=sys.stderr)
        return source

    with warnings.catch_warnings():
        if not state.is_main_process:
            warnings.simplefilter("ignore", UserWarning)
        predictions = [opened("predictions", name) for name in args.predictions or ()]
        return predictions, opened("references", args.references, args.reference_count)


def check_saved(args: EvaluateArguments, sources: "list[Source]") -> None:
    """A ValueError where moments or embeddings of a source are asked for that it lacks."""
    from evaluate_metrics.scoring.sources import MomentsSource

    for source in sources:
        if args.save_moments and source.count is None:
            way = "reference_count=N gives it" if source is sources[-1] else "moments are of images that are counted"
            raise ValueError(f"save_moments: {source.name} has no number of images; {way}")
        if args.save_embeddings and isinstance(source, MomentsSource) and source.stored.embeddings is None:
            raise ValueError(f"save_embeddings: {source.name} is a file of {source.stored.words}, not of embeddings")


def write_results(
    args: EvaluateArguments,
    settings: Evaluation,
    encoded: "list[Encoded]",
    limits: list[Limit],
    state: "PartialState",
    printed: TextIO,
) -> list[dict]:
    """Score, write, and print the table; the limits not kept. results.json is last: with it, all is of one call."""
    from evaluate_metrics.core.statistics import save_statistics
    from evaluate_metrics.scoring.evaluation import score_sources
    from evaluate_metrics.scoring.report import plot_score_curves, score_table, without_nan
    from evaluate_metrics.scoring.scores import scored_set

    scores, folder = (
        score_sources([one for one in encoded if "predictions" in one.sets], settings),
        Path(args.output_dir),
    )
    for old in (folder / "results.json", *folder.glob(".*.tmp")):  # tmp: what a kill left
        old.unlink(missing_ok=True)
    save_sets(args, encoded)
    if args.save_stats is not None:
        references = scored_set(encoded[0].sets["references"].moments, None, encoded[0].parts)
        save_statistics(args.save_stats, references.moments, references.spatial)
        if "sfid" in args.metrics and references.spatial is None:
            lacks = f"{args.encoders[0]} gives no spatial features, so none are in it"
            print(f"save_stats: {args.save_stats}: {lacks}", file=sys.stderr)
    if args.curve:
        save_figure(plot_score_curves(scores), folder / "curve.png")
    table = score_table(scores)
    replace_text(folder / "results.md", table + "\n")
    results = {"arguments": asdict(args), "processes": state.num_processes, "hardware": hardware(state.device)}
    results |= {"versions": versions(LIBRARIES), **plugins_field()}
    failed = failed_limits(scores, limits)
    results = without_nan({**results, "scores": scores, "failed": failed})
    if args.json not in (None, "-"):
        write_json(args.json, results)
    write_json(folder / "results.json", results)
    if args.json == "-":
        print(json.dumps(results, allow_nan=False), file=printed, flush=True)
    if scores:
        print(f"\n{table}")
    if args.save_stats is not None:
        print(f"\nstatistics: {Path(args.save_stats).resolve()}")
    print(f"\nresults: {folder.resolve()}")
    return failed


def save_sets(args: EvaluateArguments, encoded: "list[Encoded]") -> None:
    """Write `ROLE-ENCODER.safetensors` and `ROLE-ENCODER-embeddings.safetensors`, as asked; each set once."""
    from evaluate_metrics.core.embeddings import save_embeddings
    from evaluate_metrics.core.moments import Moments

    folder, sets = Path(args.output_dir), max(1, len(args.predictions or ()))
    for place, one in enumerate(encoded):
        slug = file_part(one.facts["encoder"])
        for role, embedded in one.sets.items():
            if role == "references" and place % sets:
                continue
            name = f"{role}-{place % sets + 1}" if role == "predictions" and sets > 1 else role
            metadata = {**one.metadata, "source": one.facts[role]}
            if args.save_moments and isinstance(embedded.moments, Moments):  # see `check_saved`
                embedded.moments.save(folder / f"{name}-{slug}.safetensors", metadata)
            if args.save_embeddings:
                path = folder / f"{name}-{slug}-embeddings.safetensors"
                save_embeddings(path, embedded.kept(), metadata, args.embeddings_dtype)


def run() -> None:
    """The command."""
    run_command(main, KEPT)
