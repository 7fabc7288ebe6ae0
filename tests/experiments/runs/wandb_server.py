"""A stand-in for W&B's server, on this machine: it keeps what the real client of W&B sends, and gives it back."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

wandb = pytest.importorskip("wandb")

ENTITY, PROJECT = "someone", "rst"


@dataclass
class StoredRun:
    """What the server knows of a run."""

    attributes: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The config, without W&B's own keys."""
        values = json.loads(self.attributes["config"])
        return {key: item["value"] for key, item in values.items() if not key.startswith("_")}

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The definitions of the metrics: a name is under "1", the number of the step metric, from 1, under "5"."""
        definitions: list[dict[str, Any]] = json.loads(self.attributes["config"])["_wandb"]["value"]["m"]
        return definitions

    @property
    def summary(self) -> dict[str, Any]:
        """The summary, without W&B's own keys."""
        values = json.loads(self.files["wandb-summary.json"])
        return {key: value for key, value in values.items() if not key.startswith("_")}


class Server(ThreadingHTTPServer):
    """Answers the queries that wandb 0.31 sends for a run, for a sync and for a download."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: defaultdict[str, StoredRun] = defaultdict(StoredRun)
        self.lost: set[str] = set()
        """The paths of files that the server lists and cannot send."""
        self.answers = Event()
        """Cleared: the server takes requests and does not answer them."""
        self.answers.set()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that a query of GraphQL asks for."""
        project = {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}}
        if "upsertBucket" in query:
            run = self.runs[variables["name"]]
            run.attributes |= {key: value for key, value in variables.items() if value is not None}
            bucket = {"id": variables["name"], "name": variables["name"], "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            name = variables["run"]
            files = [{"name": file, "uploadUrl": f"{self.url}/file/{name}/{file}"} for file in variables["files"]]
            return {"createRunFiles": {"runID": name, "uploadHeaders": [], "files": files}}
        if "query Runs(" in query and (variables["entity"], variables["project"]) == (ENTITY, PROJECT):
            group = json.loads(variables["filters"]).get("group")
            nodes = [
                {"id": name, "name": name, "group": run.attributes.get("groupName"), "tags": [], "state": "finished"}
                for name, run in self.runs.items()
                if group in (None, run.attributes.get("groupName"))
            ]
            return {"project": {"runCount": len(nodes), "runs": _page(nodes)}}
        if "query RunFiles(" in query:
            name = variables["name"]
            files = self.runs[name].files
            nodes = [  # W&B's server lists files that it lacks too, with size 0.
                {"name": file, "url": f"{self.url}/file/{name}/{file}", "sizeBytes": str(len(files.get(file, "")))}
                for file in variables["fileNames"]
            ]
            return {"project": {"run": {"fileCount": len(nodes), "files": _page(nodes)}}}
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": _page([])}}
        return {}


def _page(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "edges": [{"node": node, "cursor": ""} for node in nodes],
        "pageInfo": {"endCursor": "", "hasNextPage": False},
    }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        """A query of GraphQL, or lines of the history of a run."""
        body = self._body()
        if self.path == "/graphql":
            request = json.loads(body)
            self._send(json.dumps({"data": self.server.answer(request["query"], request.get("variables") or {})}))
            return
        if self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.runs[self.path.split("/")[-2]].history += map(json.loads, lines)
        self._send("{}")

    def do_PUT(self) -> None:
        """A file of a run."""
        self.server.runs[self._run].files[self._file] = self._body()
        self._send("")

    def do_GET(self) -> None:
        """The same file."""
        content = None if self.path in self.server.lost else self.server.runs[self._run].files.get(self._file)
        self._send(content or "", 404 if content is None else 200)

    @property
    def _run(self) -> str:
        return self.path.split("/")[2]

    @property
    def _file(self) -> str:
        return self.path.split("/", 3)[3]

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.answers.wait()
        return gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body

    def _send(self, content: str | bytes, status: int = 200) -> None:
        content = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def without_account(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Hide the keys and the settings of W&B that this machine has."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        patch.setenv(name, str(home))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        patch.delenv(name, raising=False)
    wandb.teardown()  # The client reads the environment once.


@contextmanager
def server_of_wandb(patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose address and key are in the environment, where the client of W&B finds them."""
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()
        yield server
        server.answers.set()
        wandb.teardown()
        server.shutdown()
