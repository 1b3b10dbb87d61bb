#!/usr/bin/env python
"""Train a Diffusion Transformer on images, with or without classes, on pixels or on the latents of an autoencoder.

    accelerate launch scripts/train_dit.py --dataset_name uoft-cs/cifar10 --model dit-tiny-4 --random_flip \\
        --train_batch_size 64 --max_train_steps 2000 --output_dir runs/cifar10
    accelerate launch --mixed_precision bf16 scripts/train_dit.py --train_data_dir my_images --resolution 64 \\
        --model dit-s-4 --attention na7 --dataloader_num_workers 4 --output_dir runs/my-images-na7
    accelerate launch --mixed_precision bf16 scripts/train_dit.py --train_data_dir my_images --resolution 256 \\
        --vae stabilityai/sd-vae-ft-mse --random_flip --model dit-s-2 --dataloader_num_workers 4 \\
        --output_dir runs/my-images-latents
    accelerate launch scripts/train_dit.py --train_data_dir my_images --resolution 64 --unconditional \\
        --model dit-s-4 --resume_from_checkpoint latest --output_dir runs/my-images-unconditional

A data set is a Hub id, a folder of Parquet files (--dataset_name FOLDER), or a folder of image files with a subfolder
for each class (--train_data_dir FOLDER). Writes the pipeline (averaged weights), results.json, loss_curve.png, sample
grids and checkpoints to --output_dir. A killed run goes on with --resume_from_checkpoint latest and ends with the same
weights.

On N GPUs, accelerate launch starts N processes, and an optimizer step takes N times --train_batch_size images: divide
it by N to keep the batch, and the weights are those of one GPU but for rounding. On CPUs, accelerate launch --cpu
starts one process only (without MPI); either of these starts two:

    accelerate launch --multi_gpu --num_processes 2 scripts/train_dit.py --use_cpu ...
    torchrun --nproc_per_node 2 scripts/train_dit.py --use_cpu --dataset_name uoft-cs/cifar10 --model dit-tiny-4 \\
        --train_batch_size 32 --max_train_steps 2000 --output_dir runs/cifar10

Launchers give a process one CPU thread unless OMP_NUM_THREADS says more.

Flags are named as in diffusers' train_unconditional.py, but for --model (there --model_config_name_or_path),
--num_sample_images (--eval_batch_size), --sample_steps (--ddpm_num_inference_steps), --save_images_steps
(--save_images_epochs), --report_to (--logger) and --attention (--enable_xformers_memory_efficient_attention). Defaults
are those of the DiT paper: unlike there, the learning rate is constant without warm-up, Adam's first beta 0.9, weight
decay 0, gradients are not clipped (--max_grad_norm 1), weights are averaged (--no_use_ema) and one checkpoint is kept.
Images are never cropped at random. There is no --push_to_hub, no --overwrite_output_dir, no --save_model_epochs (the
checkpoints hold the models) and no --logging_dir (it is OUTPUT_DIR/logs); a flag that is not known is an error.
"""

from argparse import RawDescriptionHelpFormatter

from transformers import HfArgumentParser

from hf_dit.image_data import DataArguments
from hf_dit.trainer import DiTTrainingArguments
from hf_dit.training import ModelArguments, train_dit


def main() -> None:
    parser = HfArgumentParser(
        (DataArguments, ModelArguments, DiTTrainingArguments),
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    train_dit(*parser.parse_args_into_dataclasses())


if __name__ == "__main__":
    main()
