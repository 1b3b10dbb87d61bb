import hashlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import HTTPError

from hf_common.locks import LOCK
from hf_robust.noise.cifar10 import CIFAR10_CLASSES
from hf_robust.noise.human import HUMAN_CONFIGS
from hf_robust.noisy_dataset.build import CONFIGS, build_noisy_cifar10
from hf_robust.noisy_dataset.figures import MATRICES_FIGURE, RATES_FIGURE, write_figures
from hf_robust.noisy_dataset.form import TEST_FILE, TRAIN_FILE
from hf_robust.noisy_dataset.hub import publish_noisy_dataset
from hf_robust.noisy_dataset.manifest import MANIFEST
from tests import ROOT

SCRIPT = ROOT / "scripts" / "make_noisy_cifar10.py"
REPO = "user/noisy-cifar10"
ALL = (*CONFIGS, *HUMAN_CONFIGS)
SMALL = ["clean", "symmetric_40"]
NUM_TRAIN, NUM_TEST = 100, 20
ROWS = {"train": NUM_TRAIN, "test": NUM_TEST}
NEVER_ENDING = 10**9


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source"), seed=0)


@pytest.fixture(scope="module")
def human_file(source, tmp_path_factory):
    clean = pq.read_table(source / "train-00000-of-00001.parquet")["label"].to_numpy()
    columns = {"clean": clean} | {
        name: (clean + (np.arange(len(clean)) % 5 < i)) % 10 for i, name in enumerate(HUMAN_CONFIGS, 1)
    }
    path = tmp_path_factory.mktemp("human") / "human.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def built(source, human_file, tmp_path_factory):
    """Folder of the small data set, folder of the one with all configs."""
    parent = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", parent / "cache")
        build_noisy_cifar10(str(source), parent / "small", configs=SMALL)
        build_noisy_cifar10(str(source), parent / "large", human_labels=human_file)
    return parent / "small", parent / "large"


# Copies: publishing writes the name of the repository into the folder.
@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built[0], tmp_path / "noisy")


@pytest.fixture
def large_folder(built, tmp_path):
    return shutil.copytree(built[1], tmp_path / "noisy")


def write_source(folder, seed):
    rng = np.random.default_rng(seed)
    features = Features({"img": Image(), "label": ClassLabel(names=list(CIFAR10_CLASSES))})
    for split, count in ROWS.items():
        images = []
        for pixels in rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            PIL.Image.fromarray(pixels).save(buffer, "PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        content = {"img": images, "label": rng.permutation(np.arange(count) % 10).tolist()}
        Dataset.from_dict(content, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def script(monkeypatch, **arguments):
    words = []
    for name, value in arguments.items():
        words += [f"--{name}", *([] if value is True else value if isinstance(value, list) else [str(value)])]
    # Raises what it would tell in a line.
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--debug"])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def tree(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def published(hub, branch="main"):
    repo = hub.server.repo("dataset", REPO)
    files = dict(repo.find(branch).files)
    files.pop(".gitattributes", None)
    return files


def parquet(folder, config, split):
    return pq.read_table(
        folder / ("test" if split == "test" else config) / (TEST_FILE if split == "test" else TRAIN_FILE)
    )


def table_digest(table):
    rows = [(row["img"]["bytes"], row["label"], row["clean_label"]) for row in table.to_pylist()]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


# Prints the digest of every row, image bytes included, for each way to load.
LOAD = """
import hashlib, json, sys
from datasets import Image, load_dataset
def digest(data):
    data = data.cast_column("img", Image(decode=False))
    rows = [(row["img"]["bytes"], row["label"], row["clean_label"]) for row in data]
    return hashlib.sha256(repr(rows).encode()).hexdigest()
found = {}
for config in CONFIGS:
    for way, streaming in (("whole", False), ("streamed", True)):
        for split, data in load_dataset(REPO, config, streaming=streaming).items():
            found[f"{config} {split} {way}"] = digest(data)
print(json.dumps(found))
"""


def load_isolated(hub, *configs):
    return json.loads(hub.run(f"REPO, CONFIGS = {REPO!r}, {configs!r}\n{LOAD}"))


# ---------------------------------------------------------------------------------------------------------- round trip


def test_every_config_and_split_loads_whole_and_streamed_where_this_package_is_absent(hub, large_folder):
    publish_noisy_dataset(large_folder, REPO)
    expected = {
        f"{config} {split} {way}": table_digest(parquet(large_folder, config, split))
        for config in ALL
        for split in ("train", "test")
        for way in ("whole", "streamed")
    }
    assert load_isolated(hub, *ALL) == expected
    assert len(set(expected.values())) == len(ALL) + 1


def test_folder_and_repository_read_equally(hub, folder):
    publish_noisy_dataset(folder, REPO)
    for config in SMALL:
        local, remote = load_dataset(str(folder), config), load_dataset(REPO, config)
        assert list(local) == list(remote) == ["train", "test"]
        for split in local:
            assert remote[split].features == local[split].features
            assert remote[split].with_format("arrow")[:] == local[split].with_format("arrow")[:]
            for rows in (remote[split], local[split]):
                assert rows.info.splits[split].num_examples == rows.num_rows == ROWS[split]
        assert np.array_equal(np.asarray(remote["train"][7]["img"]), np.asarray(local["train"][7]["img"]))
    default = load_dataset(REPO, split="train")
    assert default["label"][:] == default["clean_label"][:]


def test_one_commit_holds_what_the_folder_holds(hub, folder):
    (folder / "notes.txt").write_text("mine")
    commit = publish_noisy_dataset(folder, REPO)
    repo = hub.server.repo("dataset", REPO)
    assert [made.message for made in repo.commits[1:]] == ["CIFAR-10 with noisy labels, 2 configs"]
    assert commit.oid == repo.head
    local = tree(folder)
    assert local.pop("notes.txt") == b"mine"
    assert published(hub) == local
    assert set(local) == {
        "README.md",
        MANIFEST,
        RATES_FIGURE,
        MATRICES_FIGURE,
        f"test/{TEST_FILE}",
        *(f"{name}/{TRAIN_FILE}" for name in SMALL),
    }


def test_card_is_valid_and_names_the_repository(hub, folder, source):
    assert 'load_dataset("USER/noisy-cifar10", "symmetric_40")' in (folder / "README.md").read_text()
    publish_noisy_dataset(folder, REPO)
    card = DatasetCard.load(REPO)
    card.validate()
    assert 'load_dataset("user/noisy-cifar10", "symmetric_40")' in card.text and "USER" not in card.text
    pictures = re.findall(r"!\[[^]]+\]\((.+?)\)", card.text)
    assert pictures == [RATES_FIGURE, MATRICES_FIGURE] and set(pictures) <= set(published(hub))
    assert "| `symmetric_40` | 100 | 40 | 40.000 |" in card.text
    command = re.search(r"```bash\n(python scripts/make_noisy_cifar10.py .*?)\n```", card.text, re.S).group(1)
    flags = f"--output_dir noisy-cifar10 --source {source.name} --seed 0 --sampling quota --configs clean symmetric_40"
    assert command.replace("\\\n   ", "").split()[2:] == flags.split()


def test_published_card_is_a_function_of_the_published_manifest(hub, folder, source):
    publish_noisy_dataset(folder, REPO)
    before = tree(folder)
    build_noisy_cifar10(str(source), folder, configs=SMALL)  # nothing left to build: all is written anew
    assert tree(folder) == before == published(hub)


def test_pictures_are_the_same_bytes_in_another_process(folder, tmp_path):
    code = (
        "import json, pathlib, sys; from hf_robust.noisy_dataset.figures import write_figures; "
        "write_figures(pathlib.Path(sys.argv[1]), json.load(open(sys.argv[2])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(folder / MANIFEST)]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, check=True)
    for name in (RATES_FIGURE, MATRICES_FIGURE):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
        assert PIL.Image.open(folder / name).width > 400
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["configs"]["symmetric_40"] |= {"rate": 0.5, "matrix": np.eye(10)[::-1].tolist()}
    write_figures(tmp_path, manifest)
    for name in (RATES_FIGURE, MATRICES_FIGURE):
        assert (tmp_path / name).read_bytes() != (folder / name).read_bytes()


def test_branch(hub, folder, source):
    publish_noisy_dataset(folder, REPO)
    main = published(hub)
    build_noisy_cifar10(str(source), folder, configs=["asymmetric_20"])
    publish_noisy_dataset(folder, REPO, revision="next")
    repo = hub.server.repo("dataset", REPO)
    assert published(hub) == main and published(hub, "next") == tree(folder)
    rows = load_dataset(REPO, "asymmetric_20", split="train", revision="next")
    assert table_digest(rows.with_format("arrow")[:]) == table_digest(parquet(folder, "asymmetric_20", "train"))
    with pytest.raises(ValueError, match="asymmetric_20"):
        load_dataset(REPO, "asymmetric_20")
    # A commit stays what it was.
    pinned = repo.head
    publish_noisy_dataset(folder, REPO)
    assert "asymmetric_20" in datasets.get_dataset_config_names(REPO)
    assert datasets.get_dataset_config_names(REPO, revision=pinned) == SMALL
    streamed = load_dataset(REPO, "clean", split="test", revision=pinned, streaming=True)
    assert sum(1 for _ in streamed) == NUM_TEST


def test_pull_request(hub, folder, source):
    publish_noisy_dataset(folder, REPO)
    main = published(hub)
    build_noisy_cifar10(str(source), folder, configs=["asymmetric_20"])
    commit = publish_noisy_dataset(folder, REPO, create_pr=True)
    assert commit.pr_revision == "refs/pr/1"
    assert published(hub) == main and published(hub, "refs/pr/1") == tree(folder)
    rows = load_dataset(REPO, "asymmetric_20", split="train", revision="refs/pr/1")
    assert table_digest(rows.with_format("arrow")[:]) == table_digest(parquet(folder, "asymmetric_20", "train"))


def test_private(hub, folder):
    publish_noisy_dataset(folder, REPO, private=True)
    assert hub.server.repo("dataset", REPO).private
    assert load_dataset(REPO, "clean", split="test").num_rows == NUM_TEST
    with pytest.raises(AssertionError, match="DatasetNotFoundError"):
        hub.run(f"from datasets import load_dataset; load_dataset({REPO!r}, 'clean')", HF_TOKEN="")
    publish_noisy_dataset(folder, REPO)  # private or not: as it is
    with pytest.raises(ValueError, match="private=False"):
        publish_noisy_dataset(folder, REPO, private=False)


# ------------------------------------------------------------------------------------------------- what is sent


def test_a_config_downloads_its_file_and_the_shared_one(hub, large_folder):
    publish_noisy_dataset(large_folder, REPO)
    load = f"from datasets import load_dataset; print(load_dataset({REPO!r}, CONFIG).num_rows)"
    hub.server.requests.clear()
    assert hub.run(f"CONFIG = 'semantic_20'\n{load}").strip() == str(ROWS)
    expected = ["README.md", f"semantic_20/{TRAIN_FILE}", f"test/{TEST_FILE}"]
    assert sorted(path for _, _, path in hub.server.downloads()) == expected
    hub.server.requests.clear()
    hub.run(f"CONFIG = 'human_worst'\n{load}")
    assert [path for _, _, path in hub.server.downloads()] == [f"human_worst/{TRAIN_FILE}"]


def test_pushing_again_sends_nothing_and_commits_nothing(hub, large_folder):
    publish_noisy_dataset(large_folder, REPO)
    assert hub.server.uploaded_bytes() == sum(map(len, tree(large_folder).values()))
    repo = hub.server.repo("dataset", REPO)
    head, commits = repo.head, len(repo.commits)
    hub.server.requests.clear()
    publish_noisy_dataset(large_folder, REPO)
    assert hub.server.uploaded_bytes() == 0
    assert (repo.head, len(repo.commits)) == (head, commits)
    assert not [r for r in hub.server.requests if r.method == "PUT" or "/commit/" in r.path]


def test_another_config_sends_its_file_and_what_tells_of_it(hub, folder, source):
    publish_noisy_dataset(folder, REPO)
    before = published(hub)
    build_noisy_cifar10(str(source), folder, configs=["semantic_33"])
    hub.server.requests.clear()
    publish_noisy_dataset(folder, REPO)
    after = published(hub)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"semantic_33/{TRAIN_FILE}", "README.md", MANIFEST, RATES_FIGURE, MATRICES_FIGURE}
    assert set(before) <= set(after)
    assert hub.server.uploaded_bytes() == sum(len(after[name]) for name in changed)


def test_script_builds_publishes_and_says_where(hub, source, tmp_path, monkeypatch, capsys):
    arguments = {"source": source, "output_dir": tmp_path / "out", "configs": SMALL, "push_to_hub": REPO}
    script(monkeypatch, **arguments, private=True, hub_token="hf_user")
    repo = hub.server.repo("dataset", REPO)
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/datasets/{REPO}/commit/{repo.head}"
    assert repo.private and published(hub) == tree(tmp_path / "out")
    script(monkeypatch, **arguments | {"configs": ["instance_20"]}, create_pr=True)
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/datasets/{REPO}/discussions/1"
    script(monkeypatch, **arguments, revision="next")
    assert published(hub, "next") == published(hub, "refs/pr/1") == tree(tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------- faults


PUSH = "from hf_robust.noisy_dataset.hub import publish_noisy_dataset; publish_noisy_dataset({folder!r}, {repo!r})"


def puts(hub):
    return [r.path for r in hub.server.requests if r.method == "PUT" and r.status == 200]


def test_a_killed_push_leaves_the_repository_and_the_next_one_goes_on(hub, folder, source):
    publish_noisy_dataset(folder, REPO)
    repo, before = hub.server.repo("dataset", REPO), published(hub)
    head = repo.head
    build_noisy_cifar10(str(source), folder, configs=["asymmetric_20", "asymmetric_30"])
    last = hashlib.sha256((folder / "asymmetric_30" / TRAIN_FILE).read_bytes()).hexdigest()
    slow = hub.server.fail("PUT", last, delay_s=3, status=500, times=NEVER_ENDING)
    hub.server.requests.clear()
    push = subprocess.Popen([sys.executable, "-c", PUSH.format(folder=str(folder), repo=REPO)], env=hub.env())
    # All but the slow one are there, which the push waits for.
    while len(puts(hub)) < 3 and push.poll() is None:
        time.sleep(0.02)
    assert push.poll() is None
    push.kill()
    push.wait()
    assert repo.head == head and published(hub) == before
    assert load_dataset(REPO, "symmetric_40").num_rows == ROWS

    slow.times = 0
    first = puts(hub)
    hub.server.requests.clear()
    publish_noisy_dataset(folder, REPO)
    assert published(hub) == tree(folder)
    assert len(first) == 3 and [path.rsplit("/", 1)[1] for path in puts(hub)] == [last]


@pytest.mark.parametrize(
    ("method", "path", "what"),
    [
        ("PUT", "/lfs/", {"status": 500}),
        ("PUT", "/lfs/", {"cut_after": 1000}),
        ("POST", "/objects/batch", {"status": 503}),
        ("POST", "/preupload/", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("POST", "/commit/", {"status": 503}),
        ("POST", "/commit/", {"cut_after": 100}),
        ("POST", "/commit/", {"after_commit": True}),
        ("HEAD", MANIFEST, {"status": 500}),
        ("GET", MANIFEST, {"cut_after": 100}),
    ],
)
def test_a_fault_that_passes_is_waited_out(hub, folder, source, monkeypatch, method, path, what):
    publish_noisy_dataset(folder, REPO)
    build_noisy_cifar10(str(source), folder, configs=["asymmetric_20"])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fault = hub.server.fail(method, path, **what)
    publish_noisy_dataset(folder, REPO)
    assert fault.times == 0
    assert published(hub) == tree(folder)
    assert len(hub.server.repo("dataset", REPO).commits) == 3


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/lfs/"), ("POST", "/objects/batch"), ("POST", "/commit/"), ("HEAD", MANIFEST)]
)
def test_a_fault_that_stays_leaves_the_repository_as_it_was(hub, folder, source, monkeypatch, method, path):
    publish_noisy_dataset(folder, REPO)
    repo, before = hub.server.repo("dataset", REPO), published(hub)
    build_noisy_cifar10(str(source), folder, configs=["asymmetric_20"])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    fault = hub.server.fail(method, path, status=503, times=NEVER_ENDING)
    with pytest.raises(ConnectionError, match=REPO):
        publish_noisy_dataset(folder, REPO)
    assert published(hub) == before and len(repo.commits) == 2
    fault.times = 0
    sent = puts(hub)
    hub.server.requests.clear()
    publish_noisy_dataset(folder, REPO)
    assert published(hub) == tree(folder) and not set(sent) & set(puts(hub))


def test_a_cut_download_is_completed_or_an_error_but_never_short(hub, folder, monkeypatch):
    publish_noisy_dataset(folder, REPO)
    expected = {split: table_digest(parquet(folder, "symmetric_40", split)) for split in ("train", "test")}
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    for streaming in (False, True):
        fault = hub.server.fail("GET", TRAIN_FILE, cut_after=0, times=NEVER_ENDING)
        with pytest.raises((HTTPError, ConnectionError)):
            list(load_dataset(REPO, "symmetric_40", split="train", streaming=streaming))
        fault.times = 0

    fault = hub.server.fail("GET", TRAIN_FILE, cut_after=5000, times=2)
    found = load_dataset(REPO, "symmetric_40")
    assert fault.times == 0
    assert {split: table_digest(rows.with_format("arrow")[:]) for split, rows in found.items()} == expected

    fault = hub.server.fail("GET", f"clean/{TRAIN_FILE}", cut_after=5000, times=1)
    streamed = load_dataset(REPO, "clean", split="train", streaming=True).cast_column("img", Image(decode=False))
    rows = [(row["img"]["bytes"], row["label"], row["clean_label"]) for row in streamed]
    assert fault.times == 0
    assert hashlib.sha256(repr(rows).encode()).hexdigest() == table_digest(parquet(folder, "clean", "train"))


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "must be of the form user/name; got 'noisy-cifar10'", {"push_to_hub": "noisy-cifar10"}),
        (ValueError, "must be of the form user/name; got ''", {"push_to_hub": ""}),
        (PermissionError, "token", {"hub_token": "hf_wrong"}),
        (PermissionError, "token of 'user' can't write", {"hub_token": "hf_read"}),
        (PermissionError, "writes to", {"push_to_hub": "other/noisy-cifar10"}),
        (ValueError, "is a model, not a dataset", {"push_to_hub": "user/model"}),
        (ValueError, "notes.txt", {"push_to_hub": "user/foreign"}),
        (ValueError, f"holds files but no {MANIFEST}", {"push_to_hub": "user/parquet"}),
        (ValueError, f"its {MANIFEST} was not written by build_noisy_cifar10", {"push_to_hub": "user/damaged"}),
        (ValueError, f"its {MANIFEST} was not written by build_noisy_cifar10", {"push_to_hub": "user/strange"}),
        (ValueError, "private=True, but dataset .* is public", {"private": True}),
        (ValueError, "seed: the published data set was built with 0, this call has 1", {"seed": 1}),
        (ValueError, "sampling: .* with 'quota', this call has 'bernoulli'", {"sampling": "bernoulli"}),
        (ValueError, "source_fingerprint: the published data set", {"source": "other"}),
        (ValueError, "configs: the published data set has clean, symmetric_40 too, .* build them as well or name"
                     " another repository", {"configs": ["asymmetric_20"]}),
        (ValueError, "configs: the published data set has symmetric_40 too", {"configs": ["clean"]}),
        (ValueError, "configs: the published .* has clean, symm", {"configs": ["semantic_10"], "revision": "new"}),
    ],
)  # fmt: skip
def test_what_would_fail_is_told_before_anything_is_built(
    hub, folder, source, tmp_path, monkeypatch, error, match, arguments
):
    publish_noisy_dataset(folder, REPO)
    train = {f"clean/{TRAIN_FILE}": b"PAR1"}
    hub.server.create_repo("model", "user/model")
    hub.server.create_repo("dataset", "user/foreign", files={"notes.txt": b"mine"})
    hub.server.create_repo("dataset", "user/parquet", files=train)
    hub.server.create_repo("dataset", "user/damaged", files=train | {MANIFEST: b"{"})
    hub.server.create_repo("dataset", "user/strange", files=train | {MANIFEST: b'{"configs": {}}'})
    heads = {name: repo.head for name, repo in hub.server.hub.repositories.items()}
    if "source" in arguments:
        (tmp_path / "other").mkdir()
        arguments = {"source": write_source(tmp_path / "other", seed=1)}
    hub.server.requests.clear()
    defaults = {"source": source, "output_dir": tmp_path / "out", "configs": SMALL, "push_to_hub": REPO}
    with pytest.raises(error, match=match):
        script(monkeypatch, **defaults | arguments)
    assert not (tmp_path / "out").exists()
    assert hub.server.uploaded_bytes() == 0
    assert {name: repo.head for name, repo in hub.server.hub.repositories.items()} == heads


def test_no_token_and_offline_mode(hub, source, tmp_path, monkeypatch):
    arguments = {"source": source, "output_dir": tmp_path / "out", "configs": SMALL, "push_to_hub": REPO}
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline"):
        script(monkeypatch, **arguments)
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(PermissionError, match="there is no token"):
        script(monkeypatch, **arguments)
    assert not (tmp_path / "out").exists() and not hub.server.hub.repositories


def test_other_human_labels_than_the_published_ones(hub, source, human_file, folder, tmp_path):
    build_noisy_cifar10(str(source), folder, configs=["human_worst"], human_labels=human_file)
    publish_noisy_dataset(folder, REPO)
    columns = pq.read_table(human_file)
    columns = {name: columns["clean"] if name == "human_worst" else columns[name] for name in columns.column_names}
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")
    manifest = json.loads(published(hub)[MANIFEST])
    with pytest.raises(ValueError, match="human_labels: the published data set has human_worst from other labels"):
        build_noisy_cifar10(
            str(source),
            tmp_path / "out",
            configs=[*SMALL, "human_worst"],
            human_labels=tmp_path / "other.parquet",
            published=manifest,
        )
    assert not (tmp_path / "out").exists()


def test_options_without_a_repository(tmp_path, monkeypatch):
    for options in ({"private": True}, {"revision": "v1"}, {"create_pr": True}, {"hub_token": "hf_user"}):
        with pytest.raises(ValueError, match="need push_to_hub"):
            script(monkeypatch, output_dir=tmp_path / "out", **options)


def test_publishing_checks_the_folder_and_the_repository_by_itself(hub, folder, source, tmp_path):
    publish_noisy_dataset(folder, REPO)
    before = published(hub)
    build_noisy_cifar10(str(source), tmp_path / "other", configs=["clean"])
    with pytest.raises(ValueError, match="configs: the published data set has symmetric_40 too"):
        publish_noisy_dataset(tmp_path / "other", REPO)
    (folder / RATES_FIGURE).unlink()
    with pytest.raises(ValueError, match=f"folder: .* lacks {RATES_FIGURE}; build it to the end first"):
        publish_noisy_dataset(folder, REPO)
    with pytest.raises(ValueError, match=f"has no {MANIFEST}"):
        publish_noisy_dataset(source, REPO)
    path = tmp_path / "other" / MANIFEST
    manifest = json.loads(path.read_text())
    for key, empty in (("test", None), ("configs", {})):
        path.write_text(json.dumps(manifest | {key: empty}))
        with pytest.raises(ValueError, match=f"other' lacks {key} in its {MANIFEST}; build it to the end first"):
            publish_noisy_dataset(tmp_path / "other", REPO)
    assert published(hub) == before


def test_a_config_that_the_manifest_does_not_know_is_not_deleted(hub, folder):
    publish_noisy_dataset(folder, REPO)
    path = f"mine/{TRAIN_FILE}"
    HfApi().upload_file(path_or_fileobj=b"PAR1", path_in_repo=path, repo_id=REPO, repo_type="dataset")
    with pytest.raises(ValueError, match=f"holds files that are no part.*{path}"):
        publish_noisy_dataset(folder, REPO)
    assert published(hub)[path] == b"PAR1"
