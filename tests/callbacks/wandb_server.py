"""As much of a W&B server, on this machine, as a run's history needs: it keeps lines by their position, as W&B does."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "0" * 40
"""A key of the length that wandb takes for one."""
_WHO = {"id": "1", "name": "me"}
_PROJECT = {"id": "1", "name": "deocc", "entity": _WHO}


class WandbServer:
    """What W&B knows of one run. It outlives the connection, as W&B does."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[int, str]] = {}
        self.begun = False
        self.port = 0

    @property
    def environment(self) -> dict[str, str]:
        """What sends wandb here."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.port}", "WANDB_API_KEY": KEY}

    def history(self) -> list[dict[str, Any]]:
        """The rows, in W&B's order."""
        return [json.loads(line) for _, line in sorted(self.lines.get("wandb-history.jsonl", {}).items())]

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Answer on the same port as before while the block lasts; afterwards connections are refused."""
        listener = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"kept": self}))
        self.port = listener.server_port
        thread = Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown()
            listener.server_close()
            thread.join()

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        if "upsertBucket" in query:
            inserted, self.begun = not self.begun, True
            return {"upsertBucket": {"bucket": self._bucket(variables["name"]), "inserted": inserted}}
        if "viewer" in query:
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if "model(" in query:
            return {"model": {**_PROJECT, "bucket": self._bucket(variables["name"]) if self.begun else None}}
        if "createRunFiles" in query:
            places = [
                {"name": name, "uploadUrl": f"http://127.0.0.1:{self.port}/{name}"} for name in variables["files"]
            ]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": places}}
        return {"serverInfo": {"features": []}} if "serverInfo" in query else {}

    def keep(self, files: dict[str, Any]) -> None:
        """Lines of the run's streams, each at its position."""
        for name, part in files.items():
            self.lines.setdefault(name, {}).update(
                {part["offset"] + place: line for place, line in enumerate(part["content"])}
            )

    def _bucket(self, name: str) -> dict[str, Any]:
        rows, events = (self.lines.get(f"wandb-{stream}.jsonl", {}) for stream in ("history", "events"))
        tails = {
            "historyTail": json.dumps([rows[max(rows)]] if rows else []),
            "eventsTail": "[]",
            "summaryMetrics": "{}",
            "config": "{}",
        }
        counts = {
            "historyLineCount": len(rows),
            "eventsLineCount": len(events),
            "logLineCount": len(self.lines.get("output.log", {})),
        }
        told = {
            "id": "1",
            "name": name,
            "displayName": name,
            "project": _PROJECT,
            "wandbConfig": '{"t": {"1": 1}}',
            "tags": [],
        }
        return {**told, **tails, **counts}


class _Handler(BaseHTTPRequestHandler):
    kept: WandbServer

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.kept.answer(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.kept.keep(json.loads(body).get("files") or {})
            answer = {"exitcode": None, "limits": {}}
        self._answer(answer)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer({})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def _answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
