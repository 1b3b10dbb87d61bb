"""Sample many images of one setting, by any number of processes, into files, a data set, or straight into scores.

    hf-dit generate --model_name_or_path runs/dit --num_images 1000 --output_dir runs/images
    accelerate launch -m hf_dit generate --model_name_or_path facebook/DiT-XL-2-256 --scheduler ddpm \\
        --dtype bfloat16 --format npz parquet --output_dir runs/dit-xl
    hf-dit generate --model_name_or_path runs/dit --num_images 5000 --format none --output_dir runs/scored \\
        --score_metric evaluate_metrics/cmmd --score_config clip --score_references my_photos

Each image is a function of the settings and its number: noise, label and the noise of a stochastic sampler come from
(--seed, number), drawn on the CPU. The number of processes, kills and resumes do not change a byte, on the same
hardware (on a CPU also the same number of threads, OMP_NUM_THREADS, which launchers set to 1) with the same versions.
--batch_size keeps labels and noise, and may change the rounding of a few pixels, since products of matrices depend on
how many rows they have; batches are cut from the numbers of the images, so that an image always has the same ones
beside it, and the first images of a longer run are those of a shorter one.

A killed run goes on with the same command: finished batches lie in OUTPUT_DIR/parts until all forms are written.
Other settings in the same folder are refused; forms and scores may change until it is finished. Ctrl+C and SIGTERM end
it after the batch. If a form or a score fails, the same command, corrected, samples nothing again.

Labels are balanced: class after class in turn, so that 50,000 images of 1,000 classes are 50 each and the class
frequencies do not add to the noise of a score. DiT's and SiT's code draws them (--class_sampling drawn). For a
training set that is not balanced, --class_counts takes the numbers of its classes. Files are in the order of the
numbers, in which classes alternate: the Inception Score's splits, in file order, are not sorted by class.

png: OUTPUT_DIR/png/000000.png and so on, with --class_folders 03_cat/000000.png, which load_dataset("imagefolder") and
hf-dit train --train_data_dir take with their classes. parquet: OUTPUT_DIR/parquet, for load_dataset and hf-dit train
--dataset_name. npz: OUTPUT_DIR/samples.npz with arr_0, uint8 NHWC, for ADM's evaluator.py (greyscale as RGB).

--score_metric is loaded by evaluate.load with --score_config and --score_arguments; it gets the same 8-bit pixels that
are written, in order, from all processes and calls, so that scores and moments are those of the files. The first
process scores when all images are there. --score_references is a folder, or a file of moments.

On CPUs, torchrun --nproc_per_node 2 -m hf_dit generate --use_cpu ... starts two processes.
"""

from hf_common.flags import FlagParser
from hf_common.running import run_command
from hf_dit.generation.arguments import (
    GenerateArguments,
    ImageArguments,
    OutputArguments,
    SamplerArguments,
    ScoreArguments,
)


def main() -> None:
    groups = (ImageArguments, SamplerArguments, OutputArguments, ScoreArguments)
    parser = FlagParser(groups, description=__doc__)
    args = GenerateArguments(*parser.parse_args_into_dataclasses())
    from pathlib import Path

    from hf_common.processes import leave_processes
    from hf_dit.generation.run import generate_images

    results = generate_images(args)
    if results is not None:
        rate = results["images_per_second"]
        speed = "" if rate is None else f", {rate:.3g} images/s"
        scores = results["scores"] or {}
        print(f"{args.images.num_images} images{speed}: {Path(args.output.output_dir).resolve()}")
        print("".join(f"{name}: {value}\n" for name, value in scores.items()), end="")
    leave_processes()


def run() -> None:
    """The command."""
    run_command(main, "the finished batches are kept in --output_dir; the same command samples the rest:")
