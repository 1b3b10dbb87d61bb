"""Repositories in memory: commits, branches, and the digests that the Hub tells of each file."""

import hashlib
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise

REGULAR_LIMIT = 10 * 1024 * 1024  # bytes; a larger file is stored as LFS
# As in the .gitattributes that the Hub puts into a new repository.
LFS_PATTERNS = (
    *("*.7z", "*.arrow", "*.bin", "*.bz2", "*.ckpt", "*.ftz", "*.gz", "*.h5", "*.joblib", "*.jpeg", "*.jpg", "*.lz4"),
    *("*.mlmodel", "*.model", "*.msgpack", "*.npy", "*.npz", "*.onnx", "*.ot", "*.parquet", "*.pb", "*.pickle"),
    *("*.pkl", "*.png", "*.pt", "*.pth", "*.rar", "*.safetensors", "*.tar", "*.tflite", "*.tgz", "*.wasm", "*.webp"),
    *("*.xz", "*.zip", "*.zst"),
)
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub stores the file as LFS: by its name, by its size, or because it is no text."""
    return size > REGULAR_LIMIT or b"\0" in sample or any(fnmatch(posixpath.basename(path), p) for p in LFS_PATTERNS)


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        ).encode()

    @property
    def git_sha1(self) -> str:
        """As `git hash-object` says; for LFS that of the pointer, which is what git stores."""
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_sha1


def make_blobs(files: dict[str, bytes]) -> dict[str, Blob]:
    return {path: Blob(content, is_lfs(path, len(content), content[:512])) for path, content in files.items()}


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    message: str
    number: int  # commits of the repository before this one
    blobs: dict[str, Blob] = field(repr=False)

    @property
    def files(self) -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.blobs.items()}

    @property
    def date(self) -> str:
        return f"2025-01-01T{self.number // 3600 % 24:02}:{self.number // 60 % 60:02}:{self.number % 60:02}.000Z"


class Repository:
    """One repository; `branches` holds pull requests too, as `refs/pr/N`."""

    def __init__(self, type: str, id: str, private: bool, sdk: str | None = None):
        self.type, self.id, self.private, self.sdk = type, id, private, sdk
        self.history: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}  # the LFS store: by sha256, committed or not

    @property
    def head(self) -> str:
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        return self.history[self.head].files

    @property
    def commits(self) -> list[Commit]:
        """Those of the main branch, newest last."""
        return self.log(self.head)[::-1]

    def log(self, oid: str | None) -> list[Commit]:
        """The commit and those before it, newest first."""
        commits = []
        while oid is not None:
            commits.append(self.history[oid])
            oid = commits[-1].parent
        return commits

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a pull request or the hexadecimal digits of a commit."""
        if revision in self.branches:
            return self.history[self.branches[revision]]
        found = [commit for oid, commit in self.history.items() if len(revision) >= 7 and oid.startswith(revision)]
        return found[0] if len(found) == 1 else None

    def commit(self, branch: str, parent: str | None, blobs: dict[str, Blob], message: str) -> Commit:
        listing = "".join(f"{path} {blobs[path].git_sha1}\n" for path in sorted(blobs))
        text = f"{self.type} {self.id} {parent} {len(self.history)} {message}\n{listing}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.history[oid] = Commit(oid, parent, message, len(self.history), dict(sorted(blobs.items())))
        self.branches[branch] = oid
        return self.history[oid]

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The commit at which the file, or anything in the folder, became what it is."""

        def content(commit: Commit) -> list:
            return [(p, b) for p, b in commit.blobs.items() if p == path or p.startswith(path + "/")]

        log = self.log(commit.oid)
        return next(
            (new for new, old in pairwise(log) if content(new) != content(old)),
            log[-1],
        )

    def entry(self, commit: Commit, path: str, expand: bool) -> dict:
        """What the tree says about a file or a folder of `commit`."""
        if path in commit.blobs:
            blob = commit.blobs[path]
            entry = {"type": "file", "oid": blob.git_sha1, "size": len(blob.content), "path": path}
            if blob.lfs:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
        else:
            entry = {"type": "directory", "oid": tree_oid(commit.blobs, path), "size": 0, "path": path}
        if expand:
            change = self.last_change(commit, path)
            entry["lastCommit"] = {"id": change.oid, "title": change.message, "date": change.date}
            if path in commit.blobs:
                entry["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        return entry


def folders(paths: Iterable[str]) -> set[str]:
    """All folders above the files, without the root."""
    found = set()
    for path in paths:
        while path := posixpath.dirname(path):
            found.add(path)
    return found


def tree_oid(blobs: dict[str, Blob], folder: str) -> str:
    listing = [f"{path} {blob.git_sha1}" for path, blob in blobs.items() if path.startswith(folder + "/")]
    return hashlib.sha1("\n".join(listing).encode()).hexdigest()
