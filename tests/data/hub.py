"""A server on this machine that speaks as much of the hub's API as downloading a dataset or a model takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Collection, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

Datasets = dict[str, dict[str, dict[str, bytes]]]
"""name -> commit -> path -> content. `main` is the last commit."""


@contextlib.contextmanager
def serve(datasets: Datasets, gated: Collection[str] = (), token: str | None = None) -> Iterator[str]:
    """Serve the datasets until the context ends; gives the address.

    Args:
        gated: names that nobody may read.
        token: the only token that is somebody's.
    """

    def listed(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
        """What is in a folder, or anywhere below it."""
        below = {path: path.removeprefix(folder) for path in files if path.startswith(folder)}
        folders = sorted({name.split("/")[0] for name in below.values() if "/" in name})
        shown = [path for path, name in below.items() if recursive or "/" not in name]
        tree = [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in shown]
        return tree + [{"type": "directory", "path": folder + name, "oid": "0" * 40} for name in folders]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            place = unquote(urlparse(self.path).path).strip("/").removeprefix("api/").split("/")
            if place[0] not in ("datasets", "models"):  # files of models stand at the top
                place.insert(0, "models")
            if place[-1] == "whoami-v2":
                known = token is not None and self.headers["Authorization"] == f"Bearer {token}"
                return self.answer(*((200, b'{"name": "somebody"}') if known else (401, b"{}")))
            if place[-1] == "auth-check" and (name := "/".join(place[1:3])) in datasets:
                if name in gated:
                    return self.answer(403, b"{}", X_Error_Code="GatedRepo")
                return self.answer(200, b"{}")
            if place[-1] == "auth-check":
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            if len(place) < 5:
                return self.answer(404, b"{}")
            _, owner, name, what, revision, *path = place
            commits = datasets.get(f"{owner}/{name}")
            if commits is None:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
            commit = list(commits)[-1] if revision == "main" else revision
            if commit not in commits:
                return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            files = commits[commit]
            if what == "resolve":
                content = files.get("/".join(path))
                if content is None:
                    return self.answer(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                etag = hashlib.sha1(content).hexdigest()
                return self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=commit)
            if what == "tree":
                tree = listed(files, "".join(f"{part}/" for part in path), "recursive=true" in self.path.lower())
                return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            info = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": p} for p in files]}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
