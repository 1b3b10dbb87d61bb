import json
import math
import tracemalloc

import numpy as np
import pytest
import torch

from hf_dit import DiTModel
from hf_dit.models.config import check_dit_config

SMALL = {
    "sample_size": 8, "patch_size": 2, "in_channels": 3, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 8, "num_classes": 3,
}  # fmt: skip
BAD = [
    ("in_channels", 10**12), ("in_channels", -1), ("in_channels", "3"), ("in_channels", math.nan),
    ("in_channels", None),
    ("num_layers", 10**9), ("num_layers", 2.0), ("num_layers", True), ("num_attention_heads", 10**40),
    ("attention_head_dim", [8]), ("num_classes", 10**12), ("num_classes", "3"), ("sample_size", "8"),
    ("sample_size", [8]), ("sample_size", [8, 10**12]), ("sample_size", {"a": 1}), ("sample_size", -8),
    ("mlp_ratio", math.nan), ("mlp_ratio", -1), ("mlp_ratio", 10**9), ("dropout", "0"), ("dropout", 1.5),
    ("norm_eps", math.inf), ("mlp_norm_eps", "x"), ("class_dropout_prob", [0.1]), ("learn_sigma", 1),
    ("attention_bias", "no"), ("downscale_freq_shift", "0"), ("attention", 3), ("attention", ["full"]),
    ("conditioning", "adaLN"), ("conditioning", None), ("conditioning", 3), ("qk_norm", "layer_norm"),
    ("qk_norm", True), ("position", "learned"), ("mlp", ["gelu"]), ("embedders", "one"), ("embedders", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}-{str(value)[:12]}" for name, value in BAD])
def test_what_is_no_size_is_refused_by_name_before_anything_is_made(name, value, tmp_path):
    model = DiTModel(**SMALL)
    model.save_config(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {name: value}))
    tracemalloc.start()
    for refused, start in (
        (lambda: DiTModel(**SMALL | {name: value}), name),
        (lambda: DiTModel.from_pretrained(tmp_path), f"{tmp_path}: config.json: {name}"),
    ):
        with pytest.raises(ValueError) as caught:
            refused()
        assert str(caught.value).startswith(start) and len(str(caught.value)) <= 300
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


@pytest.mark.parametrize("size", [np.int64(8), (np.int64(8), np.int32(12)), [8, np.int64(12)]])
def test_numbers_of_numpy_are_sizes_and_come_back(size, tmp_path):
    numbers = {name: np.int64(value) for name, value in SMALL.items()}
    floats = {"mlp_ratio": np.float32(2), "dropout": np.float64(0.5), "learn_sigma": False}
    model = DiTModel(**numbers | floats | {"sample_size": size})
    model.save_pretrained(tmp_path)
    again, side = DiTModel.from_pretrained(tmp_path), [int(part) for part in np.ravel(size)]
    assert list(np.ravel(again.config.sample_size)) == side and type(again.config.num_layers) is int
    plain = DiTModel(**SMALL | {"mlp_ratio": 2.0, "learn_sigma": False})
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }
    sample = torch.zeros(1, 3, side[0], side[-1])
    torch.testing.assert_close(
        again(sample, 3, torch.tensor([1])).sample, model.eval()(sample, 3, torch.tensor([1])).sample
    )


def test_layers_that_are_small_each_and_too_large_together():
    with pytest.raises(ValueError, match=r"num_layers=4096 of .*=1024 \* 1024 channels would be 8.1e\+16 parameters"):
        check_dit_config({"num_layers": 4096, "num_attention_heads": 1024, "attention_head_dim": 1024})
    check_dit_config({"num_layers": 56, "num_attention_heads": 48, "attention_head_dim": 128})
    check_dit_config({})


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, "[1]", "3", "null", b"\xff\xfe", "{'a': 1}"], ids=range(8)
)
def test_a_file_that_is_no_config_is_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, OSError), match=r"config\.json") as caught:
        DiTModel.load_config(tmp_path)
    assert len(str(caught.value)) <= 300
