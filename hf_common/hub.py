"""One folder, one Hub repository, one commit: checked before anything is sent, whole or not at all."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoCard,
    get_token,
    is_offline_mode,
)

# HTTPError is that of httpx or httpx2, whichever the installed huggingface_hub uses: also what a broken connection is.
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id
from yaml import YAMLError

from .secrets import clean_token, redacted

logger = logging.getLogger(__name__)

REPO_TYPES = ("model", "dataset", "space")
# What the Hub or its website may write into any repository.
HUB_FILES = ("README.md", ".gitattributes")
# Another attempt may succeed: time-outs, other commits at the same moment, too many requests, errors of the server.
RETRIED_STATUS = (408, 409, 412, 429, 500, 502, 503, 504)
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second to the last attempt, where the server names no other time

Result = TypeVar("Result")


def check_push(
    repo_id: str,
    *,
    names: Collection[str],
    repo_type: str = "model",
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
) -> None:
    """Raise now, before long work and before anything is sent, what would make [`push_folder`] fail later.

    Args:
        repo_id: `user/name` or `organisation/name`; the repository need not exist.
        names: patterns of the files that belong to what will be pushed, such as `"*.json"` and `"test/*.parquet"`; `*`
            stands for anything but a slash.
        repo_type: `"model"`, `"dataset"` or `"space"`.
        token: of the Hub; by default the one of `hf auth login` or `HF_TOKEN`.
        private: what a new repository will be. An existing one has to agree; None takes it as it is.
        revision: the branch; it need not exist.

    Raises:
        ValueError: `repo_id` is no such name or is a repository of another type, holds files that match none of
            `names`, or is public where `private` is True (or the other way round); `revision` is no name of a branch.
        TypeError: `names` is one string.
        PermissionError: no token, a wrong one, or one whose owner does not own `repo_id`, alone or with others: this
            is also asked for a pull request.
        ConnectionError: offline mode, or the Hub can't be reached.
    """
    _check_arguments(repo_id, repo_type, names, revision)
    token = clean_token(token)
    if is_offline_mode():
        raise ConnectionError(f"repo_id={repo_id!r} can't be pushed to in offline mode: unset HF_HUB_OFFLINE")
    if not (get_token() if token is None else token):
        raise PermissionError(
            f"repo_id={repo_id!r}: there is no token; log in with `hf auth login`, set HF_TOKEN or give token"
        )
    api = HfApi(token=token)
    _check_token(api, repo_id)
    info = _repo_info(api, repo_id, repo_type)
    if info is None:
        for other in REPO_TYPES:
            if other != repo_type and _repo_info(api, repo_id, other) is not None:
                raise ValueError(
                    f"repo_id={repo_id!r} is a {other}, not a {repo_type}; name another, or make an empty {repo_type} "
                    "repository of that name first"
                )
        return
    if private is not None and bool(info.private) != private:
        raise ValueError(
            f"private={private}, but {repo_type} {repo_id!r} is {'private' if info.private else 'public'}: change its "
            "settings on the Hub, or leave private out"
        )
    _refuse_foreign(repo_id, repo_type, _files(api, repo_id, repo_type, revision), names)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    names: Collection[str],
    repo_type: str = "model",
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload",
    space_sdk: str | None = None,
) -> CommitInfo:
    """Make a repository hold the files of `folder` that match `names`, by one commit.

    The repository is made if it does not exist. Files that it holds already, by their digest, are not sent again, not
    even those of an upload that was cut off; files of an earlier push that `folder` lacks are deleted. Whatever fails
    for a reason that may pass is tried again; if it goes on failing, the repository has the files that it had.

    Args:
        folder: existing. What matches none of `names` stays where it is.
        create_pr: open a pull request instead of committing to the branch.
        space_sdk: of a new Space, such as `"gradio"`.

    The others as for [`check_push`], whose errors are raised too; moreover a `ValueError` for a folder without a
    file that matches or with a README.md that can't be read, and a `ConnectionError` where the Hub went on failing.
    """
    _check_arguments(repo_id, repo_type, names, revision)
    token = clean_token(token)
    files = local_files(folder, names)
    if not files:
        raise ValueError(f"folder: {os.fspath(folder)!r} is no folder or holds no file that matches {list(names)}")
    if "README.md" in files:
        _check_card(files["README.md"])
    check_push(repo_id, names=names, repo_type=repo_type, token=token, private=private, revision=revision)
    api = HfApi(token=token)
    where = f"{repo_type} {repo_id!r}"
    _make_repository(api, repo_id, repo_type, revision, private=private, space_sdk=space_sdk)
    requests = _pull_requests(api, repo_id, repo_type) if create_pr else set()
    commit = _Commit(api, repo_id, repo_type, revision, files, names, commit_message, create_pr, requests)
    return _retried(commit.attempt, f"the upload to {where}")


def _make_repository(
    api: HfApi, repo_id: str, repo_type: str, revision: str | None, *, private: bool | None, space_sdk: str | None
) -> None:
    """Make the repository and the branch, where they are not there."""
    where = f"{repo_type} {repo_id!r}"
    if _repo_info(api, repo_id, repo_type) is None:
        _retried(
            lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, space_sdk=space_sdk, exist_ok=True),
            f"making {where}",
        )
    if revision is not None and not revision.startswith("refs/"):
        _retried(
            lambda: api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True),
            f"making branch {revision!r} of {where}",
        )


@dataclass(frozen=True)
class _Commit:
    """One commit that makes a branch hold `files` (name in the repository -> file), or a pull request that does."""

    api: HfApi
    repo_id: str
    repo_type: str
    revision: str | None
    files: Mapping[str, Path]
    names: Collection[str]
    message: str
    create_pr: bool
    requests: Set[str]  # pull requests that were there before the first attempt

    def attempt(self) -> CommitInfo:
        # All anew at each attempt: another commit, or our own whose answer was lost, may have come between.
        branch = self._branch()
        head = self.api.repo_info(self.repo_id, repo_type=self.repo_type, revision=branch).sha
        there = _files(self.api, self.repo_id, self.repo_type, head)
        _refuse_foreign(self.repo_id, self.repo_type, there, self.names)
        stale = [path for path in there if path not in self.files and path not in HUB_FILES]
        try:
            info = self.api.create_commit(
                self.repo_id,
                [
                    *(CommitOperationAdd(path, str(file)) for path, file in self.files.items()),
                    *(CommitOperationDelete(path) for path in stale),
                ],
                commit_message=self.message,
                repo_type=self.repo_type,
                revision=branch,
                create_pr=self.create_pr and branch == self.revision,
                parent_commit=head,
            )
        except RuntimeError as error:
            # In this the client wraps whatever fails while it sends a large file, after attempts of its own.
            if isinstance(error.__cause__, HTTPError):
                raise error.__cause__ from None
            where = f"{self.repo_type} {self.repo_id!r}"
            raise ConnectionError(f"the upload to {where} failed: {redacted(error)}") from None
        if branch is None or branch == self.revision:
            return info
        pr_url = f"{info.repo_url}/discussions/{branch.removeprefix('refs/pr/')}"
        return CommitInfo(info.commit_url, self.message, "", info.oid, _endpoint=self.api.endpoint, pr_url=pr_url)

    def _branch(self) -> str | None:
        """The branch to commit to: that of our own pull request, where an earlier attempt opened it."""
        if not self.create_pr:
            return self.revision
        branch = self.revision
        for request in _pull_requests(self.api, self.repo_id, self.repo_type) - self.requests:
            commits = self.api.list_repo_commits(self.repo_id, repo_type=self.repo_type, revision=request)
            if commits[0].title == self.message:
                branch = request
        return branch


def local_files(folder: str | os.PathLike, names: Collection[str]) -> dict[str, Path]:
    """The files of `folder` that match `names`: path with slashes, relative to it -> file, sorted."""
    folder = Path(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in paths.items() if _matches(name, names)}


def _matches(path: str, patterns: Iterable[str]) -> bool:
    parts = path.split("/")
    return any(
        len(parts) == len(pieces) and all(map(fnmatchcase, parts, pieces))
        for pieces in (pattern.split("/") for pattern in patterns)
    )


def _check_arguments(repo_id: str, repo_type: str, names: Collection[str], revision: str | None) -> None:
    if isinstance(names, str):
        raise TypeError(f"names must be a collection of patterns; got the string {names!r}")
    if revision is not None and (not revision.strip() or revision.startswith(("-", "refs/heads/"))):
        raise ValueError(f"revision must be the name of a branch; got {revision!r}")
    if repo_type not in REPO_TYPES:
        raise ValueError(f"repo_type must be one of {list(REPO_TYPES)}; got {repo_type!r}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id must be of the form user/name; got {repo_id!r}: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id must be of the form user/name; got {repo_id!r}")


def _check_card(path: Path) -> None:
    try:
        RepoCard.load(path)
    except (ValueError, YAMLError) as error:  # ValueError: metadata of another form, bytes that are no UTF-8
        raise ValueError(f"folder: {str(path)!r} is no card: {error}") from error


def _check_token(api: HfApi, repo_id: str) -> None:
    user = _retried(api.whoami, f"repo_id={repo_id!r}: asking the Hub whose token this is")
    token = user.get("auth", {}).get("accessToken") or {"role": None}  # other kinds of log-in have no such entry
    scopes = [scope["permissions"] for scope in token.get("fineGrained", {}).get("scoped", [])]
    if token["role"] == "read" or (token["role"] == "fineGrained" and not any("repo.write" in s for s in scopes)):
        raise PermissionError(f"repo_id={repo_id!r}: the token of {user['name']!r} can't write; make one that can")
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if repo_id.split("/")[0] not in owners:
        raise PermissionError(f"repo_id={repo_id!r}: the token of {user['name']!r} writes to {owners} alone")


def _repo_info(api: HfApi, repo_id: str, repo_type: str) -> Any:
    try:
        return _retried(lambda: api.repo_info(repo_id, repo_type=repo_type), f"asking the Hub for {repo_id!r}")
    except RepositoryNotFoundError:
        return None


def _files(api: HfApi, repo_id: str, repo_type: str, revision: str | None) -> list[str]:
    def listed(revision: str | None) -> list[str]:
        return _retried(
            lambda: api.list_repo_files(repo_id, repo_type=repo_type, revision=revision),
            f"listing the files of {repo_id!r}",
        )

    try:
        return listed(revision)
    except RevisionNotFoundError:
        return listed(None)  # a new branch starts with the files of the main one


def _pull_requests(api: HfApi, repo_id: str, repo_type: str) -> set[str]:
    refs = _retried(
        lambda: api.list_repo_refs(repo_id, repo_type=repo_type, include_pull_requests=True),
        f"listing the pull requests of {repo_id!r}",
    )
    return {request.ref for request in refs.pull_requests or ()}


def _refuse_foreign(repo_id: str, repo_type: str, files: list[str], names: Collection[str]) -> None:
    foreign = [path for path in files if path not in HUB_FILES and not _matches(path, names)]
    if foreign:
        shown = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise ValueError(
            f"repo_id={repo_id!r} holds files that are no part of this kind of {repo_type}: {shown}; name another"
        )


def _retried(call: Callable[[], Result], what: str) -> Result:
    """`call()`, again after a pause while it fails for a reason that may pass. No error or log line has a token."""
    status: int | None
    headers: Mapping[str, str]
    failure: Exception
    for wait in (*WAITS, None):
        try:
            return call()
        except HfHubHTTPError as error:
            status, headers, failure = error.response.status_code, error.response.headers, error
            if isinstance(error, RepositoryNotFoundError):
                raise
        except OfflineModeIsEnabled:
            raise
        except (HTTPError, json.JSONDecodeError, ConnectionError, TimeoutError) as error:
            # A broken connection, a gateway's page in place of JSON; what Xet raises names its status in words.
            named = re.search(r"HTTP status \w+ error \((\d{3})", str(error))
            status, headers, failure = int(named[1]) if named else None, {}, error
        if status in (401, 403):
            raise PermissionError(f"{what}: the Hub does not let this token do it: {redacted(failure)}") from None
        if status is not None and status not in RETRIED_STATUS:
            if isinstance(failure, HfHubHTTPError):
                raise failure
            raise ConnectionError(f"{what} failed: {redacted(failure)}") from None
        if wait is not None:
            asked = _asked_wait(headers)
            wait = wait if asked is None else asked
            logger.warning("%s failed, again in %g s: %s", what, wait, redacted(failure))
            time.sleep(wait)
    raise ConnectionError(f"{what} failed {len(WAITS) + 1} times; the last time: {redacted(failure)}") from None


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, if it does."""
    if headers.get("Retry-After", "").isdigit():
        return float(headers["Retry-After"])
    limit = parse_ratelimit_headers(headers)
    return None if limit is None or limit.remaining > 0 else limit.reset_in_seconds + 1.0
