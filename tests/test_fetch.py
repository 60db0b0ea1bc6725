"""`make weights` against a small server of our own that speaks like the real one: what comes is whole, checked, resumed."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from weights import fetch

CONTENT = {name: f"{name} ".encode() * 3000 for name in fetch.FILES}


class Hub:
    """What the server has, how it misbehaves, and what it was asked."""

    def __init__(self):
        self.files, self.ranges, self.asked = dict(CONTENT), True, []
        self.cut_at = None  # a file whose answer is cut short, and after how many bytes
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                if self.path.startswith("/api/models/"):
                    self.answer(200, json.dumps(hub.listing()).encode())
                    return
                name = self.path.split("/resolve/main/")[1]
                content, begin = hub.files[name], 0
                if hub.ranges and "Range" in self.headers:
                    begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                hub.asked.append((name, begin))
                cut = hub.cut_at[1] if hub.cut_at and hub.cut_at[0] == name else None
                self.answer(206 if begin else 200, content[begin:], cut)

            def answer(self, status, body, cut=None):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def listing(self):
        entries = []
        for name, content in CONTENT.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry = {"type": "file", "path": name, "size": len(content), "oid": git}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
            entries.append(entry)
        return entries


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(fetch, "HERE", tmp_path)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


UNET = "unet/diffusion_pytorch_model.fp16.safetensors"


def folder(tmp_path):
    return tmp_path / "stable-diffusion-v1-5"


def test_everything_comes_and_nothing_comes_twice(hub, tmp_path, capsys):
    assert fetch.main() == 0
    assert {str(path.relative_to(folder(tmp_path))) for path in folder(tmp_path).rglob("*.*")} == set(fetch.FILES)
    assert all((folder(tmp_path) / name).read_bytes() == CONTENT[name] for name in fetch.FILES)
    assert (tmp_path / "tokenizer/merges.txt").read_bytes() == CONTENT["tokenizer/merges.txt"]
    assert "OpenRAIL" in capsys.readouterr().out
    hub.asked.clear()
    assert fetch.main() == 0 and hub.asked == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(hub, tmp_path, capsys, ranges):
    hub.cut_at, hub.ranges = (UNET, 5000), ranges
    assert fetch.main() == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "5,000 of" in said and "again" in said and not (folder(tmp_path) / UNET).exists()
    hub.cut_at = None
    hub.asked.clear()
    assert fetch.main() == 0
    assert hub.asked[0] == (UNET, 5000 if ranges else 0)
    assert (folder(tmp_path) / UNET).read_bytes() == CONTENT[UNET]


@pytest.mark.parametrize("name", [UNET, "vae/config.json"])
def test_a_file_with_another_checksum_is_thrown_away(hub, tmp_path, capsys, name):
    hub.files[name] = CONTENT[name][:-1] + b"!"
    assert fetch.main() == 2
    assert "wrong checksum" in capsys.readouterr().err
    assert not (folder(tmp_path) / name).exists() and not (folder(tmp_path) / f"{name}.part").exists()


def test_no_server_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(fetch, "HERE", tmp_path)
    assert fetch.main() == 2
    assert capsys.readouterr().err.count("\n") == 1 and not folder(tmp_path).exists()
