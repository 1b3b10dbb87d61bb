"""Tiny random models of several families with their data, and their training: for tests of what a checkpoint gives."""

import datasets
import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BeitConfig,
    BeitForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_robust import RobustTrainer, RobustTrainingArguments
from hf_robust.data.memory import ImageTensorDataset
from hf_robust.data.transform import ImageTransform

N, CLASSES = 40, 3
TRANSFORMER = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "num_labels": CLASSES,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
IMAGE = {"image_size": 8, "patch_size": 4}


def lora_vit():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], lora_dropout=0.1)
    return get_peft_model(ViTForImageClassification(ViTConfig(**TRANSFORMER, **IMAGE)), config)


MODELS = {
    "vit": lambda: ViTForImageClassification(ViTConfig(**TRANSFORMER, **IMAGE)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(**TRANSFORMER, **IMAGE)),
    "beit": lambda: BeitForImageClassification(
        BeitConfig(**TRANSFORMER, **IMAGE, drop_path_rate=0.1, out_indices=[1, 2], use_relative_position_bias=True)
    ),
    "swin": lambda: SwinForImageClassification(
        SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2,
                   num_labels=CLASSES)
    ),
    "convnext": lambda: ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, patch_size=2, image_size=8,
                       num_labels=CLASSES, drop_path_rate=0.1)
    ),
    "bert": lambda: BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=8, **TRANSFORMER)),
    "ast": lambda: ASTForAudioClassification(
        ASTConfig(**TRANSFORMER, patch_size=4, num_mel_bins=8, max_length=12, frequency_stride=4, time_stride=4)
    ),
    "lora": lora_vit,
}  # fmt: skip
WITHOUT_IMAGES = ("bert", "ast")


def samples(family: str):
    draw = np.random.default_rng(0)
    labels = draw.integers(0, CLASSES, N)
    if family == "bert":
        columns = {"input_ids": draw.integers(0, 30, (N, 6)).tolist()}
    elif family == "ast":
        columns = {"input_values": draw.normal(size=(N, 12, 8)).tolist()}
    else:
        images = torch.from_numpy(draw.integers(0, 256, (N, 3, 8, 8)).astype(np.uint8))
        return ImageTensorDataset(images, torch.from_numpy(labels))
    return datasets.Dataset.from_dict(columns | {"label": labels.tolist(), "index": list(range(N))})


def make_trainer(family: str, folder, **changes) -> RobustTrainer:
    """A training of 3 epochs of 5 steps, each evaluated, with a checkpoint every 2 steps."""
    arguments = {
        "output_dir": str(folder), "use_cpu": True, "num_train_epochs": 3, "per_device_train_batch_size": 8,
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "epoch", "logging_strategy": "epoch", "loss": "ce",
        "report_to": "none", "disable_tqdm": True, "learning_rate": 0.05, "seed": 5,
    }  # fmt: skip
    torch.manual_seed(1)
    images = family not in WITHOUT_IMAGES
    transform = ImageTransform([0.5] * 3, [0.25] * 3, crop_padding=1, horizontal_flip=True) if images else None
    train = samples(family)
    return RobustTrainer(
        model=MODELS[family](), args=RobustTrainingArguments(**arguments | changes), train_dataset=train,
        eval_dataset=train, image_transform=transform,
    )  # fmt: skip


def record(trainer: RobustTrainer) -> list[dict]:
    """The log without its times."""
    times = ("_runtime", "_per_second")
    return [{k: v for k, v in row.items() if not k.endswith(times)} for row in trainer.state.log_history]


def largest_difference(a: torch.nn.Module, b: torch.nn.Module) -> float:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)
