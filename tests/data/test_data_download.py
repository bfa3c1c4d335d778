"""Downloads from a local server: good, damaged, cut short, missing and unreachable."""

import dataclasses
import hashlib
import http.server
import os
import sys
import threading

import numpy as np
import pytest

from official_files import random_set, write_cifar, write_idx
from rcig_eqx.data import DataError, _load, load
from rcig_eqx.data._cache import cache_folder
from rcig_eqx.data._official import OfficialFile
from rcig_eqx.data._sources import SOURCES


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str]
    promise = 0  # bytes announced beyond those sent

    def do_GET(self):
        self.requests.append(self.path)
        try:
            with open(self.translate_path(self.path), "rb") as file:
                content = file.read()
        except FileNotFoundError:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.promise))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """`(folder served, address, handler)`."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Bound(Handler):
        requests = []  # noqa: RUF012

        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bound) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}/", Bound
        httpd.shutdown()
        thread.join()


@pytest.fixture
def official(server, monkeypatch):
    """Makes what is served now the official files, by their checksums."""

    def declare(name):
        files = {
            f.name: OfficialFile(size, f"sha256:{hashlib.sha256(f.read_bytes()).hexdigest()}")
            for f in server[0].iterdir()
            for size in [f.stat().st_size]
        }
        monkeypatch.setitem(_load.SOURCES, name, dataclasses.replace(SOURCES[name], files=files))

    return declare


def test_good_files_are_fetched_once(server, official):
    folder, url, handler = server
    images, labels = random_set(20, (28, 28, 1), 10)
    write_idx(folder, "train", images, labels)
    official("mnist")
    data = load("mnist", mirror=url)
    np.testing.assert_array_equal(data.images, images)
    assert sorted(handler.requests) == [
        "/train-images-idx3-ubyte.gz",
        "/train-labels-idx1-ubyte.gz",
    ]
    load("mnist", mirror=url)
    assert len(handler.requests) == 2
    assert sorted(f.name for f in (cache_folder() / "mnist").iterdir()) == [
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]


def test_an_archive(server, official):
    folder, url, _ = server
    images, labels = random_set(10, (32, 32, 3), 10)
    write_cifar(folder, "cifar10", "binary", "test", images, labels, archive=True)
    official("cifar10")
    np.testing.assert_array_equal(load("cifar10", "test", mirror=url).images, images)


def test_a_table_entry_is_enough_for_another_address(server, official, monkeypatch):
    folder, url, _ = server
    write_idx(folder, "test", *random_set(20, (28, 28, 1), 10))
    official("mnist")
    entry = dataclasses.replace(_load.SOURCES["mnist"], url=url)
    monkeypatch.setitem(_load.SOURCES, "mnist", entry)
    assert len(load("mnist", "test")) == 20


def damage(file, handler):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file, handler):
    file.write_bytes(file.read_bytes()[:-100])


def cut_on_the_way(file, handler):
    handler.promise = 100


def remove(file, handler):
    file.unlink()


@pytest.mark.parametrize("fault", [damage, cut, cut_on_the_way, remove])
def test_a_failure_leaves_nothing_and_is_mended_by_the_next_call(server, official, fault):
    folder, url, handler = server
    images, labels = random_set(20, (28, 28, 1), 10)
    write_idx(folder, "train", images, labels)
    official("mnist")
    fault(folder / "train-labels-idx1-ubyte.gz", handler)
    message = (
        r"MNIST could not be downloaded.*By hand: get train-images.* and train-labels.*"
        r"ossci-datasets.*place in the folder .*rcig_eqx/mnist"
    )
    with pytest.raises(DataError, match=message):
        load("mnist", mirror=url)
    left = {f.name for f in (cache_folder() / "mnist").iterdir()}
    assert left <= {"train-images-idx3-ubyte.gz"}
    with pytest.raises(DataError, match="is in none of"):
        load("mnist", download=False)
    handler.promise = 0
    write_idx(folder, "train", images, labels)
    np.testing.assert_array_equal(load("mnist", mirror=url).images, images)


def test_more_than_the_official_size_is_not_taken(server, official, monkeypatch):
    """Nor waited for."""
    folder, url, _ = server
    write_idx(folder, "test", *random_set(20, (28, 28, 1), 10))
    official("mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(bytes(2**20))
    with pytest.raises(DataError, match=r"more than \d+ bytes came"):
        load("mnist", "test", mirror=url)
    left = [f.name for f in (cache_folder() / "mnist").iterdir()]
    assert left == ["t10k-images-idx3-ubyte.gz"]


def test_who_may_read_a_download_is_left_to_the_mask(server, official):
    folder, url, _ = server
    write_idx(folder, "test", *random_set(20, (28, 28, 1), 10))
    official("mnist")
    old = os.umask(0o027)
    try:
        load("mnist", "test", mirror=url)
    finally:
        os.umask(old)
    files = (cache_folder() / "mnist").iterdir()
    assert {f.stat().st_mode & 0o777 for f in files} == {0o640}


def test_every_official_address_is_https():
    assert all(source.url.startswith("https://") for source in SOURCES.values())


def test_unofficial_files_are_refused(server):
    folder, url, _ = server
    write_idx(folder, "train", *random_set(20, (28, 28, 1), 10))
    with pytest.raises(DataError, match=r"could not be downloaded.*hash"):
        load("mnist", mirror=url)
    assert not list((cache_folder() / "mnist").iterdir())


def test_no_server(tmp_path):
    with pytest.raises(DataError, match="By hand"):
        load("cifar100", mirror="http://127.0.0.1:9/")
    with pytest.raises(DataError, match=rf"place in the folder {tmp_path}/cifar100\."):
        load("cifar100", mirror="http://127.0.0.1:9/", directory=tmp_path)


def test_without_pooch(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"rcig-eqx\[download\].*By hand"):
        load("cifar10")


@pytest.mark.parametrize("name", list(SOURCES))
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_download_has_a_checksum(name, split):
    for file in SOURCES[name].downloads(split):
        kind, digest = SOURCES[name].files[file].digest.split(":")
        assert len(bytes.fromhex(digest)) == {"sha256": 32, "md5": 16}[kind]
