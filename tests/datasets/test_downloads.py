"""Downloads from a local server that torchvision's own tables point to: whole, once, and never for ever."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest
from cli_run import good, here
from source_checks import (
    complaint,
    labels_of,
    opened,
    pixels_of,
)
from source_files import (
    CIFAR_LABELS,
    DIGITS,
    LABELS,
    idx,
    python_batches,
    tarball,
    write_idx,
)

from cmray.datasets import download


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `asked` are the paths, `pace` seconds pass between two bytes if it is not 0."""

    asked: list
    pace = 0.0

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        if not self.pace:
            return super().do_GET()
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(self.pace)
        return None


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local server of tmp_path / "web" that torchvision's own tables point to; the cache is tmp_path / "cache"."""
    from torchvision.datasets import CIFAR10, MNIST

    web = write_idx(tmp_path / "web", zipped=True)
    write_idx(web, DIGITS[:2], LABELS[:2], prefix="t10k", zipped=True)
    tarball(web / "cifar-10-python.tar.gz", python_batches())
    handler = type("Handler", (Mirror,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(web)))
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    with socket_that_refuses() as closed:
        here = f"http://127.0.0.1:{server.server_port}/"
        table = [(name, hashlib.md5((web / name).read_bytes()).hexdigest()) for name, _ in MNIST.resources]
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{closed}/", here])
        monkeypatch.setattr(MNIST, "resources", table)
        monkeypatch.setattr(CIFAR10, "url", f"{here}cifar-10-python.tar.gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5((web / "cifar-10-python.tar.gz").read_bytes()).hexdigest())
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "*")
        yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def socket_that_refuses():
    """A port where nobody listens, kept from others while it is needed."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_mnist_downloads_once_and_repairs_what_is_damaged(tmp_path, mirror):
    cache = tmp_path / "cache" / "cmray" / "downloads" / "mnist"
    mnist = opened("mnist")
    assert np.array_equal(pixels_of(mnist), DIGITS[:, None])
    assert len(opened("mnist", split="test")) == 2
    files = sorted(path.name for path in cache.iterdir())
    assert sorted(mirror.asked) == [f"/{name}" for name in files]
    assert len(files) == 4, "nothing but the four files: no partial ones"
    damaged = cache / files[0]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert len(opened("mnist")) == 5
    assert mirror.asked[4:] == [f"/{files[0]}"], "only what is damaged is fetched again"


def test_what_comes_is_told_meanwhile(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(download, "_TOLD_S", 0.001)
    told = []
    before = download.watcher.set(lambda done, about: told.append((done, about)))
    try:
        opened("mnist")
        there = sum(path.stat().st_size for path in (tmp_path / "cache" / "cmray" / "downloads" / "mnist").iterdir())
        assert told[-1] == (there, 11_000_000)
        assert told == sorted(told)
        told.clear()
        opened("mnist")
        assert not told, "nothing is fetched twice"
    finally:
        download.watcher.reset(before)


def test_the_command_says_what_it_downloads(tmp_path, mirror):
    ran = good(here("data", "prepare", "mnist", "--out", tmp_path / "mnist"))
    assert f"downloading mnist to {tmp_path / 'cache' / 'cmray' / 'downloads' / 'mnist'}: about 11 MB" in ran.err
    ran = good(here("data", "prepare", "mnist", "--out", tmp_path / "again"))
    assert "downloading" not in ran.err


def test_cifar10_downloads_its_tarball(tmp_path, mirror):
    assert labels_of(opened("cifar10")) == CIFAR_LABELS[:10].tolist()
    assert len(opened("cifar10", split="test")) == 2
    assert mirror.asked == ["/cifar-10-python.tar.gz"]


def test_another_content_than_the_published_one_is_refused(tmp_path, mirror):
    (tmp_path / "web" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(DIGITS[::-1])))
    text = complaint("mnist")
    assert "mnist could not be downloaded" in text
    assert "MD5 is not the published one" in text
    assert not any((tmp_path / "cache" / "cmray" / "downloads" / "mnist").iterdir())


def test_without_a_network_the_line_says_what_to_bring(tmp_path, mirror, monkeypatch):
    from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

    for name, size, file in (
        ("mnist", "11 MB", "t10k-labels-idx1-ubyte.gz"),
        ("fashion-mnist", "30 MB", "train-images-idx3-ubyte.gz"),
        ("cifar10", "170 MB", "cifar-10-python.tar.gz"),
    ):
        for table in (MNIST, FashionMNIST):
            monkeypatch.setattr(table, "mirrors", MNIST.mirrors[:1])
        monkeypatch.setattr(CIFAR10, "url", f"{MNIST.mirrors[0]}{CIFAR10.filename}")
        text = complaint(name)
        assert text.startswith(f"{name} could not be downloaded to {tmp_path / 'cache'}")
        for part in (size, file, "--source PATH", "refused"):
            assert part in text
        assert not any((tmp_path / "cache" / "cmray" / "downloads" / name).iterdir())
    assert mirror.asked == []


@pytest.mark.parametrize(("silence", "limit", "says"), [(0.2, 60.0, "timed out"), (60.0, 0.5, "not done after 0.5 s")])
def test_a_server_that_sends_nothing_does_not_hold_us(tmp_path, mirror, monkeypatch, silence, limit, says):
    monkeypatch.setattr(mirror, "pace", 3.0)
    monkeypatch.setattr(download, "SILENCE_S", silence)
    monkeypatch.setattr(download, "LIMIT_S", limit)
    start = time.monotonic()
    assert says in complaint("mnist")
    assert time.monotonic() - start < 2.5


def test_a_slow_server_is_left_and_nothing_stays(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(mirror, "pace", 0.05)
    monkeypatch.setattr(download, "LIMIT_S", 0.5)
    start = time.monotonic()
    assert "not done after 0.5 s" in complaint("mnist")
    assert time.monotonic() - start < 2.5
    assert not any((tmp_path / "cache" / "cmray" / "downloads" / "mnist").iterdir())


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, mirror):
    (tmp_path / "cache").write_text("a file")
    assert "Not a directory" in complaint("mnist")
