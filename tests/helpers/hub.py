"""A cache as the hub's library leaves it, and a hub on this machine that has one model."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some-org/tiny.model"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct", {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 100000, "tie_word_embeddings": True,
}  # fmt: skip


def cache_model(hub: Path, directory: Path, *, revision: str = "main", commit: str = COMMIT, name: str = NAME) -> Path:
    """Put a directory's files into a cache, as blobs with links to them; return the snapshot."""
    folder = hub / f"models--{name.replace('/', '--')}"
    snapshot, blobs = folder / "snapshots" / commit, folder / "blobs"
    for made in (snapshot, blobs, (folder / "refs" / revision).parent):
        made.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    for file in directory.iterdir():
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def cache_config(hub: Path, name: str, config: Mapping[str, Any]) -> None:
    """Put a model's config into a cache, and nothing else of it."""
    (directory := hub / "config").mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    cache_model(hub, directory, name=name)


@contextmanager
def serve_model(directory: Path, name: str = NAME, gated: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Be a hub with one model, whose only revision is main; give its address and, growing, what it was asked."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            files = {file.name: file.read_bytes() for file in directory.iterdir()}
            listed = [{"type": "file", "path": f, "size": len(b), "oid": _tag(b)} for f, b in files.items()]
            about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            if not path.startswith((f"/api/models/{name}/", f"/{name}/")):
                self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif gated:
                self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            elif path in (f"/api/models/{name}/revision/{r}" for r in ("main", COMMIT)):
                self._answer(200, json.dumps(about).encode())
            elif path == f"/api/models/{name}/tree/{COMMIT}":
                self._answer(200, json.dumps(listed).encode())
            elif (file := path.removeprefix(f"/{name}/resolve/{COMMIT}/")) in files:
                self._answer(200, files[file], {"ETag": f'"{_tag(files[file])}"', "X-Repo-Commit": COMMIT})
            else:
                self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})

        do_HEAD = do_GET  # noqa: N815

        def _answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _tag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
