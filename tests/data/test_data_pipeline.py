"""Order, ranks and batches of the in-memory pipeline, on scikit-learn's digits."""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sparsereg import data as data_sets
from sparsereg.data import Digits, ImageData
from sparsereg.data.batch_indices import BatchIndices
from sparsereg.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "sparsereg" / "config" / "data").glob("*.yaml"))


def ready(**kwargs) -> Digits:
    data = Digits(**kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


def epoch_of(indices: BatchIndices, epoch: int) -> list[list[int]]:
    indices.set_epoch(epoch)
    return [batch.tolist() for batch in indices]


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def test_the_order_depends_on_seed_and_epoch_alone():
    first = epoch_of(BatchIndices(100, 10, seed=1), 3)
    torch.manual_seed(99)
    again = BatchIndices(100, 10, seed=1)
    epoch_of(again, 0)
    state = torch.get_rng_state()
    assert epoch_of(again, 3) == first
    assert torch.equal(torch.get_rng_state(), state)  # and leaves the global generator alone
    assert sorted(flat(first)) == list(range(100))
    orders = {tuple(flat(epoch_of(BatchIndices(100, 10, s), e))) for s in (1, 2) for e in (1, 2)}
    assert len(orders) == 4  # (1, 2) and (2, 1) differ too


@pytest.mark.parametrize("size, batch_size, world_size", [(103, 10, 1), (103, 10, 3), (47, 4, 4)])
def test_training_ranks_are_disjoint_and_have_equal_batches(size, batch_size, world_size):
    ranks = [BatchIndices(size, batch_size, 0, r, world_size) for r in range(world_size)]
    batches = [epoch_of(indices, 5) for indices in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])} == {size // world_size // batch_size}
    assert {len(batch) for b in batches for batch in b} == {batch_size}
    seen = [i for b in batches for i in flat(b)]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("size, world_size", [(103, 1), (103, 4), (2, 3)])
def test_evaluation_sees_every_image_once(size, world_size):
    ranks = [BatchIndices(size, 10, None, r, world_size) for r in range(world_size)]
    batches = [epoch_of(indices, 0) for indices in ranks]
    assert [len(b) for b in batches] == [len(indices) for indices in ranks]
    assert sorted(i for b in batches for i in flat(b)) == list(range(size))


def test_digits_are_split_once_and_for_all():
    a, b = ready(seed=1), ready(seed=2)
    sizes = [len(part.labels) for part in (a.splits.train, a.splits.val, a.splits.test)]
    assert sizes == [1257, 180, 360]
    assert torch.equal(a.splits.val.images, b.splits.val.images)
    images = torch.cat([p.images for p in (a.splits.train, a.splits.val, a.splits.test)])
    labels = torch.cat([p.labels for p in (a.splits.train, a.splits.val, a.splits.test)])
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    from sklearn.datasets import load_digits

    original = load_digits()
    assert labels.bincount().tolist() == torch.tensor(original.target).bincount().tolist()
    mean = images.double().mean() / 255
    assert mean == pytest.approx(original.images.mean() / 16, abs=0.002)


def test_digits_of_another_size_are_the_same_digits():
    small, large = ready(), ready(image_size=32)
    assert large.image_shape == (3, 32, 32)
    assert torch.equal(large.splits.test.labels, small.splits.test.labels)
    halved = torch.nn.functional.avg_pool2d(large.splits.test.images.float(), 2)
    assert (halved - small.splits.test.images.float()).abs().mean() < 8  # of 255


def test_digits_statistics_are_those_of_the_training_images():
    data = ready()
    scaled = data.splits.train.images.double() / 255
    assert data.splits.mean[0] == pytest.approx(scaled.mean().item(), abs=1e-3)
    assert data.splits.std[0] == pytest.approx(scaled.std().item(), abs=1e-3)


def test_setup_reads_once_and_describes_the_data():
    data = ready()
    splits = data.splits
    data.setup("test")
    assert data.splits is splits
    assert data.image_shape == (3, 16, 16)
    assert data.classes == [str(i) for i in range(10)]
    assert data.record() == {
        "classes": data.classes,
        "mean": [splits.mean[0]] * 3,
        "std": [splits.std[0]] * 3,
        "image_shape": [3, 16, 16],
    }


def test_loaders_work_without_a_trainer():
    data = ready(batch_size=100, eval_batch_size=50)
    assert len(data.train_dataloader()) == 12
    assert [len(labels) for _, labels in data.val_dataloader()] == [50, 50, 50, 30]
    images, labels = next(iter(data.test_dataloader()))
    assert torch.equal(images, data.splits.test.images[:50])
    images, same_labels = data.on_after_batch_transfer([images, labels], 0)
    assert same_labels is labels
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = (data.splits.test.images[:50] / 255 - data.splits.mean[0]) / data.splits.std[0]
    torch.testing.assert_close(images, expected)


def test_loading_leaves_the_global_generator_alone():
    data = ready()
    state = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_rank_gets_its_share():
    data, parts = ready(batch_size=64), []
    for rank in range(2):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
        parts.append({i for batch in data.train_dataloader().sampler for i in batch.tolist()})
        assert len(parts[rank]) == 1257 // 2 // 64 * 64
    assert not parts[0] & parts[1]
    data.batch_size = 629  # 1257 // 2 = 628
    with pytest.raises(UserError, match="1257 images on 2 devices; choose 628 or less"):
        data.setup("fit")


class Recorder(pl.LightningModule):
    """Keeps what it is given; one weight, so that it can be trained."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.labels: dict[int, list[int]] = {}
        self.means: dict[str, list[float]] = {"train": [], "val": []}

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.labels.setdefault(self.current_epoch, []).extend(labels.tolist())
        self.means["train"].append(images.mean().item())
        return self.weight * images.mean()

    def validation_step(self, batch, batch_idx):
        self.means["val"].append(batch[0].mean().item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(epochs: int, folder: Path, ckpt_path: Path | None = None, **kwargs) -> Recorder:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    module = Recorder()
    trainer.fit(module, datamodule=Digits(**kwargs), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


def expected_labels(data: Digits, epoch: int) -> list[int]:
    indices = BatchIndices(len(data.splits.train.labels), data.batch_size, data.seed)
    return data.splits.train.labels[flat(epoch_of(indices, epoch))].tolist()


def test_lightning_sets_the_epoch_also_after_a_resume(tmp_path):
    module = fit(2, tmp_path, seed=7)
    data = ready(seed=7)
    assert module.labels == {epoch: expected_labels(data, epoch) for epoch in (0, 1)}
    resumed = fit(3, tmp_path, tmp_path / "last.ckpt", seed=7)
    assert resumed.labels == {2: expected_labels(data, 2)}


def test_only_training_images_are_augmented(tmp_path):
    torch.manual_seed(0)
    module = fit(2, tmp_path, batch_size=1257, crop_scale=[0.1, 0.3])
    data = ready()
    assert len(set(module.means["val"])) == 1  # sanity check and both epochs: the same images
    exact = next(iter(data.val_dataloader()))
    assert module.means["val"][0] == data.on_after_batch_transfer(exact)[0].mean().item()
    assert len(set(module.means["train"])) == 2


@pytest.mark.parametrize(
    "key, value",
    [
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("batch_size", "many"),
        ("eval_batch_size", -1),
        ("crop_scale", [0.0, 1.0]),
        ("crop_scale", [0.9, 0.8]),
        ("crop_scale", [0.8, 1.2]),
        ("crop_scale", 0.8),
        ("crop_ratio", [1.0]),
        ("crop_ratio", None),
        ("crop_ratio", ["a", "b"]),
        ("image_size", 7),
        ("image_size", 32.0),
    ],
)
def test_bad_values_are_named_as_typed(key, value):
    with pytest.raises(UserError) as error:
        Digits(**{key: value})
    assert str(error.value).startswith(f"data.{key}={value} must be ")


def test_a_batch_larger_than_the_data_is_refused():
    data = Digits(batch_size=5000)
    message = "data.batch_size=5000 is larger than the training set of 1257 images; choose 1257"
    with pytest.raises(UserError, match=message):
        data.setup("fit")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_lists_every_argument(path, tmp_path):
    config = OmegaConf.merge({"seed": 3}, {"data": OmegaConf.load(path)})
    if path.stem == "image_folder":
        config.data.root = str(tmp_path)
    data = instantiate(config.data)
    assert data.seed == 3 and data.crop_scale == (None if path.stem == "mnist" else (0.8, 1.0))
    arguments = {
        name
        for cls in (type(data), ImageData)
        for name, p in inspect.signature(cls.__init__).parameters.items()
        if name != "self" and p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert set(config.data) == arguments | {"_target_"}
    assert type(data).__name__ in data_sets.__all__


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="images move to a GPU only if there is one"
)
def test_the_images_move_to_the_gpu():
    data = ready()
    device = torch.device("cuda", 0)
    strategy = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy, training=True)
    batch = next(iter(data.train_dataloader()))
    assert [t.device for t in batch] == [device, device]
    images, labels = data.on_after_batch_transfer(batch)
    assert images.device == labels.device == device
