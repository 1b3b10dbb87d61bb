"""A tiny random CLIP with a tokenizer of single characters, as a checkpoint on disk."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

LONGEST = 20  # tokens


def save_tiny_clip(folder):
    """Model, image processor and tokenizer in `folder`; returns the tokenizer."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    Path(folder, "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    Path(folder, "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(Path(folder, "vocab.json")), str(Path(folder, "merges.txt")))
    part = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**part, "vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, "projection_dim": 6, **ends}
    vision = {**part, "image_size": 8, "patch_size": 4, "projection_dim": 6}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
