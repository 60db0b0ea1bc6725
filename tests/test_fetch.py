"""`make weights MODEL=...` against a small server of our own that speaks like the Hugging Face hub."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest

from weights import fetch

COMMIT = "0123456789" * 4
HALVES = [f"{stem}.fp16.safetensors" for stem in fetch.WEIGHTS]
FULL = [f"{stem}.safetensors" for stem in fetch.WEIGHTS]
OTHERS = ["README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors", "v1-5-pruned.ckpt"]


class Hub:
    """What the server has, how it misbehaves, and what it was asked for."""

    def __init__(self):
        self.files = {name: f"{name} ".encode() * 3000 for name in (*fetch.CONFIGS, *HALVES, *FULL, *OTHERS)}
        self.sent: list[tuple[str, int]] = []  # (file, first byte) of every download
        self.cut_at: tuple[str, int, int] | None = None  # a file whose download breaks off, after how many bytes, how often
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET(body=False)

            def do_GET(self, body: bool = True):
                path = unquote(urlparse(self.path).path)
                if path.startswith("/api/models/"):
                    self.answer(hub.listing(tree="/tree/" in path), {"Content-Type": "application/json"}, body)
                    return
                name = path.split("/resolve/")[1].split("/", 1)[1]
                content = hub.files.get(name)
                if content is None:
                    self.send_error(404)
                    return
                begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
                if body:
                    hub.sent.append((name, begin))
                headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                cut = None
                if body and hub.cut_at and hub.cut_at[0] == name and hub.cut_at[2]:
                    hub.cut_at = (name, hub.cut_at[1], hub.cut_at[2] - 1)
                    cut = hub.cut_at[1]
                self.answer(content[begin:], headers, body, cut, 206 if begin else 200)

            def answer(self, content, headers, body, cut=None, status=200):
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content[:cut])
                if cut is not None:
                    self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def listing(self, tree: bool) -> bytes:
        entries = [{"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in self.files.items()]
        info = {
            "id": "a/b",
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in self.files],
            "tags": [],
            "private": False,
        }
        return json.dumps(entries if tree else info).encode()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(fetch, "HERE", tmp_path)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def fetched(folder) -> set[str]:
    """The files in a folder, without the client's own notes."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts}


@pytest.mark.parametrize(
    "arguments, folder, weights",
    [
        ([], "stable-diffusion-v1-5", HALVES),
        (["1.5"], "stable-diffusion-v1-5", HALVES),
        (["1.4"], "stable-diffusion-v1-4", FULL),
        (["bk-sdm-tiny"], "bk-sdm-tiny", HALVES),
    ],
)
def test_the_needed_files_come_and_nothing_comes_twice(hub, tmp_path, capsys, arguments, folder, weights):
    assert fetch.main(arguments) == 0, capsys.readouterr().err
    folder = tmp_path / folder
    assert fetched(folder) == {*fetch.CONFIGS, *weights}
    assert all((folder / name).read_bytes() == hub.files[name] for name in fetched(folder))
    assert (tmp_path / "tokenizer/merges.txt").read_bytes() == hub.files["tokenizer/merges.txt"]
    said = capsys.readouterr().out
    assert "OpenRAIL" in said and "not ours" in said and str(folder.name) in said.splitlines()[-1]
    hub.sent.clear()
    assert fetch.main(arguments) == 0 and hub.sent == []


def test_a_repository_without_half_precision_gives_full_precision(hub, tmp_path):
    for name in HALVES:
        del hub.files[name]
    assert fetch.main(["bk-sdm-tiny"]) == 0
    assert fetched(tmp_path / "bk-sdm-tiny") == {*fetch.CONFIGS, *FULL}


@pytest.fixture
def impatient(monkeypatch):
    """The client waits longer and longer between its tries, and keeps what came in pieces of 10 MB: not here."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)


def test_a_broken_connection_is_resumed(hub, tmp_path, impatient):
    hub.cut_at = (HALVES[1], 5000, 1)
    assert fetch.main([]) == 0
    assert [begin for name, begin in hub.sent if name == HALVES[1]] == [0, 5000]
    assert (tmp_path / "stable-diffusion-v1-5" / HALVES[1]).read_bytes() == hub.files[HALVES[1]]


def test_a_download_that_cannot_end_is_one_line_and_complete_files_are_kept(hub, tmp_path, capsys, impatient):
    hub.cut_at = (HALVES[1], 0, 99)
    assert fetch.main([]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("weights: ") and said.endswith(": run `make weights MODEL=1.5` again, complete files are kept")
    folder = tmp_path / "stable-diffusion-v1-5"
    complete = fetched(folder)
    assert HALVES[1] not in complete and complete
    hub.cut_at = None
    hub.sent.clear()
    assert fetch.main([]) == 0
    assert {name for name, _ in hub.sent} == {*fetch.CONFIGS, *HALVES} - complete
    assert (folder / HALVES[1]).read_bytes() == hub.files[HALVES[1]]


@pytest.mark.parametrize("missing", ["vae/config.json", HALVES[2]])
def test_a_repository_without_a_needed_file_is_one_line(hub, tmp_path, capsys, missing):
    del hub.files[missing]
    hub.files.pop(FULL[2])
    assert fetch.main([]) == 2
    assert "has no vae/" in capsys.readouterr().err.splitlines()[-1] and not fetched(tmp_path)


@pytest.mark.parametrize("arguments", [["2.1"], ["1.5", "1.4"]])
def test_an_unknown_model_is_one_line(capsys, arguments):
    assert fetch.main(arguments) == 2
    said = capsys.readouterr().err
    assert said == f"weights: MODEL is {' '.join(arguments)!r}: use one of 1.5, 1.4, bk-sdm-tiny\n"


def test_no_server_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(fetch, "HERE", tmp_path)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits longer after each of five attempts
    assert fetch.main([]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("weights: ")]
    assert len(said) == 1 and not fetched(tmp_path)
