"""`hf_common.hub`: what it refuses before anything is sent, and what a broken connection or server leaves behind."""

import hashlib
import sys
import traceback
import types
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HTTPError

from hf_common import hub as product
from hf_common.hub import check_push, local_files, push_folder

ALWAYS = 10**9
NAMES = ("*.safetensors", "*.json", "data/*.npy", "README.md")
OLD = {"model.safetensors": b"old" * 1000, "config.json": b"{}", "stale.json": b"[]"}
OTHER = b"---\nlicense: mit\n---\nof another client\n"
NEW = {
    "model.safetensors": bytes(range(256)) * 400,
    "data/rows.npy": b"rows" * 5000,
    "config.json": b'{"a": 1}',
    "README.md": b"---\nlicense: mit\n---\n# Title\n",
}


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that the client and the product would have waited; they go on at once instead."""
    slept = []
    clock = types.SimpleNamespace(sleep=slept.append)
    for module in (product, huggingface_hub.utils._http, huggingface_hub.file_download, datasets.utils.file_utils):
        monkeypatch.setattr(module, "time", clock)
    return slept


@pytest.fixture
def folder(tmp_path):
    for path, content in (NEW | {"optimizer.pt": b"not pushed", "other/config.json": b"not pushed"}).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def push(folder, **more):
    return push_folder(folder, "user/x", names=NAMES, **more)


def content(repo):
    return {path: data for path, data in repo.files.items() if path != ".gitattributes"}


def lfs_size(files):
    return sum(len(data) for path, data in files.items() if path.endswith((".safetensors", ".npy")))


# --- without faults


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
@pytest.mark.parametrize("private", [None, True])
def test_new_repository(hub, folder, repo_type, private):
    if repo_type == "space":
        (folder / "README.md").write_text("---\nsdk: gradio\n---\n")
    sdk = "gradio" if repo_type == "space" else None
    info = push(folder, repo_type=repo_type, private=private, space_sdk=sdk, commit_message="All of it")
    repo = hub.server.repo(repo_type, "user/x")
    assert content(repo) == NEW | {"README.md": (folder / "README.md").read_bytes()}
    assert repo.private == bool(private) and info.oid == repo.head
    assert [commit.message for commit in repo.commits] == ["initial commit", "All of it"]


def test_second_push_sends_what_is_new_and_deletes_what_is_gone(hub, folder):
    repo = hub.server.create_repo("model", "user/x", files=OLD | {".gitattributes": b"*.safetensors filter=lfs\n"})
    push(folder)
    assert content(repo) == NEW and len(repo.commits) == 2  # ".gitattributes" stays, "stale.json" does not

    hub.server.requests.clear()
    assert push(folder).oid == repo.head and len(repo.commits) == 2
    assert hub.server.uploaded_bytes() == 0 and hub.server.downloads() == []

    (folder / "config.json").write_bytes(b'{"b": 2}')
    push(folder)
    assert hub.server.uploaded_bytes() == len(b'{"b": 2}')
    assert content(repo) == NEW | {"config.json": b'{"b": 2}'}


def test_a_card_of_the_hub_stays(hub, folder):
    repo = hub.server.create_repo("model", "user/x", files={"README.md": b"# By hand\n"})
    (folder / "README.md").unlink()
    push(folder)
    assert content(repo) == NEW | {"README.md": b"# By hand\n"}


def test_branch_and_pull_request(hub, folder):
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    main = repo.head
    push(folder, revision="dev")
    push(folder, revision="dev")
    request = push(folder, create_pr=True)
    assert repo.head == main and request.pr_revision == "refs/pr/1"
    for branch in ("dev", "refs/pr/1"):
        commit = repo.find(branch)
        assert commit.files == NEW and commit.parent == main
    (folder / "config.json").write_bytes(b"3")
    push(folder, revision="refs/pr/1")
    assert repo.find("refs/pr/1").files == NEW | {"config.json": b"3"} and repo.head == main


def test_local_files(folder):
    assert list(local_files(folder, NAMES)) == sorted(NEW)
    assert local_files(folder, ("*/*.json",)) == {"other/config.json": folder / "other" / "config.json"}


# --- bad input: one clear error, nothing sent, nothing made


def no_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def offline(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def no_server(hub, monkeypatch):
    hub.server.close()


def another_type(hub, monkeypatch):
    hub.server.create_repo("dataset", "user/x", files={"a": b"1"})


def hidden_type(hub, monkeypatch):
    hub.server.create_repo("space", "user/x", files={"a": b"1"}, private=True)


def foreign_files(hub, monkeypatch):
    hub.server.create_repo(
        "model", "user/x", files={"config.json": b"{}", "data/notes.txt": b"1", ".gitattributes": b""}
    )


def public(hub, monkeypatch):
    hub.server.create_repo("model", "user/x", files={})


BAD = {
    "no token": ({}, no_token, PermissionError, "there is no token"),
    "empty token": ({"token": ""}, None, PermissionError, "there is no token"),
    "wrong token": ({"token": "hf_wrong"}, None, PermissionError, "'user/x'.*token"),
    "token that may only read": ({"token": "hf_read"}, None, PermissionError, "'user/x'.*can't write"),
    "token for other rights": ({"token": "hf_fine"}, None, PermissionError, "'user/x'.*can't write"),
    "repository of someone else": ({"repo_id": "other/x"}, None, PermissionError, r"'other/x'.*\['user'\]"),
    "repository of another type": ({}, another_type, ValueError, "'user/x' is a dataset, not a model"),
    "private one of another type": ({}, hidden_type, ValueError, "'user/x' is a space, not a model"),
    "foreign files": ({}, foreign_files, ValueError, "'user/x' holds files .* model: data/notes.txt;"),
    "public where private is asked": (
        {"private": True},
        public,
        ValueError,
        "private=True, but model 'user/x' is public",
    ),
    "offline": ({}, offline, ConnectionError, "'user/x'.*HF_HUB_OFFLINE"),
    "no server": ({}, no_server, ConnectionError, "'user/x'.*failed 5 times"),
    "one string of names": ({"names": "*.json"}, None, TypeError, r"names .* the string '\*.json'"),
    "no name of a branch": ({"revision": " "}, None, ValueError, "revision must be the name of a branch; got ' '"),
    "a ref for a branch": ({"revision": "refs/heads/x"}, None, ValueError, "revision must .* got 'refs/heads/x'"),
    "no such type": ({"repo_type": "metric"}, None, ValueError, "repo_type must be one of .*'metric'"),
} | {
    f"name {name!r}": ({"repo_id": name}, None, ValueError, f"user/name; got {name!r}")
    for name in ("x", "a/b/c", "", "user/", "/x", "user/x y", "user/..", "https://hf.co/user/x")
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("call", [check_push, push_folder])
def test_bad_input(hub, folder, monkeypatch, call, case):
    arguments, prepare, error, message = BAD[case]
    hub.server.add_user("user", token="hf_fine", role="fineGrained", scopes=("inference.serverless.write",))
    if prepare is not None:
        prepare(hub, monkeypatch)
    before = {key: (repo.head, repo.files) for key, repo in hub.server.hub.repositories.items()}
    arguments = {"repo_id": "user/x", "names": NAMES} | arguments
    with pytest.raises(error, match=message):
        call(folder, **arguments) if call is push_folder else call(**arguments)
    assert {key: (repo.head, repo.files) for key, repo in hub.server.hub.repositories.items()} == before
    assert {request.method for request in hub.server.requests} <= {"GET"}
    if error is ValueError and "user/name" in message:
        assert hub.server.requests == []


def test_nothing_to_push(hub, folder):
    for nothing in (folder, folder / "nosuch", folder / "config.json"):
        with pytest.raises(ValueError, match="folder: .* is no folder or holds no file that matches .*gguf"):
            push_folder(nothing, "user/x", names=["*.gguf"])
    assert hub.server.requests == []


def test_fine_grained_token_that_may_write(hub, folder):
    hub.server.add_user("user", token="hf_fine", role="fineGrained", scopes=("repo.content.read", "repo.write"))
    push(folder, token="hf_fine")
    assert content(hub.server.repo("model", "user/x")) == NEW


@pytest.mark.parametrize("card", [b"---\nlicense: [\n---\n", b"---\n- a\n---\n", b"---\nlicense: mit\n---\n\xff\n"])
def test_damaged_card(hub, folder, card):
    (folder / "README.md").write_bytes(card)
    with pytest.raises(ValueError, match="README.md' is no card"):
        push(folder)
    assert hub.server.requests == []


def test_card_that_the_hub_refuses(hub, folder):
    (folder / "README.md").write_text("---\nlicense: none-such\n---\n")
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    with pytest.raises(ValueError, match="license"):
        push(folder)
    assert content(repo) == OLD and len(repo.commits) == 1 and hub.server.uploaded_bytes() == 0


# --- faults while pushing

FAULTS = {
    "500 on whoami": ("GET", "/whoami", {"status": 500}),
    "502 on the repository": ("GET", "/api/models/user/x$", {"status": 502}),
    "503 on the file list": ("GET", "/(tree|revision)/", {"status": 503}),
    "500 on the check of the card": ("POST", "/validate-yaml", {"status": 500}),
    "500 on preupload": ("POST", "/preupload/", {"status": 500}),
    "503 on the LFS batch": ("POST", "/objects/batch", {"status": 503}),
    "500 on an LFS file": ("PUT", "/lfs/", {"status": 500}),
    "cut in mid-file": ("PUT", "/lfs/", {"cut_after": 5000}),
    "cut after an LFS file": ("PUT", "/lfs/", {"after_commit": True}),
    "500 on the check of an LFS file": ("POST", "/objects/verify", {"status": 500}),
    "429 with the Hub's header": ("POST", "/commit/", {"status": 429, "headers": {"RateLimit": '"api";r=0;t=16'}}),
    "429 on the commit": ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "17"}}),
    "500 on the commit": ("POST", "/commit/", {"status": 500}),
    "409 on the commit": ("POST", "/commit/", {"status": 409}),
    "cut in mid-commit": ("POST", "/commit/", {"cut_after": 100}),
    "cut before the commit's answer": ("POST", "/commit/", {"cut_after": ALWAYS}),
    "cut after the commit": ("POST", "/commit/", {"after_commit": True}),
}
NEW_REPOSITORY_FAULTS = {
    "500 on making it": ("POST", "/repos/create", {"status": 500}),
    "cut after making it": ("POST", "/repos/create", {"after_commit": True}),
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("case", FAULTS)
def test_push_completes_after_a_fault(hub, folder, waits, case, times):
    method, path, what = FAULTS[case]
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    hub.server.fail(method, path, times=times, **what)
    info = push(folder)
    assert content(repo) == NEW and info.oid == repo.head and len(repo.commits) == 2
    # The second attempt after a commit that was done has nothing to commit.
    assert len(waits) == (1 if case == "cut after the commit" else times)
    assert set(waits) == {17.0} if "429" in case else set(waits) <= {1, 2, 4}


@pytest.mark.parametrize("case", NEW_REPOSITORY_FAULTS)
def test_new_repository_after_a_fault(hub, folder, case):
    method, path, what = NEW_REPOSITORY_FAULTS[case]
    hub.server.fail(method, path, **what)
    push(folder, private=True)
    repo = hub.server.repo("model", "user/x")
    assert content(repo) == NEW and repo.private and len(repo.commits) == 2


def test_new_branch_after_a_fault(hub, folder):
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    hub.server.fail("POST", "/branch/", status=503)
    hub.server.fail("POST", "/branch/", after_commit=True)
    push(folder, revision="dev")
    assert repo.find("dev").files == NEW and content(repo) == OLD


# The Hub has done what it was asked for: the next attempt finds it done.
DONE = ("cut after an LFS file", "500 on the check of an LFS file", "cut after the commit")


@pytest.mark.parametrize("case", DONE)
def test_push_completes_in_spite_of_a_lasting_fault(hub, folder, case):
    method, path, what = FAULTS[case]
    hub.server.fail(method, path, times=ALWAYS, **what)
    push(folder)
    repo = hub.server.repo("model", "user/x")
    assert content(repo) == NEW and len(repo.commits) == 2


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("case", [case for case in FAULTS if case not in DONE])
def test_lasting_fault_leaves_the_repository_as_it_was(hub, folder, case, there):
    method, path, what = FAULTS[case]
    if there:
        hub.server.create_repo("model", "user/x", files=OLD)
    fault = hub.server.fail(method, path, times=ALWAYS, **what)
    with pytest.raises(ConnectionError, match="'user/x'.*failed 5 times"):
        push(folder)
    found = hub.server.hub.repositories.get(("model", "user/x"))
    if there:
        assert found.files == OLD and len(found.commits) == 1
    else:
        assert found is None or (content(found) == {} and len(found.commits) == 1)

    kept = sum(map(len, found.objects.values())) if found else 0
    fault.times = 0
    hub.server.requests.clear()
    push(folder)
    repo = hub.server.repo("model", "user/x")
    assert content(repo) == NEW and len(repo.commits) == 2
    assert hub.server.uploaded_bytes() <= sum(map(len, NEW.values()))
    if "commit" in case:  # all LFS files are there already
        assert kept >= lfs_size(NEW)
        assert hub.server.uploaded_bytes() == sum(map(len, NEW.values())) - lfs_size(NEW)


@pytest.mark.parametrize("what", [{"status": 500}, {"cut_after": 10}])
def test_lasting_fault_where_the_repository_is_made(hub, folder, what):
    fault = hub.server.fail("POST", "/repos/create", times=ALWAYS, **what)
    with pytest.raises(ConnectionError, match="'user/x'.*failed 5 times"):
        push(folder)
    assert hub.server.hub.repositories == {} and hub.server.uploaded_bytes() == 0
    fault.times = 0
    push(folder)
    assert content(hub.server.repo("model", "user/x")) == NEW


def test_one_of_two_files_fails_for_good(hub, folder):
    """The other one is not sent again."""
    digest = hashlib.sha256(NEW["data/rows.npy"]).hexdigest()
    fault = hub.server.fail("PUT", f"/lfs/.*{digest}", status=500, times=ALWAYS)
    with pytest.raises(ConnectionError, match="failed 5 times"):
        push(folder)
    repo = hub.server.repo("model", "user/x")
    assert content(repo) == {} and NEW["model.safetensors"] in repo.objects.values()
    fault.times = 0
    hub.server.requests.clear()
    push(folder)
    assert content(repo) == NEW
    assert hub.server.uploaded_bytes() == sum(map(len, NEW.values())) - len(NEW["model.safetensors"])


def test_slow_answers(hub, folder, waits):
    hub.server.fail("POST", "/commit/", delay_s=0.3)
    hub.server.fail("PUT", "/lfs/", delay_s=0.3)
    push(folder)
    assert content(hub.server.repo("model", "user/x")) == NEW and waits == []


def test_answers_too_slow(hub, folder, waits):
    huggingface_hub.get_session().timeout = 0.2
    hub.server.fail("POST", "/commit/", delay_s=0.5)
    push(folder)
    repo = hub.server.repo("model", "user/x")
    assert content(repo) == NEW and len(repo.commits) == 2 and waits


@pytest.mark.parametrize("path", ["model.safetensors", "README.md"])
def test_another_commit_comes_between(hub, folder, monkeypatch, waits, path):
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    between(monkeypatch, path)
    push(folder)
    assert content(repo) == NEW and [commit.message for commit in repo.commits[1:]] == ["between", "Upload"]
    assert [request.status for request in hub.server.requests if "/commit/" in request.path] == [200, 412, 200]
    assert waits == [1]


def test_a_foreign_file_comes_between(hub, folder, monkeypatch):
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    between(monkeypatch, "foreign.txt")
    with pytest.raises(ValueError, match="foreign.txt"):
        push(folder)
    assert content(repo) == OLD | {"foreign.txt": OTHER}


def between(monkeypatch, path):
    """Another client commits after the first request of our commit."""
    preupload = HfApi.preupload_lfs_files

    def first(self, *arguments, **more):
        monkeypatch.setattr(HfApi, "preupload_lfs_files", preupload)
        HfApi().create_commit("user/x", [CommitOperationAdd(path, OTHER)], commit_message="between")
        preupload(self, *arguments, **more)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", first)


def test_the_token_loses_its_right_meanwhile(hub, folder):
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    hub.server.fail("POST", "/preupload/", status=403)
    with pytest.raises(PermissionError, match="'user/x'.*does not let this token"):
        push(folder)
    assert content(repo) == OLD and hub.server.uploaded_bytes() == 0


@pytest.mark.parametrize("what", [{"status": 500}, {"cut_after": ALWAYS}, {"after_commit": True}])
def test_one_pull_request_is_opened(hub, folder, what):
    repo = hub.server.create_repo("model", "user/x", files=OLD)
    hub.server.fail("POST", "/commit/", **what)
    request = push(folder, create_pr=True)
    assert request.pr_url == f"{hub.url}/user/x/discussions/1" and request.oid == repo.branches["refs/pr/1"]
    assert sorted(repo.branches) == ["main", "refs/pr/1"] and request.pr_revision == "refs/pr/1"
    assert content(repo) == OLD and repo.find("refs/pr/1").files == NEW


# --- faults while loading: all of it or an error


@pytest.fixture
def pushed(hub, folder):
    push(folder)
    return hub.server


DOWNLOAD_FAULTS = {
    "cut at once": {"cut_after": 0},
    "cut in mid-file": {"cut_after": 5000},
    "cut often": {"cut_after": 4000, "times": 3},
    "500": {"status": 500},
    "429": {"status": 429, "headers": {"Retry-After": "3"}},
    "slow": {"delay_s": 0.3},
}


@pytest.mark.parametrize("case", DOWNLOAD_FAULTS)
def test_file_download(pushed, case):
    pushed.fail("GET", "/model.safetensors", **DOWNLOAD_FAULTS[case])
    if case == "500":
        with pytest.raises(HTTPError):
            hf_hub_download("user/x", "model.safetensors")
    assert Path(hf_hub_download("user/x", "model.safetensors")).read_bytes() == NEW["model.safetensors"]


def test_download_that_is_always_cut(hub, pushed):
    fault = pushed.fail("GET", "/model.safetensors", cut_after=0, times=ALWAYS)
    for _ in range(2):
        with pytest.raises(HTTPError):
            hf_hub_download("user/x", "model.safetensors")
        with pytest.raises(HTTPError):
            snapshot_download("user/x")
    assert not list(hub.home.rglob("model.safetensors"))
    fault.times = 0
    found = Path(snapshot_download("user/x"))
    assert {path: (found / path).read_bytes() for path in NEW} == NEW


ROWS = {"x": list(range(3000)), "text": [f"row {i}" for i in range(3000)]}


@pytest.fixture
def shards(hub):
    Dataset.from_dict(ROWS).push_to_hub("user/rows", num_shards=2)
    hub.server.requests.clear()
    return hub.server


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", DOWNLOAD_FAULTS)
def test_data_set(shards, case, streaming):
    fault = shards.fail("GET", "/train-00001-of-00002.parquet", **DOWNLOAD_FAULTS[case])
    try:
        rows = rows_of(streaming)
    except (HTTPError, OSError):
        assert case == "500" and not streaming
        rows = rows_of(streaming)
    assert rows == ROWS and fault.times == 0


def test_data_set_that_is_always_cut(shards):
    fault = shards.fail("GET", "00001-of-00002.parquet", cut_after=0, times=ALWAYS)
    for streaming in (False, True, False):
        with pytest.raises((HTTPError, OSError)):
            rows_of(streaming)
    fault.times = 0
    assert rows_of(False) == rows_of(True) == ROWS


def rows_of(streaming):
    rows = list(load_dataset("user/rows", split="train", streaming=streaming))
    return {name: [row[name] for row in rows] for name in ROWS}


# --- limits of the Hub that are not reached yet


def test_a_limit_with_requests_left_says_no_time(hub, folder, waits):
    """The window's end counts only when nothing is left of it: then the usual pauses are made."""
    hub.server.create_repo("model", "user/x", files=OLD)
    hub.server.fail("POST", "/commit/", status=429, headers={"RateLimit": '"api";r=3;t=160'})
    push(folder)
    assert waits == [1.0]


# --- tokens

SECRET = "hf_" + "AbCd0123" * 4


def shown(error):
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("token", [f"{SECRET}\n", f"  {SECRET}", f"{SECRET}\r\n"])
def test_blanks_around_the_token_do_not_matter(hub, folder, token, caplog):
    hub.server.add_user("user", token=SECRET)
    push(folder, token=token)
    assert content(hub.server.repo("model", "user/x")) == NEW
    assert SECRET not in caplog.text


@pytest.mark.parametrize("token", [f"{SECRET}\nX-Other: 1", f"{SECRET} {SECRET}", f"{SECRET}\0"])
def test_what_is_no_token_is_refused_before_it_is_sent(hub, folder, token):
    for call in (lambda: push(folder, token=token), lambda: check_push("user/x", names=NAMES, token=token)):
        with pytest.raises(ValueError, match="token must be one word") as caught:
            call()
        assert SECRET not in shown(caught.value)
    assert hub.server.requests == []


@pytest.mark.parametrize("times", [1, ALWAYS])
@pytest.mark.parametrize("case", [*FAULTS, *NEW_REPOSITORY_FAULTS, "403", "no rights", "echo"])
def test_no_failure_shows_the_token(hub, folder, caplog, capfd, case, times):
    hub.server.add_user("user", token=SECRET, role="read" if case == "no rights" else "write")
    method, path, what = (FAULTS | NEW_REPOSITORY_FAULTS).get(case, ("POST", "/commit/", {"status": 403}))
    if case == "echo":  # a proxy that quotes what it was sent
        what = {"status": 502, "body": f"Authorization: Bearer {SECRET}"}
    hub.server.fail(method, path, times=times, **what)
    try:
        push(folder, token=SECRET)
    except (ConnectionError, PermissionError) as error:
        assert SECRET not in shown(error)
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())
    assert all(SECRET.encode() not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


# --- Xet, the Hub's own transport: what comes before the transfer, which needs the real storage


@pytest.fixture
def xet(hub, monkeypatch):
    pytest.importorskip("hf_xet")
    # Its own attempts, which it waits for in earnest.
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "1ms")
    for name, module in list(sys.modules.items()):
        if name.startswith("huggingface_hub") and "HF_HUB_DISABLE_XET" in vars(module):
            monkeypatch.setattr(module, "HF_HUB_DISABLE_XET", False)
    hub.server.create_repo("model", "user/x", files=OLD)
    return hub


def asked_for_keys(hub):
    return [request.path for request in hub.server.requests if "/xet-write-token/" in request.path]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_xet_a_key_that_can_not_be_had_now_is_asked_for_again(xet, folder, waits, status, caplog):
    xet.server.fail("GET", "/xet-write-token/", status=status, times=ALWAYS)
    with pytest.raises(ConnectionError, match="the upload to model 'user/x' failed 5 times; .*HTTP status"):
        push(folder)
    assert waits == [1, 2, 4, 8] and len(asked_for_keys(xet)) >= 5
    assert content(xet.server.repo("model", "user/x")) == OLD
    assert "hf_user" not in caplog.text


@pytest.mark.parametrize(("status", "error"), [(401, PermissionError), (403, PermissionError), (404, ConnectionError)])
def test_xet_a_key_that_is_refused_is_said_at_once(xet, folder, waits, status, error):
    xet.server.fail("GET", "/xet-write-token/", status=status, times=ALWAYS)
    with pytest.raises(error, match=f"the upload to model 'user/x'.*{status}"):
        push(folder)
    assert waits == [] and content(xet.server.repo("model", "user/x")) == OLD
