"""Images on their way to an encoder: decoded by threads, one batch ahead, never all at once."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate_metrics.core.batches import BatchBuffer
from evaluate_metrics.core.encoders import Encoder, make_encoder
from evaluate_metrics.core.inception import resize


def means(images):
    return np.stack([np.asarray(image, np.float64).mean((0, 1)) + 1 for image in images])


def pictures(n, seed=0):
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(means, normalize=False)


@pytest.mark.parametrize("num_workers", [None, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 99])
def test_chunks_are_those_of_one_set(encoder, num_workers, batch_size):
    images = pictures(23)
    chunks = [images[:8], [], images[8:9], images[9:23], []]
    found = list(encoder.encode_chunks(iter(chunks), batch_size, num_workers))
    assert [len(vectors) for vectors in found] == [8, 0, 1, 14, 0] and all(v.shape[1] == 3 for v in found)
    assert torch.cat(found).equal(encoder.encode(images))
    assert list(encoder.encode_chunks([])) == []


def test_a_batch_never_spans_two_chunks():
    sizes = []

    def spy(images):
        sizes.append(len(images))
        return means(images)

    list(make_encoder(spy).encode_chunks([pictures(5), pictures(6)], 4))
    assert sizes == [1, 4, 1, 4, 2]  # the first: of the probe


def test_no_more_is_asked_for_than_one_batch_ahead(encoder):
    asked, images = [], pictures(40)

    def stream():
        for number, image in enumerate(images):
            asked.append(number)
            yield image

    for place, _ in enumerate(encoder.encode_batches(stream(), 4)):
        assert len(asked) <= 4 * (place + 2)
    chunks = ((asked.append(number), [image])[1] for number, image in enumerate(images))
    asked.clear()
    for place, _ in enumerate(encoder.encode_chunks(chunks, 4)):
        assert len(asked) <= place + 2
    assert len(asked) == 40


def test_threads_decode():
    """Three images wait for each other, which one thread would not end."""
    barrier, ready = threading.Barrier(3, timeout=20), threading.Event()

    def prepare(image):
        if ready.is_set():  # not for the probe
            barrier.wait()
        return image

    encoder = Encoder("e", "", "p", False, prepare, means)
    ready.set()
    assert next(encoder.encode_chunks([pictures(6)], 3, num_workers=3)).shape == (6, 3)


def test_the_bad_image_is_named(encoder):
    chunks = [pictures(3), [*pictures(2), b"no image"]]
    with pytest.raises(ValueError, match=r"^images\[2\] cannot be read"):
        list(encoder.encode_chunks(chunks, 2))


@pytest.mark.parametrize("size", [(48, 64), (299, 299), (700, 301), (1, 5)])
def test_the_clean_resizing_is_that_of_clean_fid(size):
    """Its own: Pillow's bicubic filter of each channel in floating point, cut to 0 to 255."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    channels = [
        np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    expected = np.stack(channels).clip(0, 255)
    found = resize(Image.fromarray(pixels), "clean").numpy() * 128 + 128
    assert np.abs(found - expected).max() < 1e-2  # of 255 levels


def test_memory_of_batches_is_used_again_and_mixes_nothing():
    buffer, draw = BatchBuffer(), torch.Generator().manual_seed(0)
    for count, shape, dtype in (
        (3, (3, 5, 4), "float32"),
        (2, (3, 5, 4), "float32"),
        (2, (3, 4, 5), "float64"),
        (7, (3, 4, 5), "float64"),
    ):
        pixels = [torch.rand(shape, generator=draw).to(getattr(torch, dtype)) for _ in range(count)]
        assert buffer.stack(pixels).equal(torch.stack(pixels))
    assert buffer.stack(pixels[:2]).data_ptr() == buffer.stack(pixels).data_ptr()
    others = []
    thread = threading.Thread(target=lambda: others.append(buffer.stack(pixels)))
    kept = buffer.stack(pixels[::-1])
    thread.start()
    thread.join()
    assert kept.equal(torch.stack(pixels[::-1])) and others[0].equal(torch.stack(pixels))
