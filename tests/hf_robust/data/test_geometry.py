"""Shapes of images against the processors of transformers, and random parts against their published rule."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPImageProcessorPil, ConvNextImageProcessorPil, DeiTImageProcessorPil, ViTImageProcessorPil

from hf_robust.data.geometry import (
    Geometry,
    OpenedImage,
    OpenedPixels,
    central,
    crop_box,
    geometry_of,
    random_view,
    resized,
    shorter_side_to,
)

PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": 24, "width": 24}),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
    "deit": DeiTImageProcessorPil(size={"height": 32, "width": 32}, crop_size={"height": 28, "width": 28}),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=0.875),
    "convnext_large": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "crop_beyond": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 27, "width": 25}),
}


def picture(height, width, seed=0):
    """Smooth noise, as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(40, 61), (75, 33), (24, 24), (51, 50)])
def test_shapes_are_those_of_the_processor(name, size):
    processor, image = PROCESSORS[name], picture(*size)
    expected = processor(image, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[0]
    geometry = geometry_of(processor)
    pixels = geometry(torch.from_numpy(np.array(image)))
    assert pixels.shape[:2] == geometry.output == expected.shape[1:]
    difference = (pixels.permute(2, 0, 1).float() - expected.float()).abs()
    assert difference.max() <= 2 and difference.mean() < 0.25  # of 255: torch and Pillow round otherwise


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 61), (75, 33), (24, 25)])
def test_resized_pixels_lie_as_the_others_and_are_those_of_planes(size, interpolation):
    pixels = torch.from_numpy(np.array(picture(*size)))
    planes = pixels.permute(2, 0, 1)[None]
    expected = F.interpolate(planes, (20, 30), mode=interpolation, antialias=True)[0].permute(1, 2, 0)
    assert torch.equal(found := resized(pixels, (20, 30), interpolation), expected)
    assert found.is_contiguous()
    assert torch.equal(
        resized(pixels[3:, 2:], (20, 30), interpolation), resized(pixels[3:, 2:].clone(), (20, 30), interpolation)
    )


def test_what_is_not_done_here_is_refused():
    for processor in (
        ViTImageProcessorPil(do_resize=False),
        CLIPImageProcessorPil(do_center_crop=False),
        ViTImageProcessorPil(resample=Image.Resampling.LANCZOS),
    ):
        with pytest.raises(ValueError, match="does what is not done here to the shape of an image"):
            geometry_of(processor)


def test_the_longer_side_is_rounded_down():
    assert [shorter_side_to(224, 375, 500), shorter_side_to(256, 375, 500), shorter_side_to(256, 500, 333)] == [
        (224, 298), (256, 341), (384, 256),
    ]  # fmt: skip


@pytest.mark.parametrize(("have", "want", "top"), [(5, 8, 2), (8, 5, 1), (7, 4, 1), (4, 4, 0)])
def test_the_centre_of_odd_margins(have, want, top):
    pixels = torch.arange(1, have + 1, dtype=torch.uint8)[:, None, None].expand(have, 3, 3)
    column = central(pixels, want, 3)[:, 0, 0].tolist()
    if want > have:
        assert column == [0] * top + list(range(1, have + 1)) + [0] * (want - have - top)
    else:
        assert column == list(range(top + 1, top + 1 + want))


def test_a_scaled_geometry_keeps_its_proportions():
    assert Geometry((256, 256), (224, 224), "bicubic").scaled(112) == Geometry((128, 128), (112, 112), "bicubic")
    assert Geometry(256, (224, 224)).scaled(64) == Geometry(73, (64, 64))
    assert Geometry((224, 224)).scaled(64) == Geometry((64, 64))


@pytest.mark.parametrize(("height", "width", "share"), [(375, 500, 0.436), (300, 300, 0.483), (200, 800, 0.192)])
def test_random_parts_have_the_areas_of_torchvisions(height, width, share):
    draw = random.Random(1)
    boxes = [crop_box(height, width, draw) for _ in range(4000)]
    assert np.mean([h * w for _, _, h, w in boxes]) / (height * width) == pytest.approx(share, abs=0.012)
    assert all(0 <= top <= height - h and 0 <= left <= width - w for top, left, h, w in boxes)
    ratios = [w / h for _, _, h, w in boxes]
    assert min(ratios) > 0.72 and max(ratios) < 1.38
    tops = np.array([top / max(1, height - h) for top, _, h, _ in boxes if h < height])
    assert abs(tops.mean() - 0.5) < 0.03


def test_the_largest_centre_where_no_part_fits():
    class Largest(random.Random):
        def uniform(self, low, high):
            return high

    assert crop_box(20, 400, Largest()) == (0, 186, 20, 27)
    assert crop_box(400, 20, Largest()) == (186, 0, 27, 20)


def test_a_view_is_a_part_that_is_brought_to_size_and_mirrored_half_of_the_time():
    pixels = torch.from_numpy(np.array(picture(50, 70)))
    geometry, flipped = Geometry.square(16), 0
    for seed in range(200):
        view = random_view(OpenedPixels(pixels), geometry, random.Random(seed))
        opened = OpenedImage(Image.fromarray(pixels.numpy()))
        assert torch.equal(random_view(opened, geometry, random.Random(seed)), view)
        draw = random.Random(seed)
        top, left, height, width = crop_box(50, 70, draw)
        image = Image.fromarray(pixels.numpy()[top : top + height, left : left + width])
        expected = np.array(image.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
        mirrored = draw.random() < 0.5
        flipped += mirrored
        assert np.abs(view.numpy() - (expected[:, ::-1] if mirrored else expected)).max() <= 2
    assert 70 < flipped < 130
