"""The image processor that is saved with a trained network."""

from collections.abc import Sequence

from transformers import ViTImageProcessorPil


def make_image_processor(
    mean: Sequence[float], std: Sequence[float], size: int, crop: bool = False
) -> ViTImageProcessorPil:
    """The image processor that belongs to a trained model: RGB, resized to `size`, (x / 255 - mean) / std.

    It runs on Pillow and NumPy, without torchvision. An image that has the right size is not resampled. A saved one
    loads with `AutoImageProcessor.from_pretrained`, with torchvision's backend where that is installed.

    Args:
        mean: three channel means of images in [0, 1].
        std: three positive channel standard deviations of images in [0, 1].
        size: height and width of the result.
        crop: bring the shorter side to `size` and keep the central square; without it, images become squares whatever
            their shape.

    Raises:
        ValueError: `mean` or `std` does not have three entries, `std` is not positive, or `size` is below 1.
    """
    for name, value in (("mean", mean), ("std", std)):
        if len(value) != 3:
            raise ValueError(f"{name} must have three entries, one per RGB channel, got {list(value)}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {list(std)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return ViTImageProcessorPil(
        do_convert_rgb=True,
        size={"shortest_edge": size} if crop else {"height": size, "width": size},
        **({"do_center_crop": True, "crop_size": {"height": size, "width": size}} if crop else {}),
        rescale_factor=1 / 255,
        image_mean=[float(value) for value in mean],
        image_std=[float(value) for value in std],
    )
