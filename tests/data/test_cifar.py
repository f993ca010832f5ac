"""Download, checks and errors of CIFAR, on a small archive of the genuine format."""

import hashlib
import http.server
import io
import os
import pickle
import socket
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision import datasets

from sparsereg.data import Cifar
from sparsereg.errors import UserError

BATCHES = ["data_batch_1", "data_batch_2", "test_batch"]
NAMES = ["airplane", "bird"]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def build_archive(base_folder: str) -> tuple[bytes, dict[str, bytes]]:
    """A .tar.gz of CIFAR's layout with 2 x 50 training and 50 test images, and its files."""
    rng = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": NAMES})}
    for name in BATCHES:
        pixels = rng.integers(0, 256, (50, 3072), dtype=np.uint8)
        labels = rng.integers(0, 2, 50).tolist()
        files[name] = pickle.dumps({"data": pixels, "labels": labels})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), files


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Makes torchvision expect the small archive; its URL answers nothing at first."""
    cls = datasets.CIFAR10
    archive, files = build_archive(cls.base_folder)
    sums = [[name, md5(files[name])] for name in BATCHES]
    monkeypatch.setattr(cls, "tgz_md5", md5(archive))
    monkeypatch.setattr(cls, "train_list", sums[:2])
    monkeypatch.setattr(cls, "test_list", sums[2:])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(files["batches.meta"])})
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
    monkeypatch.setattr(cls, "url", f"http://127.0.0.1:{closed}/{cls.filename}")
    return {**files, cls.filename: archive}


@pytest.fixture
def requests(files, tmp_path_factory, monkeypatch) -> list[str]:
    """Serves the archive; the paths that were asked for."""
    served, paths = tmp_path_factory.mktemp("served"), []
    (served / datasets.CIFAR10.filename).write_bytes(files[datasets.CIFAR10.filename])

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def log_message(self, *args):
            paths.append(f"{self.command} {self.path}")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = server.server_address[1]
        url = f"http://127.0.0.1:{port}/{datasets.CIFAR10.filename}"
        monkeypatch.setattr(datasets.CIFAR10, "url", url)
        yield paths
        server.shutdown()


def ready(root) -> Cifar:
    data = Cifar(root=str(root), batch_size=10)
    data.prepare_data()
    data.setup("fit")
    return data


def unpack(files, root) -> None:
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir(parents=True)
    for name in [*BATCHES, "batches.meta"]:
        (folder / name).write_bytes(files[name])


def test_download_and_split(requests, files, tmp_path):
    data = ready(tmp_path / "new" / "folder")
    splits = data.splits
    parts = (splits.train, splits.val, splits.test)
    assert [len(part.labels) for part in parts] == [90, 10, 50]
    assert data.classes == NAMES and data.image_shape == (3, 32, 32)
    batch = pickle.loads(files["test_batch"])
    assert torch.equal(splits.test.images, torch.tensor(batch["data"]).view(50, 3, 32, 32))
    assert splits.test.labels.tolist() == batch["labels"]
    train = np.concatenate([pickle.loads(files[name])["data"] for name in BATCHES[:2]])
    seen = torch.cat([splits.train.images, splits.val.images]).flatten(1)
    assert sorted(seen.tolist()) == sorted(train.tolist())


def test_the_split_does_not_depend_on_the_seed(files, tmp_path):
    unpack(files, tmp_path)
    splits = [Cifar(root=str(tmp_path), seed=seed).read_splits() for seed in (1, 2)]
    assert torch.equal(splits[0].val.images, splits[1].val.images)


def test_unpacked_data_is_used_without_writing(requests, files, tmp_path):
    unpack(files, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    ready(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before and requests == []


def test_an_archive_put_there_by_hand_is_unpacked(files, tmp_path):
    name = datasets.CIFAR10.filename
    (tmp_path / name).write_bytes(files[name])
    assert len(ready(tmp_path).splits.test.labels) == 50


def test_a_damaged_archive_or_file_is_downloaded_again(requests, files, tmp_path):
    (tmp_path / datasets.CIFAR10.filename).write_bytes(b"half a download")
    assert len(ready(tmp_path).splits.test.labels) == 50
    batch = tmp_path / datasets.CIFAR10.base_folder / "test_batch"
    batch.write_bytes(batch.read_bytes()[:-1])
    assert len(ready(tmp_path).splits.test.labels) == 50


def test_four_at_once_download_once(requests, tmp_path):
    ready(tmp_path / "alone")
    alone = list(requests)
    requests.clear()
    with ThreadPoolExecutor(4) as pool:
        sizes = list(
            pool.map(lambda _: len(ready(tmp_path / "shared").splits.val.labels), range(4))
        )
    assert sizes == [10] * 4 and requests == alone


def test_absent_and_not_downloadable(files, tmp_path):
    with pytest.raises(UserError) as error:
        ready(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in ("cifar-10-python.tar.gz", str(tmp_path), "cannot be downloaded", "data=digits"):
        assert part in message


def test_damaged_and_not_downloadable(files, tmp_path):
    archive = tmp_path / datasets.CIFAR10.filename
    archive.write_bytes(b"half a download")
    with pytest.raises(UserError, match=f"{archive}.*damaged.*cannot be downloaded again; delete"):
        ready(tmp_path)


def test_wrong_file_at_the_other_end(requests, files, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(b"another file"))
    with pytest.raises(UserError, match=r"damaged .wrong checksum.; delete"):
        ready(tmp_path)


def test_a_damaged_list_of_classes_is_named(files, tmp_path):
    unpack(files, tmp_path)
    folder = tmp_path / datasets.CIFAR10.base_folder
    (folder / "batches.meta").write_bytes(b"")
    with pytest.raises(UserError, match=f"{folder} is damaged.*delete it"):
        ready(tmp_path)


def test_a_file_in_the_way_of_the_root(files, tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"data.root={root} cannot be used"):
            ready(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any folder, whatever its mode")
def test_a_root_that_cannot_be_written(files, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=f"data.root={tmp_path} cannot be used"):
        ready(tmp_path)


def test_unknown_name():
    with pytest.raises(UserError, match=r"data.name=cifar11 must be cifar10 or cifar100"):
        Cifar(name="cifar11")
