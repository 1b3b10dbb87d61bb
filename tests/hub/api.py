"""What the Hub does for each request, without sockets: method, path, body and account in, answer out."""

import base64
import binascii
import json
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

from . import cards
from .repository import GITATTRIBUTES, Blob, Commit, Repository, folders, is_lfs, make_blobs

TYPE = r"(?P<type>models|datasets|spaces)"
PREFIX = r"(?:(?P<type>datasets|spaces)/)?"
ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
REVISION = r"(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
PAGE = {False: 1000, True: 50}  # entries of a tree, plain and with expand=True


@dataclass(frozen=True)
class Account:
    name: str
    role: str  # of the token: "write", "read" or "fineGrained"
    orgs: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()  # permissions of a fineGrained token, such as "repo.write"

    @property
    def can_write(self) -> bool:
        return self.role == "write" or "repo.write" in self.scopes

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.orgs)


@dataclass
class Call:
    """A request as the functions below see it."""

    method: str
    path: str  # still quoted
    query: dict[str, list[str]]
    headers: dict[str, str]  # keys in lower case
    body: bytes
    account: Account | None

    def json(self) -> dict:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    file: tuple[str, str, str] | None = None  # repository type, id and path of the content sent


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


def error_answer(error: HubError) -> Answer:
    message = error.message.replace("\n", "; ").encode("ascii", "replace").decode()
    headers = {"Content-Type": "application/json", "X-Error-Message": message, **error.headers}
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return Answer(error.status, json.dumps({"error": error.message}).encode(), headers)


def json_answer(value, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def is_true(values: list[str] | None) -> bool:
    """Of a parameter of a query, as the clients write it."""
    return values is not None and values[0].lower() in ("true", "1")


class Hub:
    """The repositories and accounts, and the answer to each call."""

    def __init__(self, url: str):
        self.url = url
        self.accounts: dict[str, Account] = {}  # by token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.routes: list[tuple[str, re.Pattern, Callable[..., Answer]]] = [
            (method, re.compile(pattern), function)
            for method, pattern, function in (
                ("GET", "/api/whoami-v2", self.whoami),
                ("POST", "/api/validate-yaml", self.validate_yaml),
                ("POST", "/api/repos/create", self.create),
                ("GET", f"/api/{TYPE}/{ID}/revision/{REVISION}", self.info),
                ("GET", f"/api/{TYPE}/{ID}/tree/{REVISION}(?:/(?P<folder>.*))?", self.tree),
                ("POST", f"/api/{TYPE}/{ID}/paths-info/{REVISION}", self.paths_info),
                ("GET", f"/api/{TYPE}/{ID}/commits/{REVISION}", self.commits),
                ("GET", f"/api/{TYPE}/{ID}/refs", self.refs),
                ("POST", f"/api/{TYPE}/{ID}/branch/(?P<branch>[^/]+)", self.create_branch),
                ("POST", f"/api/{TYPE}/{ID}/preupload/{REVISION}", self.preupload),
                ("GET", f"/api/{TYPE}/{ID}/xet-(?P<right>read|write)-token/{REVISION}", self.xet_token),
                ("POST", f"/api/{TYPE}/{ID}/commit/{REVISION}", self.commit),
                ("POST", rf"/{PREFIX}{ID}\.git/info/lfs/objects/batch", self.lfs_batch),
                ("POST", rf"/{PREFIX}{ID}\.git/info/lfs/objects/verify", self.lfs_verify),
                ("PUT", f"/lfs/{TYPE}/{ID}/(?P<oid>[0-9a-f]{{64}})", self.lfs_put),
                ("GET", f"/{PREFIX}{ID}/resolve/{REVISION}/(?P<file>.+)", self.resolve),
                ("HEAD", f"/{PREFIX}{ID}/resolve/{REVISION}/(?P<file>.+)", self.resolve),
                ("GET", f"/api/{TYPE}/{ID}", self.info),
            )
        ]

    def answer(self, method: str, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
        try:
            account = None
            if "authorization" in headers:
                account = self.accounts.get(headers["authorization"].removeprefix("Bearer "))
                if account is None:
                    raise HubError(401, "Invalid credentials in Authorization header")
            call = Call(method, path, parse_qs(query), headers, body, account)
            for verb, pattern, function in self.routes:
                match = pattern.fullmatch(path) if verb == method else None
                if match is not None:
                    groups = {name: value and unquote(value) for name, value in match.groupdict().items()}
                    if "type" in groups:
                        groups["type"] = (groups["type"] or "models").removesuffix("s")
                    return function(call, **groups)
            raise HubError(404, f"no such endpoint: {method} {path}")
        except HubError as error:
            return error_answer(error)

    # --- rights

    def readable(self, call: Call, type: str, id: str) -> Repository:
        repository = self.repositories.get((type, id))
        hidden = repository is not None and repository.private
        if repository is None or (hidden and not self.owns(call.account, id)):
            if call.account is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, call: Call, type: str, id: str, pull_request: bool = False) -> Repository:
        """The repository, where the account may write to it or, with `pull_request`, suggest a commit."""
        if call.account is None:
            raise HubError(401, "Invalid username or password.")
        repository = self.readable(call, type, id)
        if not call.account.can_write:
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if not pull_request and not self.owns(call.account, id):
            raise HubError(403, f"Forbidden: you don't have the right to write to {id}.")
        return repository

    def owns(self, account: Account | None, id: str) -> bool:
        return account is not None and id.split("/")[0] in account.namespaces

    def at(self, repository: Repository, revision: str | None) -> Commit:
        commit = repository.find(revision or "main")
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- accounts and repositories

    def whoami(self, call: Call) -> Answer:
        account = call.account
        if account is None:
            raise HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": account.role, "createdAt": "2025-01-01T00:00:00.000Z"}
        if account.role == "fineGrained":
            entity = {"_id": account.name, "type": "user", "name": account.name}
            scoped = [{"entity": entity, "permissions": list(account.scopes)}]
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
        return json_answer(
            {
                "type": "user",
                "id": account.name,
                "name": account.name,
                "fullname": account.name,
                "isPro": False,
                "orgs": [{"type": "org", "id": org, "name": org, "roleInOrg": "write"} for org in account.orgs],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def validate_yaml(self, call: Call) -> Answer:
        errors, warnings = cards.check(call.json()["content"], call.json().get("repoType") or "model")
        status = 400 if errors else 200
        if call.headers.get("accept") == "text/plain":
            return Answer(status, "\n".join(errors + warnings).encode(), {"Content-Type": "text/plain"})
        return json_answer(
            {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}, status
        )

    def create(self, call: Call) -> Answer:
        asked = call.json()
        account = call.account
        if account is None:
            raise HubError(401, "Invalid username or password.")
        type, namespace = asked.get("type") or "model", asked.get("organization") or account.name
        if not account.can_write or namespace not in account.namespaces:
            raise HubError(403, f"You don't have the rights to create a {type} under the namespace {namespace!r}")
        id = f"{namespace}/{asked['name']}"
        url = f"{self.url}/{'' if type == 'model' else type + 's/'}{id}"
        if (type, id) in self.repositories:
            message = f"You already created this {type} repo: {id}"
            return json_answer({"error": message, "url": url}, 409, **{"X-Error-Message": message})
        files = {".gitattributes": GITATTRIBUTES}
        if type == "space":
            if asked.get("sdk") not in cards.SDKS:
                raise HubError(400, '"sdk" is required')
            card = {
                "title": asked["name"],
                "colorFrom": "blue",
                "colorTo": "red",
                "sdk": asked["sdk"],
                "pinned": False,
            }
            files["README.md"] = f"---\n{cards.yaml.safe_dump(card)}---\n".encode()
        self.add(Repository(type, id, asked.get("visibility") == "private", asked.get("sdk")), files)
        return json_answer({"url": url, "name": id, "id": id})

    def add(self, repository: Repository, files: dict[str, bytes]) -> Repository:
        blobs = make_blobs(files)
        repository.objects.update({blob.sha256: blob.content for blob in blobs.values()})
        repository.commit("main", None, blobs, "initial commit")
        self.repositories[repository.type, repository.id] = repository
        return repository

    # --- reading

    def info(self, call: Call, type: str, id: str, revision: str | None = None) -> Answer:
        repository = self.readable(call, type, id)
        commit = self.at(repository, revision)
        try:
            card = cards.metadata(commit.files.get("README.md", b"").decode())
        except (cards.yaml.YAMLError, UnicodeDecodeError):
            card = {}
        tags = card.get("tags")
        found = {
            "_id": id,
            "id": id,
            "author": id.split("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "createdAt": repository.commits[0].date,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": tags if isinstance(tags, list) else [],
            "cardData": json.loads(json.dumps(card, default=str)),
            "siblings": [
                self.sibling(path, blob, is_true(call.query.get("blobs"))) for path, blob in commit.blobs.items()
            ],
        }
        if type == "model":
            found |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        if type == "space":
            found["sdk"] = repository.sdk
        if "expand" in call.query:
            found = {key: value for key, value in found.items() if key in ("_id", "id", *call.query["expand"])}
        return json_answer(found)

    def sibling(self, path: str, blob: Blob, detailed: bool) -> dict:
        found = {"rfilename": path}
        if detailed:
            found |= {"size": len(blob.content), "blobId": blob.git_sha1}
            if blob.lfs:
                found["lfs"] = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
        return found

    def tree(self, call: Call, type: str, id: str, revision: str, folder: str | None) -> Answer:
        repository = self.readable(call, type, id)
        commit = self.at(repository, revision)
        folder = (folder or "").strip("/")
        if folder and folder not in folders(commit.blobs):
            raise HubError(404, f'"{folder}" does not exist on "{revision}"', "EntryNotFound")
        recursive, expand = (
            call.query.get(flag, [""])[0].lower() in ("true", "1") for flag in ("recursive", "expand")
        )
        paths = sorted(
            path
            for path in (*commit.blobs, *folders(commit.blobs))
            if (posixpath.dirname(path) == folder) or (recursive and (not folder or path.startswith(folder + "/")))
        )
        start = int(call.query.get("cursor", ["0"])[0])
        stop = start + PAGE[expand]
        entries = [repository.entry(commit, path, expand) for path in paths[start:stop]]
        if stop >= len(paths):
            return json_answer(entries)
        following = f"{self.url}{call.path}?recursive={recursive}&expand={expand}&cursor={stop}"
        return json_answer(entries, Link=f'<{following}>; rel="next"')

    def paths_info(self, call: Call, type: str, id: str, revision: str) -> Answer:
        repository = self.readable(call, type, id)
        commit = self.at(repository, revision)
        if "json" in call.headers.get("content-type", ""):
            asked = {"paths": call.json()["paths"], "expand": [str(call.json().get("expand", False))]}
        else:
            asked = parse_qs(call.body.decode())
        expand = is_true(asked.get("expand"))
        there = {*commit.blobs, *folders(commit.blobs)}
        return json_answer([repository.entry(commit, p, expand) for p in asked.get("paths", []) if p in there])

    def commits(self, call: Call, type: str, id: str, revision: str) -> Answer:
        repository = self.readable(call, type, id)
        log = repository.log(self.at(repository, revision).oid)
        authors = [{"user": id.split("/")[0]}]
        return json_answer(
            [{"id": c.oid, "title": c.message, "message": "", "date": c.date, "authors": authors} for c in log]
        )

    def refs(self, call: Call, type: str, id: str) -> Answer:
        repository = self.readable(call, type, id)
        branches, requests = [], []
        for name, oid in repository.branches.items():
            pull_request = name.startswith("refs/")
            ref = name if pull_request else f"refs/heads/{name}"
            (requests if pull_request else branches).append({"name": name, "ref": ref, "targetCommit": oid})
        found = {"branches": branches, "converts": [], "tags": []}
        return json_answer(found | ({"pullRequests": requests} if "include_prs" in call.query else {}))

    def resolve(self, call: Call, type: str, id: str, revision: str, file: str) -> Answer:
        repository = self.readable(call, type, id)
        commit = self.at(repository, revision)
        headers = {"X-Repo-Commit": commit.oid}
        if file not in commit.blobs:
            raise HubError(404, "Entry not found", "EntryNotFound", **headers)
        blob = commit.blobs[file]
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range", ""))
        size = len(blob.content)
        if asked is None:
            return Answer(200, blob.content, headers, (type, id, file))
        first, last = asked.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size or stop <= start:
            raise HubError(416, "Range Not Satisfiable", **headers, **{"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Answer(206, blob.content[start:stop], headers, (type, id, file))

    # --- writing

    def create_branch(self, call: Call, type: str, id: str, branch: str) -> Answer:
        repository = self.writable(call, type, id)
        if branch.startswith("refs/") or not re.fullmatch(r"[\w][\w./-]*", branch):
            raise HubError(400, f"Invalid reference for a branch: {branch}")
        if branch in repository.branches:
            raise HubError(409, "Reference already exists")
        repository.branches[branch] = self.at(repository, call.json().get("startingPoint")).oid
        return Answer(200, b"OK", {"Content-Type": "text/plain"})

    def preupload(self, call: Call, type: str, id: str, revision: str) -> Answer:
        repository = self.writable(call, type, id, "create_pr" in call.query)
        commit = self.at(repository, revision)
        files = []
        for file in call.json()["files"]:
            lfs = is_lfs(file["path"], file["size"], base64.b64decode(file.get("sample", "")))
            found = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if file["path"] in commit.blobs:
                found["oid"] = commit.blobs[file["path"]].etag
            files.append(found)
        return json_answer({"files": files, "commitOid": commit.oid})

    def xet_token(self, call: Call, type: str, id: str, right: str, revision: str) -> Answer:
        """The address of the storage and a short-lived key to it. There is no such storage here: a transfer fails."""
        if right == "write":
            self.writable(call, type, id, "create_pr" in call.query)
        else:
            self.readable(call, type, id)
        return json_answer({"casUrl": f"{self.url}/no-storage", "accessToken": "xet_key", "exp": 4_000_000_000})

    def lfs_batch(self, call: Call, type: str, id: str) -> Answer:
        asked = call.json()
        repository = self.writable(call, type, id, "ref" not in asked)
        git = f"{self.url}/{'' if type == 'model' else type + 's/'}{id}.git"
        objects = []
        for wanted in asked["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repository.objects:
                # Signed, as at the real one: whoever knows the address may write there.
                put = f"{self.url}/lfs/{type}s/{id}/{wanted['oid']}?X-Amz-Signature=0"
                verify = f"{git}/info/lfs/objects/verify"
                found["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
            objects.append(found)
        return json_answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, call: Call, type: str, id: str, oid: str) -> Answer:
        blob = Blob(call.body, True)
        if blob.sha256 != oid:
            raise HubError(400, "The content does not have the digest that was announced")
        self.repositories[type, id].objects[oid] = call.body
        return Answer(200, headers={"ETag": f'"{oid}"'})

    def lfs_verify(self, call: Call, type: str, id: str) -> Answer:
        asked = call.json()
        content = self.writable(call, type, id, True).objects.get(asked["oid"])
        if content is None or len(content) != asked["size"]:
            raise HubError(404, "There is no such object")
        return json_answer({})

    def commit(self, call: Call, type: str, id: str, revision: str) -> Answer:
        pull_request = "create_pr" in call.query
        repository = self.writable(call, type, id, pull_request)
        parent = self.at(repository, revision)
        lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
        header, *operations = lines or [{}]
        if header.get("key") != "header" or not header["value"].get("summary"):
            raise HubError(400, "The first line must be a header with a summary")
        expected = header["value"].get("parentCommit")
        if pull_request and expected is not None:
            parent = self.at(repository, expected)
        elif revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        elif expected is not None and not parent.oid.startswith(expected):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        blobs = dict(parent.blobs)
        for operation in operations:
            self.apply(repository, blobs, operation["key"], operation["value"])
        branch = revision
        if pull_request:
            branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.branches)}"
        commit = repository.commit(branch, parent.oid, blobs, header["value"]["summary"])
        url = f"{self.url}/{'' if type == 'model' else type + 's/'}{id}"
        done = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        if pull_request:
            done["pullRequestUrl"] = f"{url}/discussions/{branch.removeprefix('refs/pr/')}"
        return json_answer(done)

    def apply(self, repository: Repository, blobs: dict[str, Blob], key: str, value: dict) -> None:
        path = value["path"]
        if key == "file":
            content = base64.b64decode(value["content"])
            if is_lfs(path, len(content), content[:512]) and content:
                raise HubError(400, f"{path} must be stored as LFS")
            if path == "README.md":
                errors, _ = cards.check(content.decode(), repository.type)
                if errors:
                    raise HubError(400, "\n".join(errors))
            blobs[path] = Blob(content, False)
        elif key == "lfsFile":
            if value["oid"] not in repository.objects:
                raise HubError(400, f"LFS pointer of {path} pointed to a file that does not exist")
            blobs[path] = Blob(repository.objects[value["oid"]], True)
        elif key == "deletedFile":
            if path not in blobs:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            del blobs[path]
        elif key == "deletedFolder":
            inside = [name for name in blobs if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del blobs[name]
        else:
            raise HubError(400, f"unknown operation {key}")


def content_bytes(method: str, path: str, body: bytes) -> int:
    """How many bytes of the files themselves a request brought."""
    if method == "PUT" and path.startswith("/lfs/"):
        return len(body)
    if method != "POST" or re.fullmatch(f"/api/{TYPE}/{ID}/commit/{REVISION}", path) is None:
        return 0
    total = 0
    for line in body.splitlines():
        try:
            operation = json.loads(line)
            if operation["key"] == "file":
                total += len(base64.b64decode(operation["value"]["content"]))
        except (ValueError, binascii.Error):  # the line at which the connection broke
            pass
    return total
