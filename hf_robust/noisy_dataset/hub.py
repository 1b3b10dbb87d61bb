"""CIFAR-10 with noisy labels as a data set repository on the Hub: the folder that was built, by one commit."""

import os
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_common.files import replace_text, write_json
from hf_common.foreign import read_json, short
from hf_common.hub import HUB_FILES, check_push, push_folder

from .card import dataset_card
from .figures import MATRICES_FIGURE, RATES_FIGURE
from .manifest import MANIFEST, TEST_FILE, TRAIN_FILE, check_manifest, check_replaces, read_manifest

SHARED_NAMES = (f"test/{TEST_FILE}", MANIFEST, "README.md", RATES_FIGURE, MATRICES_FIGURE)


def check_publish(
    repo_id: str, *, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> dict | None:
    """Raise now what would make [`publish_noisy_cifar10`] fail later, as far as it can be told before the build.

    Arguments and errors are those of [`check_push`][hf_common.hub.check_push]; moreover a `ValueError` for a
    repository whose files were not published by this module.

    Returns:
        `dict`: the manifest of the data set that is there, or of the main branch where `revision` is new; or None.
    """
    check_push(
        repo_id,
        repo_type="dataset",
        names=[f"*/{TRAIN_FILE}", *SHARED_NAMES],
        token=token,
        private=private,
        revision=revision,
    )
    return _published_manifest(repo_id, token, revision)


def publish_noisy_cifar10(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Make a repository hold the data set of `folder`, which `build_noisy_cifar10` has built, by one commit.

    Manifest and card of the folder come to name the repository. Nothing is sent that is there already.

    The arguments are those of [`push_folder`][hf_common.hub.push_folder], whose errors are raised too.

    Raises:
        ValueError: a folder that is not built to the end, a repository whose files were not published by this module,
            or a data set there that this one can't replace, see `check_replaces`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, must_exist=True)
    # By name: a config that appears there after the check below is foreign to the push and not deleted.
    names = [*(f"{name}/{TRAIN_FILE}" for name in manifest["configs"]), *SHARED_NAMES]
    missing = [name for name in names if not (folder / name).is_file()]
    missing += [f"{key} in its {MANIFEST}" for key in ("test", "configs") if not manifest[key]]
    if missing:
        raise ValueError(f"folder: {str(folder)!r} lacks {', '.join(missing[:5])}; build it to the end first")
    published = check_publish(repo_id, token=token, private=private, revision=revision)
    if published is not None:
        same = {key: manifest[key] for key in ("seed", "sampling", "source_fingerprint")}
        check_replaces(published, same, manifest["configs"])
    manifest["repo_id"] = repo_id
    write_json(folder / MANIFEST, manifest)
    replace_text(folder / "README.md", dataset_card(manifest))
    return push_folder(
        folder,
        repo_id,
        repo_type="dataset",
        names=names,
        token=token,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=f"CIFAR-10 with noisy labels, {len(manifest['configs'])} configs",
    )


def _published_manifest(repo_id: str, token: str | bool | None, revision: str | None) -> dict | None:
    try:
        # In an empty folder: no cached file can stand in for one that the Hub does not send.
        with tempfile.TemporaryDirectory() as folder:
            path = hf_hub_download(
                repo_id, MANIFEST, repo_type="dataset", revision=revision, token=token, local_dir=folder
            )
            manifest = read_json(path)
            check_manifest(manifest, Path(path))
    except RepositoryNotFoundError:
        return None
    except RevisionNotFoundError:
        if revision is None:
            raise
        return _published_manifest(repo_id, token, None)  # a new branch starts with the files of the main one
    except RemoteEntryNotFoundError:
        files = HfApi(token=token).list_repo_files(repo_id, repo_type="dataset", revision=revision)
        if set(files) - set(HUB_FILES):
            raise ValueError(f"repo_id={repo_id!r} holds files but no {MANIFEST}; name another repository") from None
        return None
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError) as error:
        raise ConnectionError(f"repo_id={repo_id!r}: asking the Hub for its {MANIFEST} failed: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"repo_id={repo_id!r}: its {MANIFEST} was not written by build_noisy_cifar10 ({short(error, 120)}); name "
            "another repository"
        ) from None
    return manifest
