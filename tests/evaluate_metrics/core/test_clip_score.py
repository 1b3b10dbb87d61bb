"""The closed forms of CLIPScore, and the text model beside a CLIP."""

import math

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from evaluate_metrics.core.clip_score import PREFIX, SCALE, clip_score
from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.vision_models import embed_captions
from tests.evaluate_metrics.clip_files import save_tiny_clip


def at(cosines):
    """(n, 2) unit vectors with these cosines to (1, 0)."""
    return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])


def test_negative_cosines_count_as_0_before_the_mean():
    """Hessel's code gives .3125 of these cosines, torchmetrics 5.0: 100 cos, clamped after the mean."""
    images = torch.tensor([[1.0, 0]]).repeat(4, 1)
    result = clip_score(images * 7, at([0.3, 0.2, -0.1, -0.2]))
    assert result.mean == pytest.approx(0.3125, rel=1e-6) and result.n == 4
    assert result.scores.tolist() == pytest.approx([0.75, 0.5, 0, 0], rel=1e-6)
    spread = torch.tensor([0.75, 0.5, 0, 0]).double().std()
    assert result.standard_error == pytest.approx(float(spread) / 2, rel=1e-6)


def test_bounds_and_one_pair():
    one = clip_score(torch.tensor([[2.0, 0]]), torch.tensor([[0.1, 0]]))
    assert one.mean == pytest.approx(2.5) and one.standard_error is None
    assert clip_score(torch.tensor([[2.0, 0]]), torch.tensor([[-0.1, 0]])).mean == 0
    assert SCALE == "2.5 max(cos, 0)" and PREFIX == "A photo depicts "


@pytest.mark.parametrize(
    ("images", "captions", "words"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), "of one shape; got \\(2, 3\\) and \\(3, 3\\)"),
        (torch.ones(0, 3), torch.ones(0, 3), "1 or more vectors"),
        (torch.zeros(2, 3), torch.ones(2, 3), "images must have no zero vectors.*row 0"),
    ],
)
def test_bad_pairs(images, captions, words):
    with pytest.raises(ValueError, match=words):
        clip_score(images, captions)


def test_captions_are_embedded_as_the_whole_model_does(tmp_path):
    tokenizer = save_tiny_clip(tmp_path)
    captions = ["a cat", "a dog and " * 50, "A photo depicts a cat", "x"]
    found = embed_captions(str(tmp_path), "cpu", torch.float32, captions, batch_size=3)
    model = CLIPModel.from_pretrained(tmp_path).eval()
    for caption, vector in zip(captions, found, strict=True):
        ids = tokenizer(caption)["input_ids"]
        longest = model.config.text_config.max_position_embeddings
        if len(ids) > longest:  # cut off, but for its end
            ids = [*ids[: longest - 1], ids[-1]]
        with torch.no_grad():
            whole = model.get_text_features(torch.tensor([ids])).pooler_output[0]
        torch.testing.assert_close(vector, whole, rtol=1e-4, atol=1e-5)
    assert embed_captions(str(tmp_path), "cpu", torch.float32, []).shape == (0, 6)


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (40, 13), (1, 3)])
def test_images_as_clip_itself_prepares_them(size, tmp_path):
    """The shorter side to 8 pixels by Pillow's bicubic filter, the longer one rounded down; then the middle."""
    save_tiny_clip(tmp_path)
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    width, height = (int(8 * side / min(size)) for side in size)
    left, top = (width - 8) // 2, (height - 8) // 2
    small = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 8, top + 8))
    values = torch.tensor(list(small.tobytes())).reshape(8, 8, 3).permute(2, 0, 1) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    spread = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        model = CLIPModel.from_pretrained(tmp_path).eval()
        expected = model.get_image_features(((values - mean) / spread)[None]).pooler_output
    encoder = make_encoder(f"clip-score:{tmp_path}", device="cpu")
    torch.testing.assert_close(encoder.encode([image]), expected, rtol=1e-4, atol=1e-5)
    assert encoder.digest != make_encoder(tmp_path, device="cpu", normalize=False).digest


def test_a_clip_without_its_text_model_is_named(tmp_path):
    CLIPModel(CLIPConfig(**_shape())).vision_model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="could not be loaded"):
        embed_captions(str(tmp_path), "cpu", torch.float32, ["a"])


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"encoder '{tmp_path}' could not be loaded: Unrecognized model"):
        make_encoder(f"clip-score:{tmp_path}", device="cpu")


def _shape():
    part = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {"text_config": part, "vision_config": {**part, "image_size": 8, "patch_size": 4}, "projection_dim": 6}
