"""One generation from flags to `results.json`: batches shared by processes, then forms, scores and a card."""

import shutil
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from hf_common.environment import versions
from hf_common.files import replace_text, write_json
from hf_common.foreign import read_json
from hf_common.plugins import loaded_plugins
from hf_common.processes import from_first_process
from hf_common.run_folder import RESULTS, SETTINGS, HeldFolder, begun, check_same_run
from hf_common.signals import deferred, requested

from .. import LIBRARIES
from ..sampling.export import load_pipeline
from .arguments import GenerateArguments
from .card import generation_card
from .forms import in_colour, picture_of, write_forms
from .parts import Parts, SampledBatch
from .plan import class_counts_of
from .sampling import Sampler, known_before_loading
from .scoring import load_score_metric, open_references, score_images

PARTS, CARD = "parts", "README.md"
LOOK_SECONDS = 0.5  # between two looks at what all processes have done


def generate_images(args: GenerateArguments) -> dict | None:
    """Sample the images that are not there yet, and write into `args.output.output_dir`, which no other run may have:

    `png/`, `parquet/` and `samples.npz` as `--format` says, `results.json` (settings, images of each class, seconds,
    hardware, versions, scores), `README.md`. Until then the batches lie in `parts/`, a file each, which go at the end.

    An image is a function of the settings and its number: neither the number of processes nor a kill changes a byte,
    on the same hardware with the same versions. With another batch size labels and noise stay the same, and pixels
    up to what the products of the network round differently. Noise is drawn on the CPU whatever samples.

    Returns:
        The content of `results.json` on the first process; None on the others, which have nothing left to do.

    Raises:
        ValueError: arguments that the model can't have, or the folder holds other images, or what a metric refuses.
        Stopped: a signal came; whole batches are kept.
        RuntimeError, ImportError: attention that cannot run here; pixels that are no numbers.
    """
    # The others wait for the slowest before they end.
    state = PartialState(cpu=args.sampler.use_cpu, timeout=timedelta(days=1))
    processes = (state.process_index, state.num_processes)
    folder = Path(args.output.output_dir)
    with HeldFolder(folder, *processes) as held:
        from_first_process(partial(_check_folder, folder, args), *processes)
        metric: list[Any] = []  # of the first process alone, which scores
        if args.scores.score_metric is not None:
            from_first_process(lambda: metric.append(load_score_metric(args.scores)), *processes)
        sampler = _load_sampler(args, state.device)
        parts = Parts(folder / PARTS, args.images.num_images, args.sampler.batch_size, sampler.shape)
        held.take()
        finished = from_first_process(partial(_finished_run, folder, args, sampler.settings), *processes)
        if finished is not None:
            return finished if state.is_main_process else None
        references: dict = {}
        if args.scores.score_metric is not None:
            from_first_process(lambda: references.update(open_references(metric[0], args.scores)), *processes)
        missing = from_first_process(partial(_begin, folder, sampler.settings, parts), *processes)
        seconds = _sample_batches(sampler, parts, missing, state)
        if not state.is_main_process:
            return None
        sampled = sum(map(parts.size, missing))
        results = _results(sampler, parts, sampled, seconds, state.num_processes)
        return _leave(results, args, sampler, parts, (metric[0], references) if metric else None)


def _check_folder(folder: Path, args: GenerateArguments) -> None:
    """Raise a `ValueError` where the flags alone tell that a folder holds other images."""
    if begun(folder):
        path = folder / SETTINGS
        found = read_json(path) if path.exists() else {}
        check_same_run(folder, {**found, **known_before_loading(args.images, args.sampler)})


def _load_sampler(args: GenerateArguments, device: torch.device) -> Sampler:
    name = args.images.model_name_or_path
    try:
        pipeline = load_pipeline(name, getattr(torch, args.sampler.dtype))
    except (ValueError, OSError) as error:
        raise ValueError(f"--model_name_or_path: {error}") from error
    sampler = Sampler(pipeline.to(device), args.images, args.sampler)
    if args.output.class_folders and sampler.labels is None:
        raise ValueError("--class_folders: the model is unconditional")
    return sampler


def _finished_run(folder: Path, args: GenerateArguments, settings: dict) -> dict | None:
    """The results of the folder, if it holds this run, finished; a `ValueError` where it lacks what is asked for."""
    if begun(folder):
        check_same_run(folder, settings)
    if not (folder / RESULTS).exists():
        return None
    results = read_json(folder / RESULTS)
    for name, wanted in _asked(args).items():
        if wanted is not None and results.get("asked", {}).get(name) != wanted:
            raise ValueError(
                f"output_dir {str(folder)!r} holds these images, finished, with {name}={results['asked'].get(name)}; "
                f"got {wanted}: choose another"
            )
    shutil.rmtree(folder / PARTS, ignore_errors=True)  # of a run that was killed after its results
    return results


def _asked(args: GenerateArguments) -> dict:
    """What is made of the images, as JSON values; not what they depend on."""
    output, scores = args.output, args.scores
    return {
        "format": output.format,
        "class_folders": output.class_folders,
        "images_per_shard": output.images_per_shard,
        "score_metric": scores.score_metric,
        "score_config": scores.score_config,
        "score_arguments": scores.score_arguments,
        "score_references": scores.score_references,
        "save_moments": scores.save_moments,
    }


def _begin(folder: Path, settings: dict, parts: Parts) -> list[int]:
    """Write down whose folder this is; the batches that are to be sampled."""
    write_json(folder / SETTINGS, settings)
    return parts.missing()


def _sample_batches(sampler: Sampler, parts: Parts, missing: list[int], state: PartialState) -> float:
    """Sample this process's share, and wait for the others; seconds until all are there."""
    begin = time.perf_counter()
    own = missing[state.process_index :: state.num_processes]
    looked, there = begin, parts.num_images - sum(map(parts.size, missing))
    bar = tqdm(total=parts.num_images, initial=there, unit="image", desc="images", disable=not state.is_main_process)
    with bar:
        with deferred():
            for start in own:
                if requested():
                    break
                before = time.perf_counter()
                images = sampler.sample(start)[: parts.size(start)]
                parts.write(start, SampledBatch(images, time.perf_counter() - before, sampler.hardware))
                if state.is_main_process and time.perf_counter() > looked + LOOK_SECONDS:
                    bar.update(parts.images_there() - bar.n)  # those of the other processes too
                    looked = time.perf_counter()
        state.wait_for_everyone()
        bar.update(parts.num_images - bar.n)
    return time.perf_counter() - begin


def _results(sampler: Sampler, parts: Parts, sampled: int, seconds: float, processes: int) -> dict:
    done = parts.measured()
    labels, names = sampler.labels, sampler.class_names
    counts = None if labels is None else class_counts_of(labels[: parts.num_images], len(names))
    return {
        "settings": sampler.settings,
        "class_names": names or None,
        "images_per_class": counts,
        # Of this call; None where an earlier one had sampled all.
        "sampled": sampled,
        "seconds": seconds if sampled else None,
        "images_per_second": sampled / seconds if sampled else None,
        "processes": processes,
        # Of all calls.
        "process_seconds": sum(own for own, _ in done),
        "hardware": sorted({words for _, words in done}),
        "versions": versions(LIBRARIES),
        **({"plugins": loaded_plugins()} if loaded_plugins() else {}),
    }


def _leave(results: dict, args: GenerateArguments, sampler: Sampler, parts: Parts, scorer: tuple | None) -> dict:
    """Write forms, scores and card, then the results, whose presence says that all is there; drop the parts.

    scorer: the metric, and [`open_references`].
    """
    folder, output = Path(args.output.output_dir), args.output
    results["forms"] = write_forms(
        output.format,
        parts,
        folder,
        sampler.labels,
        sampler.class_names,
        class_folders=output.class_folders,
        images_per_shard=output.images_per_shard,
    )
    results["scores"] = None
    if scorer is not None:
        metric, references = scorer
        results["scores"] = score_images(
            metric, lambda: (picture_of(in_colour(image)) for _, image in parts.images()), args.scores, references
        )
    results["asked"] = _asked(args)
    results["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    replace_text(folder / CARD, generation_card(results, args))
    write_json(folder / RESULTS, results)
    shutil.rmtree(parts.folder)
    return results
