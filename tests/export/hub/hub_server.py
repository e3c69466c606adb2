"""A small hub on loopback: the protocol of the Hugging Face Hub over real HTTP.

Repositories, their files, preupload, git-LFS batch and storage, verification, and commits as
NDJSON. Faults are planted by path: the first answers to a path can be replaced by an error or a cut
connection.
"""

import base64
import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_" + "loopbackLoopbackLoopback0"


class Hub:
    """State of the hub and its server; use as a context manager."""

    def __init__(self):
        self.repos = {}  # name -> {"private": bool, "files": {path: bytes}, "commits": [message]}
        self.storage = {}  # sha256 -> bytes
        self.faults = defaultdict(list)  # part of a path -> [status, headers] or "cut"
        self.requests = []
        self.seen_tokens = set()
        self.whoami = None  # what it tells of a token; None: it has no such question
        self.agents = set()  # what clients call themselves
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_GET(self):
                hub.answer(self, "GET")

            def do_HEAD(self):
                hub.answer(self, "HEAD")

            def do_POST(self):
                hub.answer(self, "POST")

            def do_PUT(self):
                hub.answer(self, "PUT")

            def do_DELETE(self):
                hub.answer(self, "DELETE")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def plant(self, part, *faults):
        self.faults[part].extend(faults)

    def count(self, method, part):
        return sum(m == method and part in path for m, path in self.requests)

    def answer(self, handler, method):
        path = urlsplit(handler.path).path
        with self.lock:
            self.requests.append((method, path))
            fault = next((f.pop(0) for part, f in self.faults.items() if part in path and f), None)
        if fault == "cut":
            handler.rfile.read(min(10, int(handler.headers.get("content-length", 0))))
            handler.close_connection = True
            handler.connection.close()
            return
        body = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        self.seen_tokens.add(handler.headers.get("authorization"))
        self.agents.add(handler.headers.get("user-agent", ""))
        if fault is not None:
            self.reply(handler, fault[0], {"error": "planted"}, fault[1])
            return
        if method != "PUT" and handler.headers.get("authorization") != f"Bearer {TOKEN}":
            self.reply(handler, 401, {"error": "Invalid username or password."})
            return
        if "/resolve/" in path:
            self.send_file(handler, method, path)
            return
        with self.lock:
            status, value = self.route(method, path, body)
        self.reply(handler, status, value)

    def send_file(self, handler, method, path):
        """Answer HEAD and GET of ``/owner/name/resolve/REVISION/FILE``."""
        owner, name, _, revision, file = path.strip("/").split("/", 4)
        if f"{owner}/{name}" not in self.repos:
            self.reply(handler, 404, {"error": "no repo"}, {"x-error-code": "RepoNotFound"})
            return
        data = self.repos[f"{owner}/{name}"]["files"].get(file)
        if data is None:
            self.reply(handler, 404, {"error": "no such file"}, {"x-error-code": "EntryNotFound"})
            return
        handler.send_response(200)
        handler.send_header("content-length", str(len(data)))
        handler.send_header("etag", f'"{hashlib.sha256(data).hexdigest()}"')
        handler.send_header("x-repo-commit", revision)
        handler.end_headers()
        if method == "GET":
            handler.wfile.write(data)

    @staticmethod
    def reply(handler, status, value, headers=None):
        data = json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(data)))
        for name, text in (headers or {}).items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(data)

    def route(self, method, path, body):
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/repos/delete":
            wanted = json.loads(body)
            self.repos.pop(f"{wanted.get('organization') or 'me'}/{wanted['name']}")
            return 200, {}
        if path == "/api/whoami-v2" and self.whoami is not None:
            return 200, self.whoami
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/storage/"):
            if hashlib.sha256(body).hexdigest() != parts[1]:
                return 400, {"error": "wrong content"}
            self.storage[parts[1]] = body
            return 200, {}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, self.batch(json.loads(body))
        if path == "/verify":
            wanted = json.loads(body)
            return (200, {}) if wanted["oid"] in self.storage else (404, {"error": "no object"})
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            if name not in self.repos:
                return 404, {"error": "Repository not found"}
            repo = self.repos[name]
            if not rest or rest[0] == "revision":
                return 200, self.info(name, repo)
            if rest[0] == "tree":
                return 200, [
                    {"type": "file", "path": path, "size": len(data), "oid": f"{len(data):040x}"}
                    for path, data in repo["files"].items()
                ]
            if rest[0] == "preupload":
                return 200, {"files": [self.preupload(repo, f) for f in json.loads(body)["files"]]}
            if rest[0] == "commit":
                return self.commit(name, repo, body)
        return 404, {"error": f"no such route {method} {path}"}

    def create(self, wanted):
        name = wanted["name"]
        full = f"{wanted.get('organization') or 'me'}/{name}"
        if full in self.repos:
            return 409, {
                "error": "You already created this model repo",
                "url": f"{self.url}/{full}",
            }
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.repos[full] = {"private": bool(private), "files": {}, "commits": []}
        return 200, {"url": f"{self.url}/{full}", "id": full, "name": full}

    @staticmethod
    def info(name, repo):
        return {
            "id": name,
            "modelId": name,
            "private": repo["private"],
            "sha": f"{len(repo['commits']):040x}",
            "siblings": [{"rfilename": path} for path in repo["files"]],
            "tags": [],
        }

    def preupload(self, repo, file):
        large = file["path"].endswith(".safetensors")
        found = {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }
        if file["path"] in repo["files"]:
            content = repo["files"][file["path"]]
            blob = b"blob %d\0" % len(content) + content
            sha = hashlib.sha256(content) if large else hashlib.sha1(blob)
            found["oid"] = sha.hexdigest()
        return found

    def batch(self, wanted):
        objects = []
        for item in wanted["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.storage:
                answer["actions"] = {
                    "upload": {"href": f"{self.url}/storage/{item['oid']}"},
                    "verify": {"href": f"{self.url}/verify"},
                }
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def commit(self, name, repo, body):
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != f"{len(repo['commits']):040x}":
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files, deleted = {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.storage:
                    return 400, {"error": f"object {value['oid']} was never uploaded"}
                files[value["path"]] = self.storage[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
        for path in deleted:
            del repo["files"][path]
        repo["files"].update(files)
        repo["commits"].append(lines[0]["value"]["summary"])
        oid = f"{len(repo['commits']):040x}"
        return 200, {
            "commitOid": oid,
            "commitUrl": f"{self.url}/{name}/commit/{oid}",
            "success": True,
        }
