"""The pages of the Spaces. Without gradio, which is no requirement of the tests, all but the page itself."""

import importlib.util
import inspect
import json
import re
import runpy
import subprocess
import sys
import types

import evaluate
import numpy as np
import pytest
from PIL import Image

from evaluate_metrics.publishing import write_space
from tests import ROOT
from tests.hub.client import WITHOUT_OWN_PACKAGES

METRICS = ROOT / "evaluate_metrics"
NAMES = ("cmmd", "fid", "image_quality")
pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of:UserWarning")
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
STAND_IN = """
import types, sys
gradio = types.ModuleType("gradio")
gradio.Error, gradio.Blocks = type("Error", (Exception,), {}), object
sys.modules["gradio"] = gradio
"""


def colours(images):
    """An encoder of 6 dimensions: mean and spread of each channel."""
    pixels = [np.asarray(image, np.float32).reshape(-1, 3) / 255 for image in images]
    return np.stack([np.concatenate((p.mean(0), p.std(0))) for p in pixels])


@pytest.fixture
def gradio(monkeypatch):
    """The module, or what stands in for it where no page is built."""
    if not HAS_GRADIO:
        module = types.ModuleType("gradio")
        module.Error, module.Blocks = type("Error", (Exception,), {}), object
        monkeypatch.setitem(sys.modules, "gradio", module)
        monkeypatch.delitem(sys.modules, "evaluate_metrics.core.app", raising=False)
        yield module
        sys.modules.pop("evaluate_metrics.core.app", None)
    else:
        yield importlib.import_module("gradio")


@pytest.fixture
def app(gradio):
    return {name: runpy.run_path(str(METRICS / name / "app.py"))["PAGE"] for name in NAMES}


@pytest.fixture
def galleries(tmp_path):
    """Two sets of 9 and 12 images as `gr.Gallery` gives them."""
    draw, found = np.random.default_rng(0), []
    for n, low in ((9, 0), (12, 60)):
        paths = [tmp_path / f"{n}-{i}.png" for i in range(n)]
        for path in paths:
            Image.fromarray(draw.integers(low, 256, (8, 9, 3), dtype=np.uint8)).save(path)
        found.append([(str(path), None) for path in paths])
    return found


def loaded(name):
    """What the app of this name scores with, the encoder being `colours`."""
    if name == "fid":
        return runpy.run_path(str(METRICS / name / "app.py"))["load_pair"](str(METRICS / name), encoder=colours)
    return evaluate.load(str(METRICS / name), encoder=colours)


def test_cmmd_names_each_score(app, galleries):
    metric = evaluate.load(str(METRICS / "cmmd"), encoder=colours)
    rows = dict(app["cmmd"]["score"](metric, *galleries))
    paths = [[path for path, _ in gallery] for gallery in galleries]
    result = metric.compute(predictions=paths[0], references=paths[1])
    assert rows["CMMD"] == f"{result['cmmd']:.4g}" and rows["error bound"] == f"{result['error_bound']:.4g}"
    assert (rows["generated images"], rows["real images"]) == ("9", "12") and rows["encoder"].endswith("colours")
    assert len(rows) == len(result)
    rows = dict(app["cmmd"]["score"](metric, galleries[0][:1], galleries[1]))
    assert rows["Fréchet distance"] == rows["standard error"] == "needs more images"


def test_fid_says_how_far_its_scores_can_be_trusted(app, galleries):
    pair = loaded("fid")
    table, note = app["fid"]["score"](pair, *galleries)
    rows = dict(table)
    paths = [[path for path, _ in gallery] for gallery in galleries]
    options = {"kid_subsets": 10, "kid_subset_size": 4}
    result = pair.kid.compute(predictions=paths[0], references=paths[1], **options)
    assert rows["FID"] == f"{result['frechet_distance']:.4g}" and note == ""
    assert rows["KID"] == f"{result['kid']:.4g} ± {result['kid_std']:.2g} (10 subsets of 4)"
    assert rows["resizing"] == result["preprocessing"]
    _, note = app["fid"]["score"](pair, galleries[0][:3], galleries[1])
    assert note.startswith("Note: the Frechet distance of 6 dimensions from 3 images is biased upwards")


@pytest.mark.parametrize("name", ["cmmd", "fid"])
def test_statistics_stand_for_the_real_images(app, gradio, galleries, tmp_path, name):
    metrics, file = loaded(name), str(tmp_path / "real.safetensors")
    moments, metadata = (metrics if name == "cmmd" else metrics.alone).moments([path for path, _ in galleries[1]])
    moments.save(file, metadata)
    score = app[name]["score"]
    of_images, of_moments = (score(metrics, galleries[0], *real) for real in ((galleries[1],), (None, file)))
    if name == "fid":
        of_images, of_moments = ([row for row in rows if row[0] != "KID"] for rows, _ in (of_images, of_moments))
    assert of_images == of_moments and len(of_images) >= 4
    with pytest.raises(gradio.Error, match="not both"):
        score(metrics, *galleries, file)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_without_a_number_of_images_are_shown_so(app, galleries, tmp_path, name):
    metrics, file = loaded(name), str(tmp_path / "real.npz")
    paths = [path for path, _ in galleries[1]]
    vectors = colours([Image.open(path) for path in paths]).astype(float)
    if name == "cmmd":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.savez(file, mu=vectors.mean(0), sigma=np.cov(vectors, rowvar=False))
    found = app[name]["score"](metrics, galleries[0], None, file)
    rows, notes = (found, " ".join(words for key, words in found if key == "note")) if name == "cmmd" else found
    rows = dict(rows)
    assert rows["real images"] == "the file does not say" and "is taken on trust" in notes
    if name == "cmmd":
        assert rows["CMMD, unbiased"] == rows["standard error"] == "needs the number of real images"


def test_progress_is_told_as_images_are_read(app, galleries):
    told = []
    app["cmmd"]["score"](loaded("cmmd"), *galleries, watch=lambda at, desc, unit: told.append((at, desc)))
    assert told[0] == ((0, 9), "Reading generated images") and ((11, 12), "Reading real images") in told


def test_image_quality_shows_the_scores_that_the_numbers_allow(app, galleries):
    metric = evaluate.load(str(METRICS / "image_quality"), encoder=colours)
    table, note = app["image_quality"]["score"](metric, [*galleries[0], *galleries[0][:1]], galleries[1])
    rows = dict(table)
    paths = [[path for path, _ in gallery] for gallery in galleries]
    result = metric.compute(predictions=[*paths[0], paths[0][0]], references=paths[1])
    assert rows["precision"] == f"{result['precision']:.4g} ± {result['precision_standard_error']:.2g}"
    assert rows["its digest"] == result["digest"] and "sFID" not in rows and "spatial features" in note
    table, note = app["image_quality"]["score"](metric, *galleries)
    assert "precision" not in dict(table) and note.endswith("Note: the other scores need 10 images of each.")


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("cmmd", (0, 0), "Add generated and real images first."),
        ("cmmd", (3, 0), "Add real images first."),
        ("fid", (1, 0), "Add two generated and two real images or more first."),
        ("fid", (1, 5), "Add two generated images or more first."),
        ("image_quality", (1, 5), "Add two generated images or more first."),
    ],
)
def test_empty_galleries_are_asked_to_be_filled(app, gradio, galleries, name, sizes, words):
    with pytest.raises(gradio.Error, match=words):
        app[name]["score"](
            loaded(name), *(gallery[:size] or None for gallery, size in zip(galleries, sizes, strict=True))
        )


def test_what_cannot_be_read_is_told_on_the_page(app, gradio, galleries, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    metric = evaluate.load(str(METRICS / "cmmd"), encoder=colours)
    with pytest.raises(gradio.Error, match="no.png cannot be read as an image"):
        app["cmmd"]["score"](metric, [(str(tmp_path / "no.png"), None)], galleries[1])


def test_the_first_pair_of_examples_is_of_one_distribution(gradio, tmp_path):
    core = importlib.import_module("evaluate_metrics.core.app")
    pairs = core.example_sets(tmp_path)
    assert [[len(paths) for paths in pair] for pair in pairs] == [[16, 16]] * 3
    assert len({path for pair in pairs for paths in pair for path in paths}) == 64 == len(list(tmp_path.iterdir()))

    def edges(images):
        arrays = [np.asarray(image, np.float32) / 255 for image in images]
        return np.stack([np.abs(np.diff(array, axis=0)).mean((0, 1)) for array in arrays])

    metric = evaluate.load(str(METRICS / "fid"), encoder=edges)
    same, blurred, _ = (metric.compute(predictions=a, references=b)["frechet_distance"] for a, b in pairs)
    assert 2 * same < blurred


@pytest.mark.parametrize("name", NAMES)
def test_the_published_app_scores_where_these_packages_cannot_be_imported(app, galleries, tmp_path, name):
    space = tmp_path / name
    space.mkdir()
    write_space(METRICS / name, f"user/{name}", space)
    (tmp_path / "colours.py").write_text(f"import numpy as np\n\n\n{inspect.getsource(colours)}")
    code = f"""
import json, runpy
import evaluate
from colours import colours
app = runpy.run_path({str(space / "app.py")!r})
metric = app.get("load_pair", evaluate.load)({str(space)!r}, encoder=colours)
print(json.dumps(app["PAGE"]["score"](metric, *{galleries})))
"""
    code = WITHOUT_OWN_PACKAGES + ("" if HAS_GRADIO else STAND_IN) + code
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = json.dumps(app[name]["score"](loaded(name), *galleries))
    given = done.stdout.strip().replace("colours.colours", f"{__name__}.colours")
    # The digest of a function has its module's name in it.
    assert re.sub("[0-9a-f]{16}", "", given) == re.sub("[0-9a-f]{16}", "", expected)


@pytest.mark.parametrize(("name", "outputs"), [("cmmd", 1), ("fid", 2), ("image_quality", 2)])
def test_the_page_answers(app, galleries, tmp_path, name, outputs):
    pytest.importorskip("gradio", reason="the page is built by it")
    client = pytest.importorskip("gradio_client")
    core = importlib.import_module("evaluate_metrics.core.app")
    metrics = {"one": loaded(name), "two": None}
    page = core.build_page(metrics, tmp_path, **app[name])
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True)
    try:
        sets = [[{"image": client.handle_file(path), "caption": None} for path, _ in g] for g in galleries]
        found = client.Client(url, verbose=False).predict("one", *sets, None, api_name="/score")
    finally:
        page.close()
    table, *notes = found if outputs == 2 else [found]
    assert table["headers"] == ["score", "value"] and len(table["data"]) > 4 and len(notes) == outputs - 1
