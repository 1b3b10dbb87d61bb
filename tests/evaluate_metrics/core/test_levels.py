"""A table of levels in place of a processor's arithmetic: the same numbers, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from evaluate_metrics.core.bicubic import bicubic_weights
from evaluate_metrics.core.inception import resize
from evaluate_metrics.core.levels import processor_preparation

PROCESSORS = {
    "clip": (CLIPImageProcessorPil(), {}),
    "clip, neither resized nor cut": (CLIPImageProcessorPil(), {"do_resize": False, "do_center_crop": False}),
    "siglip": (SiglipImageProcessorPil(size={"height": 50, "width": 70}), {}),
    "vit, not rescaled": (ViTImageProcessorPil(do_rescale=False), {}),
    "vit, not normalised": (ViTImageProcessorPil(do_normalize=False), {}),
    "align": (EfficientNetImageProcessorPil(include_top=True, rescale_offset=True), {}),
}


def picture(height, width):
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(30, 47), (224, 224), (401, 250)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_numbers_are_the_processor_s_own(name, size):
    processor, options = PROCESSORS[name]
    prepare, image = processor_preparation(processor, **options), picture(*size)
    expected = processor(image, return_tensors="pt", **options)["pixel_values"][0]
    assert prepare(image, None).float().equal(expected.float())
    room = torch.zeros(2, *expected.shape)
    written = prepare(image, room[1])
    assert written.data_ptr() == room[1].data_ptr() and room[1].equal(expected.float()) and not room[0].any()
    other = torch.zeros(3, 5, 5)
    assert prepare(image, other).float().equal(expected.float()) and not other.any()


def test_the_processor_s_arithmetic_is_not_asked_for_again():
    class Counting(CLIPImageProcessorPil):
        calls = 0

        def normalize(self, *args, **kwargs):
            type(self).calls += 1
            return super().normalize(*args, **kwargs)

    prepare = processor_preparation(Counting())
    before = Counting.calls
    assert before > 0 and prepare(picture(40, 40), None).shape == (3, 224, 224) and Counting.calls == before


def test_a_processor_that_looks_at_the_whole_image_is_asked_for_each():
    class Contrast(CLIPImageProcessorPil):
        def normalize(self, image, *args, **kwargs):
            return image / np.float32(image.max())

    processor, image = Contrast(), Image.fromarray(np.asarray(picture(60, 60)) // 2)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert processor_preparation(processor)(image, None).equal(expected)


def test_a_processor_that_takes_no_options_is_asked_for_each():
    class Strict(ViTImageProcessorPil):
        def __call__(self, images, return_tensors=None):
            return super().__call__(images, return_tensors=return_tensors)

    processor, image = Strict(), picture(50, 60)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert processor_preparation(processor)(image, None).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torch_s_defaults_change_nothing(dtype):
    image = picture(50, 60)
    expected = [processor_preparation(CLIPImageProcessorPil())(image, None), resize(image, "clean")]
    bicubic_weights.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            found = [processor_preparation(CLIPImageProcessorPil())(image, None), resize(image, "clean")]
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32 and ours.device.type == "cpu" and ours.equal(theirs)
