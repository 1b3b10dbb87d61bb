import io
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import (
    AlignConfig,
    AlignModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from evaluate_metrics.core.encoders import ENCODERS, make_encoder, register_encoder
from evaluate_metrics.core.moments import Moments
from hf_common.images import central_square, to_rgb

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
EFFICIENT_NET = {
    "image_size": 32,
    "width_coefficient": 0.25,
    "depth_coefficient": 0.25,
    "hidden_dim": 32,
    "in_channels": [32, 16],
    "out_channels": [16, 48],
    "kernel_sizes": [3, 5],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 4],
    "depthwise_padding": [],
}


def tiny_models():
    """Name -> model with random weights, and processor with values unlike its class's own."""
    projection = {"projection_dim": 12}
    clip = CLIPConfig(text_config={**TEXT, **projection}, vision_config={**VISION, **projection}, **projection)
    return {
        "clip": (
            CLIPModel(clip),
            CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        ),
        "siglip": (
            SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)),
            SiglipImageProcessorPil(size={"height": 28, "width": 28}),
        ),
        "align": (
            AlignModel(AlignConfig(text_config=TEXT, vision_config=EFFICIENT_NET, projection_dim=16)),
            EfficientNetImageProcessorPil(
                size={"height": 37, "width": 37},
                crop_size={"height": 32, "width": 32},
                do_center_crop=True,
                rescale_factor=1 / 127.5,
                rescale_offset=True,
                do_normalize=False,
                include_top=False,
            ),
        ),
        "dinov2": (
            Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)),
            BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}),
        ),
        "resnet": (
            ResNetForImageClassification(
                ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
            ),
            ConvNextImageProcessorPil(size={"shortest_edge": 28}),
        ),
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    found = tiny_models()
    for name, (model, processor) in found.items():
        model.eval().save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder, found


def photographs(n, seed=0, square=None):
    """Pieces of two real photographs, of many sizes and shapes."""
    draw, photos = np.random.default_rng(seed), [Image.fromarray(array) for array in load_sample_images().images]
    pieces = []
    for i in range(n):
        width, height = (square, square) if square else draw.integers(20, 90, 2)
        left, top = draw.integers(0, 500), draw.integers(0, 300)
        pieces.append(photos[i % 2].crop((left, top, left + width, top + height)))
    return pieces


def own_embedding(name, model, processor, images):
    """By the model's own way from image to embedding, one image at a time."""
    rows = []
    for image in images:
        inputs = processor(image, return_tensors="pt")
        with torch.no_grad():
            rows.append(
                model.base_model(**inputs) if name in ("dinov2", "resnet") else model.get_image_features(**inputs)
            )
    return torch.nn.functional.normalize(torch.cat([row.pooler_output.flatten(1) for row in rows]), dim=1)


DIMENSIONS = {"clip": 12, "siglip": 16, "align": 16, "dinov2": 16, "resnet": 16}


@pytest.mark.parametrize(("name", "dim"), DIMENSIONS.items())
def test_each_encoder_gives_its_models_own_embedding_as_unit_vectors(models, name, dim):
    folder, found = models
    encoder = make_encoder(folder / name, device="cpu")
    # CLIP is resized in the way of the paper, which is the processor's own for square images alone.
    images = photographs(7, square=61 if name == "clip" else None)
    vectors = encoder.encode(images, batch_size=3)
    assert vectors.shape == (7, dim) and vectors.dtype == torch.float32 and encoder.dim == dim
    assert (vectors.norm(dim=1) - 1).abs().max() < 1e-6
    assert (vectors - own_embedding(name, *found[name], images)).abs().max() < 1e-5
    assert vectors.std(0).max() > 1e-3  # images are told apart
    assert encoder.name == str(folder / name) and encoder.normalized and len(encoder.weights) == 16
    raw = make_encoder(folder / name, device="cpu", normalize=False).encode(images)
    assert (raw.norm(dim=1) - 1).abs().max() > 1e-2
    assert torch.allclose(torch.nn.functional.normalize(raw, dim=1), vectors, atol=1e-5)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_batch_size_and_order_do_not_change_a_vector(models, name):
    encoder = make_encoder(models[0] / name, device="cpu")
    images = photographs(11)
    vectors = encoder.encode(images, batch_size=11)
    for batch_size in (1, 4, 64):
        assert (encoder.encode(images, batch_size) - vectors).abs().max() < 1e-5
    assert (encoder.encode(images[::-1], 4).flip(0) - vectors).abs().max() < 1e-5


def test_preprocessing_is_said_in_the_words_of_moments_that_were_saved_before(models):
    values = "do_normalize=True, do_rescale=True"
    mean, std = "(0.48145466, 0.4578275, 0.40821073)", "(0.26862954, 0.26130258, 0.27577711)"
    assert make_encoder(models[0] / "clip", device="cpu").preprocessing == (
        f"central square, Pillow bicubic to 28 x 28; CLIPImageProcessorPil(do_center_crop=False, {values}, "
        f"do_resize=False, image_mean={mean}, image_std={std}, rescale_factor=0.00392156862745098)"
    )
    assert make_encoder(models[0] / "siglip", device="cpu").preprocessing == (
        f"SiglipImageProcessorPil({values}, do_resize=True, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5), "
        "resample=3, rescale_factor=0.00392156862745098, size={'height': 28, 'width': 28})"
    )


def test_clip_images_are_cropped_to_the_central_square_and_resized_by_pillow(models):
    folder, found = models
    model, processor = found["clip"]
    images = photographs(5, seed=3)
    pixels = []
    for image in images:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((28, 28), Image.Resampling.BICUBIC)
        values = np.asarray(square, dtype=np.float32) / 255
        values = (values - processor.image_mean) / processor.image_std
        pixels.append(torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1))
    with torch.no_grad():
        vectors = model.get_image_features(pixel_values=torch.stack(pixels)).pooler_output
    encoder = make_encoder(folder / "clip", device="cpu")
    assert (encoder.encode(images) - torch.nn.functional.normalize(vectors, dim=1)).abs().max() < 1e-5
    assert encoder.preprocessing.startswith("central square, Pillow bicubic to 28 x 28; ")
    assert "image_mean=(0.48145466, 0.4578275, 0.40821073)" in encoder.preprocessing
    assert central_square(Image.new("RGB", (7, 4))).size == (4, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32_unit_vectors_close_by(models, dtype):
    images = photographs(5)
    full, half = (make_encoder(models[0] / "siglip", "cpu", kind) for kind in (None, dtype))
    vectors = half.encode(images)
    assert vectors.dtype == torch.float32 and (vectors.norm(dim=1) - 1).abs().max() < 1e-6
    assert 0 < (vectors - full.encode(images)).abs().max() < 0.03
    assert half.weights == full.weights


PROCESS = """
import sys
import torch
from evaluate_metrics.core.encoders import make_encoder
from evaluate_metrics.core.moments import Moments

rank, folder, model = int(sys.argv[1]), sys.argv[2], sys.argv[3]
encoder = make_encoder(model, device="cpu")
images = [f"{folder}/{i}.png" for i in range(11)][rank::2]
Moments.zeros(encoder.dim).update(encoder.encode(images, 4)).save(f"{folder}/{rank}.safetensors", encoder.metadata)
"""


@pytest.mark.slow
def test_two_processes_give_the_moments_of_one(models, tmp_path):
    images = photographs(11)
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    model = str(models[0] / "clip")
    runs = [subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path), model]) for rank in range(2)]
    encoder = make_encoder(model, device="cpu")
    alone = Moments.zeros(encoder.dim).update(encoder.encode(images))
    assert [run.wait(120) for run in runs] == [0, 0]
    (first, metadata), (second, _) = (Moments.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    encoder.check(metadata, "moments")
    both = first.merge(second)
    assert both.n == 11
    assert (both.mean - alone.mean).abs().max() < 1e-5 and (both.outer - alone.outer).abs().max() < 1e-5


def test_the_default_models_are_the_published_ones():
    assert {name: encoder for name, encoder in ENCODERS.items() if isinstance(encoder, str)} == {
        "clip": "openai/clip-vit-large-patch14-336",
        "siglip": "google/siglip-so400m-patch14-384",
        "align": "kakaobrain/align-base",
        "dinov2": "facebook/dinov2-large",
    }


@pytest.mark.parametrize("name", ["clip", "siglip", "align", "dinov2", "someone/some-model"])
def test_a_model_that_cannot_be_reached_is_named(name):
    with pytest.raises(
        OSError, match=f"{ENCODERS.get(name, name)}' could not be loaded from the cache, nor from http"
    ):
        make_encoder(name)


@pytest.mark.parametrize(("name", "meant"), [("siglp", "siglip"), ("clip_score", "clip-score"), ("dino-v2", "dinov2")])
def test_a_name_near_to_that_of_an_encoder_is_told(name, meant):
    with pytest.raises(OSError, match=rf"^encoder '{name}' could not be loaded.*; did you mean .*'{meant}'.*\?$"):
        make_encoder(name)


def test_weights_identify_a_model_wherever_it_lies(models, tmp_path):
    folder, found = models
    encoder = make_encoder(folder / "siglip", device="cpu")
    model, processor = found["siglip"]
    for place in ("copy", "changed", "larger"):
        model.save_pretrained(tmp_path / place)
        processor.save_pretrained(tmp_path / place)
    copy = make_encoder(tmp_path / "copy", device="cpu")
    assert copy.name != encoder.name and copy.weights == encoder.weights
    copy.check(encoder.metadata, "moments")
    SiglipImageProcessorPil(size={"height": 28, "width": 28}, resample=2).save_pretrained(tmp_path / "larger")
    with pytest.raises(ValueError, match="the references are of .*siglip'.*larger': preprocessing: .*=3.*=2"):
        make_encoder(tmp_path / "larger", device="cpu").check(encoder.metadata, "the references")
    changed = SiglipModel.from_pretrained(tmp_path / "changed")
    with torch.no_grad():
        changed.vision_model.post_layernorm.weight[0] += 1e-3
    changed.save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match="weights: "):
        make_encoder(tmp_path / "changed", device="cpu").check(encoder.metadata, "moments")
    with pytest.raises(ValueError, match="normalized: 'true', here 'false'"):
        make_encoder(folder / "siglip", device="cpu", normalize=False).check(encoder.metadata, "moments")


def test_models_that_give_no_embedding_are_refused(tmp_path):
    classifier = ViTForImageClassification(ViTConfig(**VISION))
    classifier.save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="vit' lacks 2 weights of ViTModel, which would be random: pooler.dense.bias"):
        make_encoder(tmp_path / "vit")
    BertModel(BertConfig(**TEXT)).save_pretrained(tmp_path / "bert")
    with pytest.raises(OSError, match="bert' could not be loaded from this folder: .*image processor"):
        make_encoder(tmp_path / "bert")
    ViTImageProcessorPil().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert' \(BertModel\) takes input_ids, not only images"):
        make_encoder(tmp_path / "bert")


# Callables


def mean_colour(images):
    return torch.tensor(np.array([np.asarray(image).mean((0, 1)) for image in images])) + 1


def test_a_callable_is_an_encoder():
    encoder = make_encoder(mean_colour)
    assert encoder.name.endswith("test_encoders.mean_colour") and encoder.dim == 3 and encoder.weights == ""
    images = photographs(5)
    assert torch.allclose(encoder.encode(images, 2), torch.nn.functional.normalize(mean_colour(images), dim=1).float())
    encoder.check(encoder.metadata, "moments")
    with pytest.raises(ValueError, match="encoder: '.*mean_colour', here '.*other'"):
        make_encoder(other).check(encoder.metadata, "moments")
    with pytest.raises(ValueError, match="device and dtype are for models that are loaded here"):
        make_encoder(mean_colour, device="cpu")


def other(images):
    return mean_colour(images)


@pytest.mark.parametrize("normalize", [True, False])
def test_callables_of_one_name_are_told_apart_by_what_they_do(normalize, tmp_path):
    """As moments of the one, in memory or in a file, and encoders of the other."""
    encoders = [make_encoder(lambda images, k=k: mean_colour(images) ** k, normalize=normalize) for k in (1, 2, 1)]
    assert len({encoder.name for encoder in encoders}) == 1
    Moments.zeros(3).update(encoders[0].encode(photographs(3))).save(tmp_path / "m", encoders[0].metadata)
    for metadata in (encoders[0].metadata, Moments.load(tmp_path / "m")[1]):
        encoders[2].check(metadata, "moments")
        with pytest.raises(ValueError, match="probe: the vectors of the probe image are 0?.* of their norm apart"):
            encoders[1].check(metadata, "moments")
    long, shorter = (make_encoder(lambda images, k=k: mean_colour(images)[:, :k], normalize=normalize) for k in (3, 2))
    with pytest.raises(ValueError, match="probe: vectors of 3 numbers, here of 2"):
        shorter.check(long.metadata, "moments")
    for probe, words in ((None, "they lack the vector"), ("AAA", "no vector"), ("\u00e4", "no vector")):
        metadata = (
            {**encoders[0].metadata, "probe": probe}
            if probe
            else {key: value for key, value in encoders[0].metadata.items() if key != "probe"}
        )
        with pytest.raises(ValueError, match=f"probe: {words}"):
            encoders[0].check(metadata, "moments")


@pytest.mark.parametrize(("change", "same"), [(1e-5, True), (5e-4, True), (2e-3, False), (1e-1, False)])
def test_rounding_makes_no_other_encoder(change, same):
    """Relative changes of a vector, as other devices and versions make small ones."""
    vector = torch.randn(50, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(50, generator=torch.Generator().manual_seed(1))
    moved = vector + noise * (change * vector.norm() / noise.norm())
    first, second = (
        make_encoder(lambda images, v=v: v.repeat(len(images), 1), normalize=False) for v in (vector, moved)
    )
    if same:
        second.check(first.metadata, "moments")
    else:
        with pytest.raises(ValueError, match="of their norm apart"):
            second.check(first.metadata, "moments")


def test_a_module_is_told_apart_by_its_code_too():
    class Pixels(torch.nn.Linear):
        def __init__(self, power):
            super().__init__(3, 8)
            self.power = power

        def forward(self, images):
            return super().forward(mean_colour(images).float()) ** self.power

    first, second = Pixels(1), Pixels(3)
    second.load_state_dict(first.state_dict())
    assert make_encoder(first).weights == make_encoder(second).weights
    with pytest.raises(ValueError, match="of their norm apart"):
        make_encoder(second).check(make_encoder(first).metadata, "moments")


@pytest.mark.parametrize("device", ["cuda", "cuda:9", "gpu", "xpu"])
def test_a_device_that_is_not_there_is_named_before_a_model_is_loaded(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ValueError, match=f"device must be of those that torch .*, 1 x cpu.*; got '{device}'"):
        make_encoder("no/model", device=device)


def test_modules_are_callables_with_weights():
    class Pixels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 8)

        def forward(self, images):
            return self.layer(mean_colour(images).float())

    module = Pixels()
    encoder = make_encoder(module)
    assert not encoder.encode(photographs(2)).requires_grad
    with torch.no_grad():
        module.layer.bias += 1
    with pytest.raises(ValueError, match="weights"):
        make_encoder(module).check(encoder.metadata, "moments")


def test_weights_of_bfloat16_identify_a_module():
    class Pixels(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 8, dtype=torch.bfloat16)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, images):
            return self.layer(mean_colour(images).bfloat16()) * self.scale

    module = Pixels()
    encoder = make_encoder(module)
    assert encoder.encode(photographs(2)).dtype == torch.float32
    module.layer.bias.data += 1
    assert make_encoder(module).weights != encoder.weights


def test_methods_and_partial_functions_have_names_of_their_own():
    class Model:
        def colours(self, images, scale=1):
            return mean_colour(images) * scale

        def inverse(self, images):
            return 300 - mean_colour(images)

    encoder = make_encoder(Model().colours)
    assert encoder.name.endswith("Model.colours")
    assert make_encoder(partial(Model().colours, scale=2)).name == encoder.name
    with pytest.raises(ValueError, match="Model.colours'.*here '.*Model.inverse'"):
        make_encoder(Model().inverse).check(encoder.metadata, "moments")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda images: torch.zeros(len(images), 4), r"gave a zero vector, which has no direction, for images\[0\]"),
        (lambda images: mean_colour(images) / 0 * 0, r"gave NaN or infinity for images\[0\]"),
        (
            lambda images: torch.ones(1, 4),
            "a floating tensor of 3 rows for so many images, got torch.float32",
        ),
        (lambda images: torch.ones(len(images)), "got torch.float32 of shape"),
        (lambda images: torch.ones(len(images), 4, dtype=torch.int64), "got torch.int64"),
    ],
)
def test_callables_that_give_no_vectors_are_refused(function, words):
    with pytest.raises(ValueError, match=words):
        make_encoder(function).encode(photographs(3))


def test_the_image_of_a_bad_vector_is_named():
    images = [*photographs(4), Image.new("RGB", (9, 9), "red"), *photographs(1)]
    encoder = make_encoder(lambda batch: torch.stack([v if v[0] < 256 else v / 0 for v in mean_colour(batch)]))
    with pytest.raises(ValueError, match=r"NaN or infinity for predictions\[4\]"):
        list(encoder.encode_batches(images, 3, "predictions"))


# Images


def test_images_are_read_one_batch_ahead():
    read = []

    def images():
        for i, image in enumerate(photographs(10)):
            read.append(i)
            yield image

    batches = make_encoder(mean_colour).encode_batches(images(), 2)
    assert read == []
    assert len(next(batches)) == 2 and len(read) == 4
    assert sum(len(batch) for batch in batches) == 8
    assert make_encoder(mean_colour).encode([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("images", "batch_size", "error", "words"),
    [
        ("photo.png", 2, TypeError, "images must be a list or another iterable of images, got one str"),
        (Image.new("RGB", (4, 4)), 2, TypeError, "got one Image"),
        (b"\x89PNG", 2, TypeError, "got one bytes"),
        (
            np.zeros((8, 8, 3), np.uint8),
            2,
            TypeError,
            r"must have 4 dimensions, got the shape \(8, 8, 3\)",
        ),
        (torch.zeros(3, 8, 8), 2, TypeError, "in one array must have 4 dimensions"),
        (3, 2, TypeError, "images must be a list or another iterable of images, got int"),
        ([Image.new("RGB", (4, 4)), 7], 2, TypeError, r"images\[1\] must be a path, PIL image, .* got int"),
        ([Image.new("RGB", (4, 4))], 0, ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_is_no_list_of_images_is_refused(images, batch_size, error, words):
    with pytest.raises(error, match=words):
        make_encoder(mean_colour).encode(images, batch_size)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_its_image_files(kind, tmp_path):
    images = photographs(5)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    encoder = make_encoder(mean_colour)
    assert torch.equal(encoder.encode(kind(tmp_path)), encoder.encode(images))
    with pytest.raises(TypeError, match="got one .*, '.*0.png', which is no folder either"):
        encoder.encode(kind(tmp_path / "0.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(ValueError, match="images: .*empty holds no image files"):
        encoder.encode(kind(tmp_path / "empty"))


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    whole = io.BytesIO()
    photographs(1, square=64)[0].save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:700])
    for name in ("notes.png", "cut.jpg", "gone.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image: "):
            make_encoder(mean_colour).encode([photographs(1)[0], tmp_path / name])
    with pytest.raises(ValueError, match=r"images\[0\] cannot be read as an image"):
        make_encoder(mean_colour).encode([{"bytes": b"no picture", "path": None}])
    with pytest.raises(ValueError, match=r"images\[0\] has neither bytes nor a path"):
        make_encoder(mean_colour).encode([{"img": 3}])


def test_damage_of_any_kind_is_told_in_one_way(tmp_path):
    image = photographs(1, square=16)[0]
    dds, webp = io.BytesIO(), io.BytesIO()
    image.save(dds, "DDS")
    unknown = dds.getvalue()[:80] + bytes(4) + dds.getvalue()[84:]  # Pillow raises NotImplementedError
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(webp, "WEBP", exif=exif)
    not_exif = webp.getvalue().replace(b"MM\0*", b"MM\0N")  # SyntaxError, as its orientation is read
    assert not_exif != webp.getvalue()
    for damaged in (unknown, not_exif):
        with pytest.raises(ValueError, match=r"^image 5 cannot be read as an image: "):
            to_rgb({"bytes": damaged, "path": None}, "image 5")


def test_images_that_pillow_has_only_opened(tmp_path):
    path = tmp_path / "photograph.png"
    whole = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8))
    whole.save(path)
    opened = Image.open(path)
    vectors = make_encoder(mean_colour).encode([opened] * 8)  # by several threads
    assert torch.allclose(vectors, make_encoder(mean_colour).encode([whole] * 8))
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"images\[1\] \(.*cut.png\) cannot be read as an image: .*truncated"):
        make_encoder(mean_colour).encode([whole, Image.open(tmp_path / "cut.png")])


def test_a_processor_that_keeps_sizes_is_refused(models, tmp_path):
    model, _ = models[1]["resnet"]
    model.save_pretrained(tmp_path)
    ConvNextImageProcessorPil(do_resize=False).save_pretrained(tmp_path)
    encoder = make_encoder(tmp_path, device="cpu")
    assert encoder.encode(photographs(2, square=40)).shape == (2, 16)
    with pytest.raises(ValueError, match=r"gives images of several sizes, \(30, 30\) and \(40, 40\); give a callable"):
        encoder.encode([*photographs(1, square=40), *photographs(1, square=30)])


def pixel(image):
    image = to_rgb(image)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def saved(image, tmp_path, kind="PNG", **options):
    path = tmp_path / f"image.{kind.lower()}"
    image.save(path, kind, **options)
    return path


def test_colour_modes_become_rgb(tmp_path):
    size = (3, 2)
    assert pixel(Image.new("L", size, 77)) == (77, 77, 77)
    assert pixel(Image.new("1", size, 1)) == (255, 255, 255)
    assert pixel(Image.new("RGBA", size, (10, 20, 30, 255))) == (10, 20, 30)
    assert pixel(Image.new("RGBA", size, (10, 20, 30, 0))) == (255, 255, 255)  # over white
    assert pixel(Image.new("RGBA", size, (0, 0, 0, 51))) == (204, 204, 204)
    assert pixel(Image.new("LA", size, (40, 0))) == (255, 255, 255)
    assert pixel(Image.new("CMYK", size, (255, 0, 0, 0))) == (0, 255, 255)
    assert pixel(saved(Image.new("CMYK", size, (0, 0, 0, 0)), tmp_path, "JPEG")) == (255, 255, 255)
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert pixel(saved(palette, tmp_path)) == (200, 100, 50)
    assert pixel(saved(palette, tmp_path, transparency=1)) == (255, 255, 255)
    assert pixel(saved(palette, tmp_path, "GIF")) == (200, 100, 50)
    assert pixel(saved(Image.new("RGB", size, (9, 8, 7)), tmp_path, transparency=(9, 8, 7))) == (255, 255, 255)
    coloured = Image.new("RGBA", (8, 8), (10, 20, 30, 0)).quantize(4)
    assert coloured.palette.mode == "RGBA" and pixel(coloured) == (255, 255, 255)
    for mode in ("F", "LAB"):
        with pytest.raises(ValueError, match=f"image has the mode '{mode}'; convert it to RGB"):
            to_rgb(Image.new(mode, size))


@pytest.mark.parametrize(("value", "level"), [(0, 0), (128, 0), (129, 1), (257 * 77, 77), (40000, 156), (65535, 255)])
def test_the_range_of_16_bits_becomes_8_bits(value, level, tmp_path):
    array = np.full((4, 5), value, np.uint16)
    path = saved(Image.fromarray(array), tmp_path)
    assert Image.open(path).mode.startswith("I")
    swapped = Image.frombytes("I;16B", (5, 4), array.astype(">u2").tobytes())
    wide = Image.fromarray(array.astype(np.int32))
    for image in (
        path,
        array,
        array[:, :, None],
        np.repeat(array[:, :, None], 3, 2),
        torch.from_numpy(array),
        swapped,
        wide,
    ):
        assert pixel(image) == (level, level, level)
    with pytest.raises(ValueError, match="values of 16 bits in mode 'I'"):
        to_rgb(Image.fromarray(np.full((4, 5), 70000, np.int32)))


def test_arrays_tensors_files_and_rows_of_data_sets(tmp_path):
    image = photographs(1)[0]
    array = np.asarray(image)
    channels_first = torch.from_numpy(array.copy()).permute(2, 0, 1)
    path = saved(image, tmp_path)
    row = {"bytes": path.read_bytes(), "path": None}
    for same in (array, array / 255, np.float16(array / 255), channels_first, channels_first / 255.0, path, str(path)):
        assert np.abs(np.asarray(to_rgb(same), int) - array).max() == 0
    for same in (row, {"bytes": None, "path": str(path)}, (channels_first / 255.0).double().requires_grad_()):
        assert np.array_equal(np.asarray(to_rgb(same)), array)
    transparent = np.dstack((array, np.zeros(array.shape[:2], np.uint8)))
    assert pixel(transparent) == pixel(torch.from_numpy(transparent).permute(2, 0, 1)) == (255, 255, 255)
    assert to_rgb(channels_first[:1]).getpixel((0, 0)) == (int(array[0, 0, 0]),) * 3
    assert np.array_equal(np.asarray(to_rgb(array[:, :, 0]))[:, :, 1], array[:, :, 0])


def test_the_orientation_of_a_photograph_is_applied(tmp_path):
    image = Image.new("RGB", (6, 3), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = to_rgb(saved(image, tmp_path, exif=exif))
    assert turned.size == (3, 6)
    assert to_rgb(turned).size == (3, 6)


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (np.full((4, 4, 3), 1.5), ValueError, r"values in \[0, 1\] as float64, got \[1.5, 1.5\]"),
        (torch.full((3, 4, 4), -1.0), ValueError, r"values in \[0, 1\] as float32, got \[-1.0, -1.0\]"),
        (np.full((4, 4), np.nan), ValueError, "values in"),
        (np.zeros((3, 40, 40), np.uint8), ValueError, r"shape \(H, W\) or \(H, W, C\) with C 1, 3 or 4"),
        (torch.zeros(5, 4, 3), ValueError, r"shape \(H, W\) or \(C, H, W\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "shape"),
        (np.zeros((4, 4, 3), np.int64), TypeError, "uint8, uint16 or floating-point numbers, got int64"),
        (np.zeros((4, 4), bool), TypeError, "got bool"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, error, words):
    with pytest.raises(error, match=words):
        to_rgb(array)


def test_a_registered_name_stands_for_its_encoder(monkeypatch):
    monkeypatch.setattr("evaluate_metrics.core.encoders.ENCODERS", dict(ENCODERS))

    def corners(images):
        return torch.tensor([[*image.getpixel((0, 0)), 1.0] for image in images])

    register_encoder("corners", corners)
    register_encoder("corners", corners)
    encoder = make_encoder("corners", normalize=False)
    assert encoder.dim == 4
    image = Image.new("RGB", (3, 3), (1, 2, 3))
    assert encoder.encode([image]).tolist() == [[1, 2, 3, 1]]
    register_encoder("mine", "someone/some-model")
    with pytest.raises(OSError, match="'someone/some-model' could not be loaded"):
        make_encoder("mine")
    for name, other, error, message in (
        ("clip", corners, ValueError, "there is an encoder 'clip' already, 'openai/clip"),
        ("a/b", corners, ValueError, "name must be a word"),
        ("inception-clean", corners, ValueError, "name must be none of .*inception"),
        ("x", 3, TypeError, "expected str, bytes or os.PathLike"),
    ):
        with pytest.raises(error, match=message):
            register_encoder(name, other)
