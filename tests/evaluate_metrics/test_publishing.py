import ast
import importlib.util
import json
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from evaluate.utils.file_utils import DownloadConfig
from packaging.requirements import Requirement
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_common import hub as hub_module
from hf_common.bundle import imports_packages
from tests import ROOT

METRICS = ROOT / "evaluate_metrics"
pytestmark = pytest.mark.filterwarnings("ignore:the Frechet distance of:UserWarning")
CLIP = "openai/clip-vit-large-patch14-336"
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
# Runs first in a process that shall have the packages below a folder and the standard library alone.
ONLY = "import sys\nsys.path[:] = [p for p in sys.path if 'site-packages' not in p] + [{!r}]\n"
SCORES = """
import json
import evaluate
paths, calls = json.loads({!r})
print(json.dumps([evaluate.load(*names, **options).compute(**paths) for names, options in calls]))
for name in ("accelerate", "diffusers", "sklearn", "hf_common", "hf_robust", "evaluate_metrics"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        print(name)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(hub_module, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)  # a request to another server


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("evaluate_metrics.commands.publish")


@pytest.fixture
def publish(script, monkeypatch, capsys):
    """Calls the script; what it prints, or its one error as a `SystemExit` of that message."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["publish_metric.py", *map(str, arguments)])
        try:
            script.main()
        except SystemExit as stop:
            assert stop.code == 2
            raise SystemExit(capsys.readouterr().err.split("error: ", 1)[1].strip()) from stop
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(hub, publish):
    """Calls the script, which must fail with these words and send nothing."""

    def call(words, *arguments):
        hub.server.requests.clear()
        with pytest.raises(SystemExit, match=words):
            publish(*arguments)
        assert {request.method for request in hub.server.requests} <= {"GET", "HEAD"}

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny CLIP and of a tiny ViT with random weights."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**TINY, projection_dim=6)).save_pretrained(place / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 28}).save_pretrained(place / "clip")
    ViTModel(ViTConfig(**TINY)).save_pretrained(place / "vit")
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(place / "vit")
    return place


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    place, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [str(place / f"{i}.png") for i in range(16)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).resize((50, 40)).save(path)
    return {"predictions": paths[:7], "references": paths[7:]}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def copied(name, place):
    return shutil.copytree(METRICS / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))


def toy(place, name="toy", **files):
    """The smallest metric that can be published; `files` replace its own, by stem."""
    folder = place / name
    folder.mkdir()
    card = "---\ntitle: Toy\nsdk: gradio\napp_file: app.py\ntags:\n- evaluate\n- metric\n---\n"
    metric = """
import datasets
import evaluate

from .half import half


class Toy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float32")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions):
        return {"half": half(sum(predictions))}
"""
    texts = {
        f"{name}.py": metric,
        "half.py": "def half(x):\n    return x / 2\n",
        "app.py": "import gradio\n",
        "README.md": card,
        "requirements.txt": "datasets\nevaluate>=0.4\ngradio\n",
    }
    endings = {Path(path).stem: path for path in texts}
    texts |= {endings.get(stem, f"{stem}.py"): text for stem, text in files.items()}
    for path, text in texts.items():
        (folder / path).write_text(text)
    return folder


OF_OURS = """
import datasets
import evaluate

from evaluate_metrics.core.moments import Moments

from .half import half


class Toy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float32")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions):
        from hf_common.tables import markdown_table

        return {"half": half(sum(predictions)), "table": markdown_table([str(Moments.zeros(2).n)], [])}
"""


def linked_packages(place, names):
    """A folder with links to these packages and all that they require, and to nothing else."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of an extra or another platform
            continue
        for part in {path.parts[0] for path in package.files if path.parts[0] not in ("..", "__pycache__")}:
            if not (place / part).exists():
                (place / part).symlink_to(package.locate_file(part))
        waiting += [
            requirement.name
            for requirement in map(Requirement, package.requires or ())
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        ]
    return place


def test_both_metrics_load_where_nothing_but_their_requirements_is(hub, publish, models, sets, tmp_path):
    hub.server.create_repo("model", CLIP, files=contents(models / "clip"))
    for name in ("cmmd", "fid"):
        printed = publish(METRICS / name, f"user/{name}")
        assert printed == f"{hub.url}/spaces/user/{name}\nevaluate.load('user/{name}')\n"
        space = hub.server.repo("space", f"user/{name}")
        local = contents(METRICS / name)
        assert space.sdk == "gradio" and space.files.keys() - {".gitattributes"} == local.keys()
        assert space.files["requirements.txt"] == local["requirements.txt"]
        card, metric, app = (space.files[path].decode() for path in ("README.md", f"{name}.py", "app.py"))
        # The id in their examples.
        for text in (card, metric):
            assert f'evaluate.load("user/{name}"' in text and "evaluate_metrics/" not in text
        assert card.replace('"user/', '"evaluate_metrics/') == local["README.md"].decode()
        # What they import of these packages is in them; they end as before.
        for path, text in ((f"{name}.py", metric), ("app.py", app)):
            lines, imports = local[path].decode().splitlines(), (ast.Import, ast.ImportFrom)
            end = max(node.end_lineno for node in ast.parse(local[path]).body if isinstance(node, imports))
            text = text.replace('"user/', '"evaluate_metrics/')
            assert text.splitlines()[end - len(lines) :] == lines[end:] and not imports_packages(ast.parse(text))
        assert len(space.commits) == 2  # making it, and all files

    calls = [(["cmmd", "clip"], {}), (["fid", "clean"], {"encoder": str(models / "vit")})]
    local, published = (
        [([f"{owner}/{name}", config], options) for (name, config), options in calls] for owner in (METRICS, "user")
    )
    packages = linked_packages(tmp_path, ["evaluate", "torch", "transformers", "pillow"])
    hub.server.requests.clear()
    code = ONLY.format(str(packages)) + SCORES.format(json.dumps([sets, published]))
    found, *missing = hub.run(code, HF_UPDATE_DOWNLOAD_COUNTS="0").splitlines()
    assert missing == ["accelerate", "diffusers", "sklearn", "hf_common", "hf_robust", "evaluate_metrics"]
    for result, (names, options) in zip(json.loads(found), local, strict=True):
        expected = evaluate.load(*names, **options).compute(**sets)
        assert result == {
            key: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            for key, value in expected.items()
        }
    assert json.loads(found)[0]["encoder"] == CLIP and json.loads(found)[0]["cmmd"] > 0
    assert json.loads(found)[1]["frechet_distance"] > 0
    for name in ("cmmd", "fid"):
        sent = {path for *repo, path in hub.server.downloads() if repo == ["space", f"user/{name}"]}
        assert sent == {f"{name}.py"}


def test_a_second_publish_sends_nothing_and_a_new_version_only_what_changed(hub, publish, tmp_path):
    folder = copied("cmmd", tmp_path)
    publish(folder, "user/cmmd")
    space = hub.server.repo("space", "user/cmmd")
    head = space.head
    hub.server.requests.clear()
    publish(folder, "user/cmmd")
    assert hub.server.uploaded_bytes() == 0 and space.head == head
    # A file beside the app, then renamed, in it and where it is imported.
    app = (folder / "app.py").read_text()
    for commits, name in ((3, "words"), (4, "texts")):
        (folder / "app.py").write_text(
            app.replace("import evaluate\n", f"import evaluate\n\nfrom {name} import TITLE\n")
        )
        (folder / f"{name}.py").write_text('TITLE = "CMMD"\n')
        hub.server.requests.clear()
        publish(folder, "user/cmmd")
        assert f"{name}.py" in space.files and f"from {name} import TITLE" in space.files["app.py"].decode()
        assert len(space.commits) == commits
        assert hub.server.uploaded_bytes() < 30_000 < sum(map(len, space.files.values()))
        (folder / f"{name}.py").unlink()
    assert "words.py" not in space.files


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "POST", "path_regex": "/commit/", "status": 500},
        {"method": "POST", "path_regex": "/commit/", "status": 429, "headers": {"Retry-After": "0"}},
        {"method": "POST", "path_regex": "/commit/", "cut_after": 1000},
    ],
    ids=lambda fault: str(fault.get("status", "cut")),
)
def test_a_failing_push_is_tried_again_and_finished_by_another_run(hub, publish, tmp_path, fault):
    folder = toy(tmp_path)
    hub.server.fail(**fault, times=50)
    with pytest.raises(SystemExit, match=r"the upload to space 'user/toy' failed 3 times"):
        publish(folder, "user/toy")
    space = hub.server.repo("space", "user/toy")
    assert space.files.keys() == {"README.md", ".gitattributes"}
    hub.server.faults.clear()
    hub.server.fail(**fault)
    publish(folder, "user/toy")
    assert space.files.keys() - {".gitattributes"} == contents(folder).keys()
    assert evaluate.load("user/toy").compute(predictions=[1.0, 2.0]) == {"half": 1.5}


def test_a_private_space_needs_a_token(hub, publish, tmp_path, monkeypatch):
    folder = toy(tmp_path)
    publish(folder, "user/toy", "--private", "--hub_token", "hf_user")
    assert hub.server.repo("space", "user/toy").private
    with_token = DownloadConfig(token="hf_user")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(FileNotFoundError, match="user/toy"):
        evaluate.load("user/toy")
    assert evaluate.load("user/toy", download_config=with_token).compute(predictions=[3.0]) == {"half": 1.5}
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    assert evaluate.load("user/toy").compute(predictions=[3.0]) == {"half": 1.5}


def test_a_branch_and_a_pull_request_are_loaded_by_name(hub, publish, tmp_path):
    publish(toy(tmp_path), "user/toy")
    space, version = hub.server.repo("space", "user/toy"), f"v{evaluate.__version__}"
    main = space.head
    for half, arguments in (("x / 3", ["--revision", "thirds"]), ("x / 4", ["--create_pr"])):
        (tmp_path / "toy" / "half.py").write_text(f"def half(x):\n    return {half}\n")
        printed = publish(tmp_path / "toy", "user/toy", *arguments).splitlines()
        revision = "refs/pr/1" if arguments == ["--create_pr"] else "thirds"
        assert printed[1] == f"evaluate.load('user/toy', revision='{revision}')"
        assert space.head == main and revision in space.branches
        expected = {"half": pytest.approx(12 / int(half[-1]))}
        assert evaluate.load("user/toy", revision=revision).compute(predictions=[12.0]) == expected
    assert printed[0] == f"{hub.url}/spaces/user/toy/discussions/1"
    assert evaluate.load("user/toy").compute(predictions=[12.0]) == {"half": 6.0}
    publish(tmp_path / "toy", "user/toy", "--revision", version)  # which evaluate takes before main
    assert evaluate.load("user/toy").compute(predictions=[12.0]) == {"half": 3.0}


METRIC = "import evaluate\n\n{}\n\nclass Toy(evaluate.Metric):\n    pass\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"README": "# Toy"}, "README.md must have a title, sdk: gradio and the tags"),
        ({"README": "---\n- a\n---\n"}, "README.md must be the card of a Space: .* should be a dict"),
        ({"README": "---\na: [\n---\n"}, "README.md must be the card of a Space"),
        (
            {"README": "---\ntitle: T\nsdk: gradio\ntags: [evaluate, metric]\napp_file: a.py\n---\n"},
            "app_file; got 'a.py'",
        ),
        ({"README": "---\ntitle: T\nsdk: docker\ntags: [evaluate, metric]\n---\n"}, "sdk: gradio .* 'docker'"),
        ({"README": "---\ntitle: T\nsdk: gradio\ntags: metric\n---\n"}, "'tags': 'metric'"),
        ({"requirements": "datasets\nevaluate\n"}, r"app.py, line 1: gradio is imported, and .* none of \['gradio'\]"),
        ({"requirements": "git+https://a.b/evaluate\n"}, "requirements.txt must have lines such as"),
        ({"app": "import gradio, hf_robust\n"}, "app.py, line 1: hf_robust is imported"),
        (
            {"half": "def half(x):\n    from evaluate_metrics import y\n"},
            "line 2: evaluate_metrics is imported",
        ),
        ({"app": "from .half import half\n"}, "app.py, line 1: a relative import in a file that toy.py does not"),
        (
            {"half": "from .other import y\n", "other": "y = 1\n"},
            "line 1: evaluate copies .* other.py is not",
        ),
        ({"half": "from ..toy import y\n"}, "half.py, line 1: a relative import must be of the form"),
        ({"half": "from .a.b import y\n"}, "half.py, line 1: a relative import must be of the form"),
        ({"half": "from . import toy\n"}, "half.py, line 1: a relative import must be of the form"),
        ({"half": "import other\n", "other": "y = 1\n"}, r"none of \['other'\]; or write `from .other import ...`"),
        ({"toy": METRIC.format("import json, math")}, "toy.py, line 3: evaluate reads one module .* got json, math"),
        ({"toy": METRIC.format("from .half import half  # ours")}, "line 3: evaluate copies .* half.py is not"),
        ({"toy": METRIC.format("if evaluate:\n    from .half import half")}, "line 4: evaluate copies"),
        ({"toy": METRIC.format("from .app import x"), "app": "x = 1\n"}, "toy.py imports the app, app.py"),
        (
            {"toy": METRIC.format("from evaluate import Metric")},
            "its own evaluate.Metric; got evaluate.module",
        ),
        ({"toy": "import evaluate\n"}, "must be its own evaluate.Metric; got None"),
        ({"toy": METRIC.format("print(1 / 0)")}, "toy.py can't be imported by evaluate: ZeroDivisionError"),
        ({"toy": "def"}, "toy.py is no Python: invalid syntax"),
    ],
)
def test_a_folder_that_would_not_work_elsewhere_is_refused(refused, tmp_path, files, words):
    refused(words, toy(tmp_path, **files), "user/toy")


def test_what_a_metric_imports_of_these_packages_is_in_its_file(hub, publish, refused, tmp_path):
    needed = "datasets\nevaluate>=0.4\ngradio\nnumpy\ntorch\n"
    folder = toy(tmp_path, toy=OF_OURS, requirements=needed)
    refused("toy.py, line .*: safetensors is imported, and requirements.txt lists none of", folder, "user/toy")
    (folder / "requirements.txt").write_text(f"{needed}safetensors\n")
    publish(folder, "user/toy")
    files = hub.server.repo("space", "user/toy").files
    local = contents(folder)
    assert {path for path in local if files[path] != local[path]} == {"toy.py"}
    assert not imports_packages(ast.parse(files["toy.py"])) and b"\nfrom .half import half\n" in files["toy.py"]
    scored = hub.run("import evaluate\nprint(evaluate.load('user/toy').compute(predictions=[3.0]))")
    assert scored == "{'half': 1.5, 'table': '| 0 |\\n| --- |'}\n"
    # Where they are installed beside it, it is published as it is.
    (folder / "requirements.txt").write_text("datasets\nevaluate>=0.4\ngradio\nHF_robust.DiT\n")
    publish(folder, "user/toy")
    assert hub.server.repo("space", "user/toy").files["toy.py"] == local["toy.py"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "from evaluate_metrics.core import moments",
            "toy.py, line 2: moments does not stand in evaluate_metrics.core",
        ),
        ("from evaluate_metrics.nowhere import x", "there is no module evaluate_metrics.nowhere"),
        ("from evaluate_metrics.core.moments import *", "toy.py, line 2: must be of the form"),
        (
            "from hf_common.files import sync\nsync = [1]",
            "sync means one thing in toy.py and another in one of hf_common",
        ),
    ],
)
def test_what_can_not_be_one_file_is_refused(refused, tmp_path, line, words):
    folder = toy(tmp_path, toy=f"import evaluate\n{line}\n\n\nclass Toy(evaluate.Metric):\n    pass\n")
    refused(f"toy.py can't be made one file with what it imports: .*{words}", folder, "user/toy")


def test_a_class_of_these_packages_is_not_taken_for_the_metrics_own(refused, tmp_path):
    metric = "import evaluate\n\nfrom evaluate_metrics.fid.fid import FID\n\n\nclass Toy(FID):\n    pass\n"
    requirements = (METRICS / "fid" / "requirements.txt").read_text()
    folder = toy(tmp_path, toy=metric, requirements=requirements)
    refused("must be its own evaluate.Metric; got evaluate_metrics.fid.fid.FID", folder, "user/toy")


def test_what_is_not_published_may_not_be_needed(refused, publish, tmp_path):
    folder = toy(tmp_path)
    (folder / "table.json").write_text("{}")
    refused(r"holds what is not published, .*: \['table.json'\]", folder, "user/toy")
    (folder / "table.json").unlink()
    (folder / "requirements.txt").rename(tmp_path / "requirements.txt")
    refused("lacks requirements.txt", folder, "user/toy")
    (tmp_path / "requirements.txt").rename(folder / "requirements.txt")
    (folder / "README.md").rename(folder / ".README.md")
    refused("README.md must be the card of a Space: .*No such file", folder, "user/toy")


def test_names_that_evaluate_would_not_find_are_refused(refused, tmp_path):
    folder = toy(tmp_path)
    for repo_id in ("toy", "user/my-toy", "us.er/toy", "user/toy.py", "a/b/toy", "user/"):
        refused(f"repo_id must be user/name, .* got '{repo_id}'", folder, repo_id)
    refused("repo_id='user/joy' needs a folder joy with joy.py in it", folder, "user/joy")
    refused("needs a folder toy with toy.py in it", tmp_path / "nowhere" / "toy", "user/toy")
    shutil.copyfile(folder / "toy.py", folder / "joy.py")
    refused("repo_id='user/joy' needs a folder joy with joy.py in it", folder, "user/joy")
    (folder / "toy.py").unlink()
    refused("needs a folder toy with toy.py in it", folder, "user/toy")
    (folder / "joy.py").rename(folder / "toy.py")
    for revision in ("a/b", "1.2.3"):
        refused(f"revision='{revision}' can't be loaded", folder, "user/toy", "--revision", revision)


def test_a_push_that_the_hub_would_refuse_is_refused_first(hub, refused, tmp_path, monkeypatch):
    folder = toy(tmp_path)
    server = hub.server
    refused("the token of 'user' can't write", folder, "user/toy", "--hub_token", "hf_read")
    refused("writes to .*'user'.* alone", folder, "another/toy")
    server.create_repo("space", "user/toy", files={"README.md": b"", "app.py": b"import gradio\n"})
    refused("is another Space, which holds .* and no toy.py", folder, "user/toy")
    server.create_repo("dataset", "user/joy")
    refused("is a dataset, not a space", toy(tmp_path, "joy"), "user/joy")
    server.create_repo("space", "user/boy", files={"boy.py": b"", "weights.bin": b""})
    refused("holds files that are no part of this kind of space: weights.bin", toy(tmp_path, "boy"), "user/boy")
    server.create_repo("space", "user/coy")
    refused("private=True, but space 'user/coy' is public", toy(tmp_path, "coy"), "user/coy", "--private")
