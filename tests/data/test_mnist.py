"""Download, checks and errors of MNIST, on small files of the genuine format."""

import gzip
import hashlib
import http.server
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision import datasets

from sparsereg.data import Mnist, mnist
from sparsereg.errors import UserError

SIZES = {"train": 240, "t10k": 50}


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def build_files() -> dict[str, bytes]:
    """The four unpacked files: magic number, sizes, then bytes (IDX)."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in SIZES.items():
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, n, dtype=np.uint8)
        header = struct.pack(">4I", 2051, n, 28, 28)
        files[f"{part}-images-idx3-ubyte"] = header + pixels.tobytes()
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, n) + labels.tobytes()
    return files


@pytest.fixture
def files(monkeypatch) -> dict[str, bytes]:
    """Makes torchvision and us expect the small files; the server answers nothing at first."""
    files = build_files()
    archives = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    monkeypatch.setattr(mnist, "MD5", {name: md5(content) for name, content in files.items()})
    resources = [(name, md5(content)) for name, content in archives.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{closed}/"])
    return files | archives


@pytest.fixture
def requests(files, tmp_path_factory, monkeypatch) -> list[str]:
    """Serves the archives; the paths that were asked for."""
    served, paths = tmp_path_factory.mktemp("served"), []
    for name in files:
        if name.endswith(".gz"):
            (served / name).write_bytes(files[name])

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def log_message(self, *args):
            paths.append(f"{self.command} {self.path}")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [url])
        yield paths
        server.shutdown()


def ready(root) -> Mnist:
    data = Mnist(root=str(root), batch_size=10)
    data.prepare_data()
    data.setup("fit")
    return data


def unpack(files, root) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in mnist.MD5:
        (folder / name).write_bytes(files[name])


def test_download_and_split(requests, files, tmp_path):
    data = ready(tmp_path / "new" / "folder")
    splits = data.splits
    assert [len(part.labels) for part in (splits.train, splits.val, splits.test)] == [220, 20, 50]
    assert data.classes == list("0123456789") and data.image_shape == (1, 28, 28)
    pixels = np.frombuffer(files["t10k-images-idx3-ubyte"], np.uint8, offset=16)
    assert splits.test.images.flatten().tolist() == pixels.tolist()
    assert splits.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])
    seen = torch.cat([splits.train.images, splits.val.images]).flatten(1)
    train = np.frombuffer(files["train-images-idx3-ubyte"], np.uint8, offset=16)
    assert sorted(seen.tolist()) == sorted(train.reshape(240, 784).tolist())


def test_images_are_in_0_1_and_neither_mirrored_nor_cropped(files, tmp_path):
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from sparsereg.commands.command_line import CONFIG

    unpack(files, tmp_path)
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        cfg = compose("train", overrides=["data=mnist", f"data.root={tmp_path}"])
    data = instantiate(cfg.data, _convert_="all")
    data.setup()
    data.trainer = type("Trainer", (), {"training": True})()
    images, labels = data.splits.train.images[:9], data.splits.train.labels[:9]
    batch, _ = data.on_after_batch_transfer((images, labels))
    assert torch.equal(batch, images.float() / 255)


def test_the_split_does_not_depend_on_the_seed(files, tmp_path):
    unpack(files, tmp_path)
    splits = [Mnist(root=str(tmp_path), seed=seed).read_splits() for seed in (1, 2)]
    assert torch.equal(splits[0].val.images, splits[1].val.images)


def test_unpacked_data_is_used_without_writing(requests, files, tmp_path):
    unpack(files, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    ready(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before and requests == []


def test_archives_put_there_by_hand_are_unpacked(files, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in mnist.MD5:
        (folder / f"{name}.gz").write_bytes(files[f"{name}.gz"])
    assert len(ready(tmp_path).splits.test.labels) == 50


@pytest.mark.parametrize("name", [*mnist.MD5, "train-images-idx3-ubyte.gz"])
def test_a_damaged_file_is_downloaded_again(requests, files, tmp_path, name):
    ready(tmp_path)
    damaged = tmp_path / "MNIST" / "raw" / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    unpacked = damaged.with_name(name.removesuffix(".gz"))
    unpacked.write_bytes(b"nonsense")
    ready(tmp_path)
    assert unpacked.read_bytes() == files[unpacked.name]


def test_four_at_once_download_once(requests, tmp_path):
    ready(tmp_path / "alone")
    alone = list(requests)
    requests.clear()
    with ThreadPoolExecutor(4) as pool:
        folder = tmp_path / "shared"
        sizes = list(pool.map(lambda _: len(ready(folder).splits.val.labels), range(4)))
    assert sizes == [20] * 4 and requests == alone


def test_absent_and_not_downloadable(files, tmp_path):
    with pytest.raises(UserError) as error:
        ready(tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for part in ("MNIST is not in", str(tmp_path), "cannot be downloaded", "data=digits"):
        assert part in message


def test_damaged_and_not_downloadable(files, tmp_path):
    unpack(files, tmp_path)
    folder = tmp_path / "MNIST" / "raw"
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(UserError, match=f"{folder} is missing or damaged.*delete the folder"):
        ready(tmp_path)


def test_wrong_file_at_the_other_end(requests, files, tmp_path, monkeypatch):
    name = "train-images-idx3-ubyte"
    monkeypatch.setitem(mnist.MD5, name, md5(b"another file"))
    with pytest.raises(UserError, match=r"damaged .wrong checksum.*delete the folder"):
        ready(tmp_path)


def test_a_file_in_the_way_of_the_root(files, tmp_path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"data.root={root} cannot be used"):
            ready(root)
