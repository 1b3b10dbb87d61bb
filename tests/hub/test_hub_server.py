"""The loopback Hub of `tests/hub` behaves as the real clients expect, and breaks as it is told."""

import hashlib
import os
import time
from pathlib import Path

import datasets
import evaluate
import huggingface_hub
import pytest
import requests
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    HfFileSystem,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModel, BertConfig, BertModel

from tests.hub.client import pointed_at
from tests.hub.server import HubServer

WEIGHTS = bytes(range(256)) * 100
CARD = b"---\nsdk: gradio\ntags: [a]\n---\n# Title\n"
FILES = {"a/weights.safetensors": WEIGHTS, "config.json": b'{"a": 1}\n', "README.md": CARD}


def write(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def read(folder):
    folder = Path(folder)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def add(path, content=b"new"):
    return CommitOperationAdd(path, content)


# --- huggingface_hub


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_a_folder_goes_up_and_comes_down(hub, tmp_path, repo_type):
    api, where = HfApi(), {"repo_id": "user/x", "repo_type": repo_type}
    api.create_repo(**where, space_sdk="gradio" if repo_type == "space" else None)
    info = api.upload_folder(folder_path=write(tmp_path, FILES), **where)
    repo = hub.server.repo(repo_type, "user/x")
    assert info.oid == repo.head and len(repo.commits) == 2
    assert repo.files == FILES | {".gitattributes": repo.files[".gitattributes"]}
    assert hub.server.uploaded_bytes() == sum(map(len, FILES.values()))

    folder = snapshot_download(**where)
    assert folder.startswith(str(hub.home)) and folder.endswith(repo.head) and read(folder) == repo.files
    assert sorted(hub.server.downloads()) == sorted((repo_type, "user/x", path) for path in repo.files)
    assert Path(hf_hub_download(filename="config.json", **where)).read_bytes() == FILES["config.json"]
    assert len(hub.server.downloads()) == len(repo.files)  # from the cache

    hub.server.requests.clear()
    assert api.upload_folder(folder_path=tmp_path, **where).oid == info.oid
    assert hub.server.uploaded_bytes() == 0 and len(repo.commits) == 2


def test_the_tree_tells_what_git_would(hub):
    hub.server.create_repo("model", "user/x", files={"hello": b"hello\n", "empty": b"", "b/c/w.bin": WEIGHTS})
    tree = {entry.path: entry for entry in HfApi().list_repo_tree("user/x", recursive=True, expand=True)}
    assert sorted(tree) == ["b", "b/c", "b/c/w.bin", "empty", "hello"]
    # From `git hash-object`.
    assert tree["hello"].blob_id == "ce013625030ba8dba906f756967f9e9ca394464a" and tree["hello"].lfs is None
    assert tree["empty"].blob_id == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391" and tree["empty"].size == 0
    assert (tree["b/c/w.bin"].size, tree["b/c/w.bin"].lfs.size) == (25600, 25600)
    assert tree["b/c/w.bin"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert tree["b"].last_commit.title == "initial commit"
    assert [entry.path for entry in HfApi().list_repo_tree("user/x")] == ["b", "empty", "hello"]
    assert [entry.path for entry in HfApi().list_repo_tree("user/x", "b/c")] == ["b/c/w.bin"]
    assert [entry.path for entry in HfApi().get_paths_info("user/x", ["hello", "b/c", "no"])] == ["hello", "b/c"]
    with pytest.raises(EntryNotFoundError):
        list(HfApi().list_repo_tree("user/x", "no"))


def test_a_long_tree_comes_in_pages(hub):
    files = {f"{i:03}.txt": b"%d" % i for i in range(120)}
    hub.server.create_repo("dataset", "user/x", files=files)
    tree = HfApi().list_repo_tree("user/x", repo_type="dataset", expand=True)
    assert [entry.path for entry in tree] == list(files)
    assert [request.path.split("/")[-2] for request in hub.server.requests] == ["tree"] * 3


def test_small_and_large_text_and_binary_files(hub):
    where = {"repo_id": "user/x", "repo_type": "dataset"}
    HfApi().create_repo(**where)
    operations = [
        CommitOperationAdd(path, content)
        for path, content in {
            "text": b"a",
            "empty.bin": b"",
            "binary": b"a\0b",
            "name.parquet": b"a",
            "large": b"a" * (10 * 1024 * 1024 + 1),
        }.items()
    ]
    HfApi().create_commit(operations=operations, commit_message="all kinds", **where)
    tree = HfApi().list_repo_tree(**where)
    assert {entry.path for entry in tree if entry.lfs} == {"binary", "name.parquet", "large"}


def test_parts_of_a_file(hub):
    hub.server.create_repo("dataset", "user/x", files={"a b/w.bin": WEIGHTS})
    path = "datasets/user/x/a b/w.bin"
    fs = HfFileSystem()
    assert fs.cat_file(path, start=300, end=700) == WEIGHTS[300:700]
    assert fs.cat_file(path, start=-10) == WEIGHTS[-10:]
    with fs.open(path, block_size=1000) as file:
        file.seek(25_000)
        assert file.read(10_000) == WEIGHTS[25_000:]
    url = f"{hub.url}/datasets/user/x/resolve/main/a%20b/w.bin"
    answer = requests.get(url, headers={"Range": "bytes=-256"})
    assert (answer.status_code, answer.content) == (206, WEIGHTS[-256:])
    assert answer.headers["Content-Range"] == "bytes 25344-25599/25600"
    assert requests.get(url, headers={"Range": "bytes=25600-"}).status_code == 416
    answer = requests.head(url)
    assert (answer.headers["Content-Length"], answer.content) == ("25600", b"")
    assert answer.headers["ETag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert answer.headers["X-Repo-Commit"] == hub.server.repo("dataset", "user/x").head


def test_branches_and_pull_requests(hub):
    api = HfApi()
    api.create_repo("user/x")
    repo = hub.server.repo("model", "user/x")
    first = repo.head
    api.create_branch("user/x", branch="dev")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("user/x", branch="dev")
    api.create_branch("user/x", branch="dev", exist_ok=True)
    with pytest.raises(BadRequestError):
        api.create_branch("user/x", branch="refs/pr/7")
    api.create_commit("user/x", [add("a")], commit_message="on dev", revision="dev")
    request = api.create_commit("user/x", [add("b")], commit_message="suggested", create_pr=True)
    assert request.pr_revision == "refs/pr/1" and repo.head == first
    refs = api.list_repo_refs("user/x", include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["main", "dev"]
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", request.oid)]
    listed = {revision: api.list_repo_files("user/x", revision=revision) for revision in ("dev", "refs/pr/1", first)}
    assert listed == {
        "dev": [".gitattributes", "a"],
        "refs/pr/1": [".gitattributes", "b"],
        first: [".gitattributes"],
    }
    assert Path(hf_hub_download("user/x", "b", revision="refs/pr/1")).read_bytes() == b"new"
    assert [commit.title for commit in api.list_repo_commits("user/x", revision="dev")] == ["on dev", "initial commit"]
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("user/x", revision="no")
    with pytest.raises(RevisionNotFoundError):
        api.create_commit("user/x", [add("c")], commit_message="nowhere", revision="no")


def test_commits_change_and_delete(hub):
    repo = hub.server.create_repo("model", "user/x", files={"a": b"1", "d/b": b"2", "d/c": b"3", "e.bin": WEIGHTS})
    api, first = HfApi(), repo.head
    api.create_commit("user/x", [add("a"), CommitOperationDelete("d/")], commit_message="1", parent_commit=first)
    assert repo.files == {"a": b"new", "e.bin": WEIGHTS}
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("user/x", [add("a", b"x")], commit_message="2", parent_commit=first)
    with pytest.raises(EntryNotFoundError):
        api.create_commit("user/x", [add("a", b"x"), CommitOperationDelete("no")], commit_message="2")
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit("user/x", [add("a", b"x"), add("README.md", b"---\na: [\n---\n")], commit_message="2")
    assert len(repo.commits) == 2 and repo.files["a"] == b"new"
    assert [commit.files["a"] for commit in repo.commits] == [b"1", b"new"]


def test_who_may_read_and_write(hub):
    server = hub.server
    server.add_user("other", token="hf_other", orgs=("team",))
    server.add_user("user", token="hf_fine", role="fineGrained", scopes=("repo.write",))
    server.create_repo("model", "user/open", files={"a": b"1"})
    server.create_repo("model", "user/secret", files={"a": b"1"}, private=True)

    assert HfApi().whoami()["auth"]["accessToken"]["role"] == "write"
    assert HfApi(token="hf_read").whoami()["auth"]["accessToken"]["role"] == "read"
    assert [org["name"] for org in HfApi(token="hf_other").whoami()["orgs"]] == ["team"]
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="hf_wrong").whoami()

    for token in ("hf_user", "hf_read", "hf_fine"):
        assert HfApi(token=token).model_info("user/secret").private
    for token in ("hf_other", False):
        assert HfApi(token=token).list_repo_files("user/open") == ["a"]
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("user/secret")
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("user/secret", "a", token=token)
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("user/none")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").model_info("user/open")

    def push(token, **where):
        HfApi(token=token).create_commit("user/open", [add("a"), add("b.bin")], commit_message="new", **where)

    for token in ("hf_read", "hf_other"):
        with pytest.raises(HfHubHTTPError, match="403"):
            push(token)
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi(token=token).create_repo("user/new")
    with pytest.raises(HfHubHTTPError, match="401"):
        push(False)
    assert len(server.repo("model", "user/open").commits) == 1 and server.uploaded_bytes() == 0
    push("hf_other", create_pr=True)
    push("hf_fine")
    assert server.repo("model", "user/open").files == {"a": b"new", "b.bin": b"new"}
    HfApi(token="hf_other").create_repo("team/x", repo_type="dataset", private=True)
    assert server.repo("dataset", "team/x").private
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi(token="hf_other").create_repo("team/x", repo_type="dataset")
    HfApi(token="hf_other").create_repo("team/x", repo_type="dataset", exist_ok=True)


def test_cards_are_checked(hub):
    good = "---\nlicense: mit\ntags: [a]\nmodel-index:\n- name: m\n  results:\n"
    good += "  - task: {type: image-classification}\n    dataset: {name: d, type: user/d}\n"
    good += "    metrics: [{type: accuracy, value: 0.5}]\n---\n# Title\n"
    ModelCard(good).validate()
    hub.server.create_repo("model", "user/x", files={"README.md": good.encode()})
    for old, new, message in (
        ("license: mit", "license: none-such", "license"),
        ("tags: [a]", "tags: {a: 1}", "tags"),
        ("tags: [a]", "tags: [a", "YAML"),
        ("name: d, ", "", "dataset.name"),
        (", value: 0.5", "", "value"),
    ):
        bad = add("README.md", good.replace(old, new).encode())
        with pytest.raises(ValueError, match=message):
            HfApi().create_commit("user/x", [bad], commit_message="bad")
    assert not [request for request in hub.server.requests if "/commit/" in request.path]
    DatasetCard("---\nlicense: cc-by-nc-4.0\nconfigs: [{config_name: a, data_files: x}]\n---\n").validate()
    with pytest.raises(ValueError, match="config_name"):
        DatasetCard("---\nconfigs: [{data_files: x}]\n---\n").validate()
    info = HfApi().model_info("user/x", files_metadata=True)
    assert info.card_data.license == "mit" and info.card_data.eval_results[0].metric_value == 0.5
    assert [(file.rfilename, file.size) for file in info.siblings] == [("README.md", len(good))]


# --- the libraries above it


def test_data_set(hub):
    rows = {name: Dataset.from_dict({"x": [i, i + 1], "y": ["a", "b"]}) for i, name in enumerate(("one", "two"))}
    for name, data in rows.items():
        data.push_to_hub("user/d", name, private=True)
    repo = hub.server.repo("dataset", "user/d")
    shard = "train-00000-of-00001.parquet"
    assert set(repo.files) == {"README.md", ".gitattributes", f"one/{shard}", f"two/{shard}"} and repo.private
    hub.server.requests.clear()
    assert load_dataset("user/d", "two", split="train").to_list() == rows["two"].to_list()
    assert {file for _, _, file in hub.server.downloads()} == {"README.md", f"two/{shard}"}
    assert list(load_dataset("user/d", "one", split="train", streaming=True)) == rows["one"].to_list()
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        load_dataset("user/none")


def test_model(hub):
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=10, max_position_embeddings=8, **size)).eval()
    model.push_to_hub("user/m", private=True)
    assert {"config.json", "model.safetensors"} < set(hub.server.repo("model", "user/m").files)
    loaded = AutoModel.from_pretrained("user/m").eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)


METRIC = b"""
import datasets
import evaluate


class Same(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"same": sum(p == r for p, r in zip(predictions, references))}
"""


def test_metric(hub):
    hub.server.create_repo("space", "user/same", files={"same.py": METRIC})
    metric = evaluate.load("user/same")
    assert metric.compute(predictions=[1, 2, 3], references=[1, 0, 3]) == {"same": 2}


# --- the fixture


def test_a_fresh_process_has_the_hub_and_not_this_repository(hub):
    hub.server.create_repo("model", "user/x", files={"a": b"hello"})
    code = "from huggingface_hub import hf_hub_download\nprint(open(hf_hub_download('user/x', 'a')).read())"
    assert hub.run(code) == "hello\n"
    assert hub.server.downloads() == [("model", "user/x", "a")]
    for package in ("hf_common", "hf_robust", "hf_dit", "evaluate_metrics", "model_cards", "hf_robust.noise"):
        with pytest.raises(AssertionError, match=f"ModuleNotFoundError: No module named '{package.split('.')[0]}"):
            hub.run(f"import {package}")
    assert hub.run("import hf_robust, os\nprint(os.environ['A'])", isolated=False, A="b") == "b\n"


def test_the_libraries_are_put_back(tmp_path):
    def state():
        constants = huggingface_hub.constants
        return {
            "endpoints": (constants.ENDPOINT, datasets.config.HF_ENDPOINT, evaluate.config.HUB_EVALUATE_URL),
            "homes": (constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, evaluate.config.HF_METRICS_CACHE),
            "offline": (huggingface_hub.is_offline_mode(), datasets.config.HF_HUB_OFFLINE),
            "client": huggingface_hub.hf_api.api.endpoint,
            "environment": {name: value for name, value in os.environ.items() if name.startswith("HF_")},
        }

    before = state()
    assert before["offline"] == (True, True)
    with pointed_at("http://127.0.0.1:1", tmp_path):
        inside = state()
    assert inside["endpoints"][:2] == ("http://127.0.0.1:1",) * 2 and inside["offline"] == (False, False)
    assert all(str(folder).startswith(str(tmp_path)) for folder in inside["homes"])
    assert inside["client"] == "http://127.0.0.1:1"
    assert state() == before


def test_each_test_has_its_own(hub):
    assert hub.server.hub.repositories == {} and not hub.home.exists()
    other = HubServer()
    other.add_user("user", token="hf_user")
    HfApi(endpoint=other.url).create_repo("user/x")
    assert HfApi(endpoint=other.url).repo_exists("user/x") and not HfApi().repo_exists("user/x")
    other.close()
    with pytest.raises(HTTPError):
        HfApi(endpoint=other.url).model_info("user/x")


# --- faults, seen by a plain client


@pytest.fixture
def address(hub):
    hub.server.create_repo("dataset", "user/x", files={"w.bin": WEIGHTS, "t": b"text"})
    return f"{hub.url}/datasets/user/x/resolve/main"


@pytest.mark.parametrize("status", [412, 429, 500, 503])
def test_fault_status(hub, address, status):
    hub.server.fail("GET", "/w.bin", status=status, headers={"Retry-After": "7"}, times=2)
    answers = [requests.get(f"{address}/{name}") for name in ("t", "w.bin", "w.bin", "w.bin")]
    assert [answer.status_code for answer in answers] == [200, status, status, 200]
    assert answers[1].headers["Retry-After"] == "7" and answers[3].content == WEIGHTS
    assert [request.status for request in hub.server.requests] == [200, status, status, 200]


def test_fault_cut_download(hub, address):
    hub.server.fail("GET", "/w.bin", cut_after=1000)
    got = b""
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        for piece in requests.get(f"{address}/w.bin", stream=True).iter_content(100):
            got += piece
    assert got == WEIGHTS[:1000] and hub.server.requests[-1].bytes_out == 1000
    assert requests.get(f"{address}/w.bin").content == WEIGHTS


@pytest.mark.parametrize("cut_after", [0, 1000])
@pytest.mark.parametrize("pieces", [False, True])
def test_fault_cut_upload(hub, address, cut_after, pieces):
    def send():
        # A generator goes out in chunks, without a length.
        body = (WEIGHTS[start : start + 5000] for start in range(0, 25600, 5000)) if pieces else WEIGHTS
        return requests.put(f"{hub.url}/lfs/datasets/user/x/{hashlib.sha256(WEIGHTS).hexdigest()}", data=body)

    objects = hub.server.repo("dataset", "user/x").objects
    objects.clear()
    hub.server.fail("PUT", "/lfs/", cut_after=cut_after)
    with pytest.raises(requests.exceptions.ConnectionError):
        send()
    assert objects == {} and hub.server.uploaded_bytes() == cut_after
    assert send().status_code == 200 and list(objects.values()) == [WEIGHTS]


def test_fault_after_the_work(hub, address):
    hub.server.fail("POST", "/commit/", after_commit=True)
    repo = hub.server.repo("dataset", "user/x")
    with pytest.raises(HTTPError):
        HfApi().create_commit("user/x", [add("t", b"text 2")], commit_message="2", repo_type="dataset")
    assert len(repo.commits) == 2 and repo.files["t"] == b"text 2"


def test_fault_slow(hub, address):
    hub.server.fail("GET", "/t", delay_s=0.3)
    start = time.perf_counter()
    assert requests.get(f"{address}/t").content == b"text"
    assert time.perf_counter() - start > 0.3
    hub.server.fail("GET", "/t", delay_s=0.3)
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.get(f"{address}/t", timeout=0.1)


def test_fault_needs_a_kind(hub):
    with pytest.raises(ValueError, match="status, cut_after, delay_s or after_commit"):
        hub.server.fail("GET", "/t")
