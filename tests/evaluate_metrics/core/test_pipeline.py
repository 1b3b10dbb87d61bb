"""Images on their way to an encoder: decoded by threads, one batch ahead, never all at once."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate_metrics.core.batches import BatchMemory, as_batch, placed
from evaluate_metrics.core.encoders import Encoder, make_encoder


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

    def prepare(image, out):
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


def test_memory_of_batches_is_used_again_and_mixes_nothing():
    memory, like = BatchMemory(), torch.empty(3, 5, 4)
    first, second = memory.slots(4, like), memory.slots(4, like)
    for value, slots in enumerate((first, second)):
        slots.fill_(value)
    assert first.shape == (4, 3, 5, 4) and (first == 0).all() and (second == 1).all()
    again, last = memory.slots(3, like), memory.slots(9, like)
    assert again.data_ptr() == first.data_ptr() and len(again) == 3
    assert len(last) == 9 and last.data_ptr() != second.data_ptr() and (second == 1).all()


def test_what_does_not_fit_its_slot_is_kept_beside_it():
    slots = torch.full((2, 3, 2, 2), -1.0)
    rows, pixels = slots.unbind(), torch.rand(2, 3, 2, 2)
    prepared = [placed(each, row) for each, row in zip(pixels, rows, strict=True)]
    assert as_batch(prepared, rows, slots) is slots and slots.equal(pixels)
    larger = torch.rand(2, 3, 4, 2)
    prepared = [placed(each, row) for each, row in zip(larger, rows, strict=True)]
    assert as_batch(prepared, rows, slots).equal(larger) and slots.equal(pixels)
    assert placed(larger, None) is larger


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_tensors_of_batches_are_those_of_their_images(batch_size):
    """Each image has its own numbers, also where a batch of fewer follows, and where the probe had another size."""

    def prepare(image, out):
        return placed(torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), out)

    held = []

    def embed(pixels):
        held.append(pixels.clone())
        return pixels.mean((2, 3))

    for size in ((64, 48), (5, 6)):  # width, height: that of the probe, and another
        images = [image.resize(size) for image in pictures(11)]
        encoder = Encoder("e", "", "p", False, prepare, embed)
        held.clear()
        found = encoder.encode(images, batch_size)
        expected = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()
        assert torch.cat(held).equal(expected)
        torch.testing.assert_close(found, expected.mean((2, 3)))
        with torch.inference_mode():  # which the threads that write are not in
            assert encoder.encode(images, batch_size).equal(found)
    with pytest.raises(ValueError, match="of e gives images of several sizes, .* give a callable as encoder"):
        encoder.encode([pictures(1)[0], pictures(1)[0].resize((9, 9))], max(batch_size, 2))
