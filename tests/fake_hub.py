"""A hub of its own on this machine, as far as huggingface_hub asks it for a repository's files."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34
_ERRORS = {"gated": (403, "GatedRepo"), "absent": (401, "RepoNotFound")}


class FakeHub:
    """Repositories by name, each {file: bytes}; the names in `_ERRORS` after the slash are refused as it says.

    `fetched` lists the files whose contents were asked for.
    """

    def __init__(self, repositories):
        self.repositories, self.fetched = repositories, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self, body=True)

            def do_HEAD(self):
                hub.answer(self, body=False)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request, body):
        path = request.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._describe(request, *match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._give(request, match[1], match[3], body)
        return self._send(request, 404, b"{}", {})

    def _describe(self, request, name, kind, revision):
        status, code = _ERRORS.get(name.split("/")[1], (200, ""))
        if name not in self.repositories and status == 200:
            status, code = _ERRORS["absent"]
        if status == 200 and revision not in (None, "main", "v1", COMMIT):
            status, code = 404, "RevisionNotFound"
        if status != 200:
            return self._send(request, status, b"{}", {"X-Error-Code": code, "X-Error-Message": "no"})
        files = self.repositories[name]
        if kind == "tree":
            found = [{"type": "file", "path": f, "size": len(b), "oid": _tag(b)} for f, b in files.items()]
        else:
            found = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return self._send(request, 200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _give(self, request, name, file, body):
        content = self.repositories[name][file]
        if body:
            self.fetched.append(file)
        self._send(request, 200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{_tag(content)}"'}, body)

    def _send(self, request, status, content, headers, body=True):
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body and request.command != "HEAD":
            request.wfile.write(content)


def _tag(content):
    return hashlib.sha1(content).hexdigest()
