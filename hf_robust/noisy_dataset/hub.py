"""A data set with noisy labels as a repository on the Hub: the folder that was built, by one commit."""

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
from .figures import has_matrices
from .form import CIFAR10, Form, entry_files, form_of
from .manifest import check_manifest, check_replaces, read_manifest


def check_publish(
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    form: Form = CIFAR10,
) -> dict | None:
    """Raise now what would make [`publish_noisy_dataset`] fail later, as far as it can be told before the build.

    Arguments and errors are those of [`check_push`][hf_common.hub.check_push]; moreover a `ValueError` for a
    repository whose files were not published by this module.

    Returns:
        `dict`: the manifest of the data set that is there, or of the main branch where `revision` is new; or None.
    """
    check_push(
        repo_id,
        repo_type="dataset",
        names=["*/train-*.parquet", "test/test-*.parquet", *_shared_names(form)],
        token=token,
        private=private,
        revision=revision,
    )
    return _published_manifest(repo_id, token, revision, form)


def publish_noisy_dataset(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Make a repository hold the data set of `folder`, which was built by this package, by one commit.

    Manifest and card of the folder come to name the repository. Nothing is sent that is there already.

    The arguments are those of [`push_folder`][hf_common.hub.push_folder], whose errors are raised too.

    Raises:
        ValueError: a folder that is not built to the end, a repository whose files were not published by this module,
            or a data set there that this one can't replace, see `check_replaces`.
    """
    folder = Path(folder)
    form = form_of(folder)
    manifest = read_manifest(folder, must_exist=True, form=form)
    # Not all configs that are there: one that appears after the check below is foreign to the push and not deleted.
    configs = [*manifest["configs"], *(["test"] if manifest["test"] else [])]
    files = [*(name for config in configs for name in entry_files(manifest, config)), *_shared_names(form)]
    if not has_matrices(manifest):
        files.remove(form.matrices_figure)
    missing = [name for name in files if not (folder / name).is_file()]
    missing += [f"{key} in its {form.manifest}" for key in _lacking(manifest, form)]
    if missing:
        raise ValueError(f"folder: {str(folder)!r} lacks {', '.join(missing[:5])}; build it to the end first")
    published = check_publish(repo_id, token=token, private=private, revision=revision, form=form)
    if published is not None:
        same = {
            key: manifest[key] for key in ("seed", "sampling", "source_fingerprint", "features") if key in manifest
        }
        check_replaces(published, same, manifest["configs"])
    manifest["repo_id"] = repo_id
    write_json(folder / form.manifest, manifest)
    replace_text(folder / "README.md", dataset_card(manifest))
    return push_folder(
        folder,
        repo_id,
        repo_type="dataset",
        names=[*(f"{config}/*.parquet" for config in configs), *_shared_names(form)],
        token=token,
        private=private,
        revision=revision,
        create_pr=create_pr,
        commit_message=f"{form.title}, {len(manifest['configs'])} configs",
    )


def _shared_names(form: Form) -> tuple[str, ...]:
    return (form.manifest, "README.md", form.rates_figure, form.matrices_figure)


def _lacking(manifest: dict, form: Form) -> list[str]:
    """What a data set that is built to the end has; not all sources have a test split."""
    tested = form is CIFAR10 or manifest["test_split"] or manifest["validation_split"]
    return [key for key in ("test", "configs") if not manifest[key] and (key == "configs" or tested)]


def _published_manifest(repo_id: str, token: str | bool | None, revision: str | None, form: Form) -> dict | None:
    try:
        # In an empty folder: no cached file can stand in for one that the Hub does not send.
        with tempfile.TemporaryDirectory() as folder:
            path = hf_hub_download(
                repo_id, form.manifest, repo_type="dataset", revision=revision, token=token, local_dir=folder
            )
            manifest = read_json(path)
            check_manifest(manifest, Path(path), form)
    except RepositoryNotFoundError:
        return None
    except RevisionNotFoundError:
        if revision is None:
            raise
        return _published_manifest(repo_id, token, None, form)  # a new branch starts with the files of the main one
    except RemoteEntryNotFoundError:
        files = HfApi(token=token).list_repo_files(repo_id, repo_type="dataset", revision=revision)
        if set(files) - set(HUB_FILES):
            raise ValueError(
                f"repo_id={repo_id!r} holds files but no {form.manifest}; name another repository"
            ) from None
        return None
    except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError) as error:
        raise ConnectionError(
            f"repo_id={repo_id!r}: asking the Hub for its {form.manifest} failed: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"repo_id={repo_id!r}: its {form.manifest} was not written by {form.builder} ({short(error, 120)}); name "
            "another repository"
        ) from None
    return manifest
