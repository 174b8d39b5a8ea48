"""The decoded store, the batched augmentation and the loader."""

import fcntl
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from datasets import decoding, image_store, resident
from datasets.augment import crop_boxes, flip_mask, resample_cpu, resample_device, shuffled
from datasets.base import ImageTable, concat
from datasets.decoding import decode, header_size
from datasets.image_store import open_store
from datasets.loader import Loader
from utils.errors import UserError
from utils.preemption import PREEMPTED, PREEMPTION


def natural(count, height=218, width=178, step=41):
    """uint8 [count, height, width, 3]: crops of scikit-learn's two photographs."""
    crops = [
        photo[top : top + height, left : left + width]
        for photo in load_sample_images().images
        for top in range(0, photo.shape[0] - height, step)
        for left in range(0, photo.shape[1] - width, step)
    ]
    chosen = np.linspace(0, len(crops) - 1, count).astype(int)
    return np.stack([crops[i] for i in chosen])


def save_table(folder, images, suffix="png", name="photos"):
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, image in enumerate(images):
        paths.append(str(folder / f"{i:03d}.{suffix}"))
        Image.fromarray(image).save(paths[-1])
    numbers = np.arange(len(paths))
    return ImageTable(name, paths, numbers % 2, numbers // 2 % 2)


def ks_distance(a, b):
    """Largest difference of the two samples' distribution functions."""
    at = np.union1d(a, b)
    a, b = (np.searchsorted(np.sort(x), at, "right") / len(x) for x in (a, b))
    return np.abs(a - b).max()


def same_epoch(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


# Augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(218, 178), (64, 64), (40, 200)])
def test_boxes_have_torchvisions_distribution(height, width):
    count = 3000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(count)]
    )
    ours = crop_boxes(0, 0, np.arange(count), height, width)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] > 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    limit = 1.95 * np.sqrt(2 / count)  # two-sample Kolmogorov-Smirnov, p = 0.001
    area = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    ratio = [boxes[:, 3] / boxes[:, 2] for boxes in (ours, theirs)]
    assert ks_distance(*area) < limit and ks_distance(*ratio) < limit
    for column in range(4):
        assert ks_distance(ours[:, column], theirs[:, column]) < limit


def test_extreme_image_takes_torchvisions_centre():
    for height, width in ((10, 400), (400, 10)):
        image = torch.empty(3, height, width)
        expected = RandomResizedCrop.get_params(image, [0.9, 1], [3 / 4, 4 / 3])
        boxes = crop_boxes(0, 0, np.arange(20), height, width)
        centred = (boxes == expected).all(axis=1)
        assert centred.any()


def test_randomness_depends_on_seed_epoch_and_index_only():
    rows = np.arange(100)
    boxes = crop_boxes(3, 5, rows, 218, 178)
    some = np.array([70, 3, 41])
    assert np.array_equal(crop_boxes(3, 5, some, 218, 178), boxes[some])
    assert np.array_equal(flip_mask(3, 5, some), flip_mask(3, 5, rows)[some])
    for seed, epoch in ((4, 5), (3, 6)):
        assert (crop_boxes(seed, epoch, rows, 218, 178) != boxes).any(axis=1).mean() > 0.95
        assert (shuffled(seed, epoch, 100) != shuffled(3, 5, 100)).mean() > 0.9
    assert np.array_equal(np.sort(shuffled(3, 5, 100)), rows)
    assert abs(flip_mask(0, 0, np.arange(10_000)).mean() - 0.5) < 0.02
    # seeds and epochs must not be interchangeable: (1, 2) is not (2, 1)
    assert (flip_mask(1, 2, rows) != flip_mask(2, 1, rows)).any()


@pytest.mark.parametrize("size", [224, 190, 128, 64])
def test_resampling_equals_torchvisions(size):
    """Enlarged at 224, enlarged one way and reduced the other at 190, reduced below."""
    images = natural(24)
    boxes = crop_boxes(0, 0, np.arange(24), 218, 178)
    boxes[0] = (0, 0, 218, 178)
    flips = np.arange(24) % 2 == 1
    expected = np.stack(
        [
            tv.resized_crop(
                torch.from_numpy(image.copy()).permute(2, 0, 1), *box, [size, size], antialias=True
            )
            .flip(2 if flip else ())
            .permute(1, 2, 0)
            .numpy()
            for image, box, flip in zip(images, boxes.tolist(), flips, strict=True)
        ]
    ).astype(float)
    cpu = resample_cpu(images, boxes, flips, size)
    device = resample_device(*map(torch.from_numpy, (images, boxes, flips)), size)
    assert cpu.dtype == np.uint8 and device.is_contiguous(memory_format=torch.channels_last)
    device = (device.permute(0, 2, 3, 1).numpy() + 1) * 127.5
    for ours in (cpu, device):
        difference = np.abs(ours - expected).mean(axis=(1, 2, 3))
        assert difference.max() < 0.5  # of 255, for every image; the target is 2
        # pixel by pixel too: a crop must not see what lies beyond its edges
        assert np.abs(ours - expected).max() < 2.5
    scaled = resample_cpu(images, boxes, flips, size, normalised=True)
    assert np.abs(scaled - (cpu / 255 - 0.5) / 0.5).max() < 1e-6


# Loader ---------------------------------------------------------------------------------------


def test_epoch_is_the_same_for_any_workers_and_after_a_restart(tmp_path):
    table = save_table(tmp_path / "a", natural(23))

    def epoch(k, workers=1, before=()):
        made = Loader(
            table, 5, image_size=64, train=True, device="cpu", store_dir=tmp_path, workers=workers
        )
        for earlier in before:
            list(made.epoch(earlier))
        return list(made.epoch(k))

    first = epoch(2)
    assert same_epoch(first, epoch(2, workers=2))
    assert same_epoch(first, epoch(2, before=(0, 1)))
    assert not same_epoch(first, epoch(3))
    assert sorted(torch.cat([batch[0] for batch in first]).tolist()) == list(range(23))


def test_batches_follow_the_contract(tmp_path):
    images = natural(7, 80, 60)
    table = save_table(tmp_path / "a", images)
    options = {"image_size": 96, "device": "cpu", "store_dir": tmp_path}
    plain = Loader(table, 3, train=False, drop_last=True, attributes=True, **options)
    batches = list(plain.epoch(0))
    assert len(batches) == len(plain) == 3
    index, x, y, a = (torch.cat(part) for part in zip(*batches, strict=True))
    assert index.tolist() == list(range(7))
    assert np.array_equal(y, table.y) and np.array_equal(a, table.a)
    assert x.dtype == torch.float32 and x.shape == (7, 3, 96, 96)
    expected = torch.stack(
        [
            tv.resize(torch.from_numpy(i.copy()).permute(2, 0, 1), [96, 96], antialias=True)
            for i in images
        ]
    )
    assert ((x + 1) * 127.5 - expected).abs().mean() < 0.5

    hidden = Loader(table, 3, train=True, drop_last=True, **options)
    batches = list(hidden.epoch(0))
    assert len(batches) == len(hidden) == 2
    for index, _, y, a in batches:
        assert (a == -1).all()
        assert np.array_equal(y, table.y[index])


def test_device_path_equals_the_threads_on_mixed_sizes(tmp_path, monkeypatch):
    real, made = natural(9), natural(6, 96, 96)
    table = save_table(tmp_path / "a", [i for pair in zip(real, made) for i in pair])
    for train in (True, False):
        options = {"image_size": 128, "train": train, "device": "cpu", "store_dir": tmp_path}
        threads = list(Loader(table, 5, **options).epoch(1))
        with monkeypatch.context() as patch:
            patch.setattr(resident, "free_memory", lambda device: 2**40)
            on_device = list(Loader(table, 5, **options).epoch(1))
        for (i, x, y, a), (j, z, v, b) in zip(threads, on_device, strict=True):
            assert torch.equal(i, j) and torch.equal(y, v) and torch.equal(a, b)
            assert (x - z).abs().mean(dim=(1, 2, 3)).max() < 1 / 255
    cpu = torch.device("cpu")
    assert resident.held(cpu) > 0  # kept for the next stage
    resident.forget(cpu)
    assert resident.held(cpu) == 0


def test_leaving_an_epoch_early_ends_its_threads(tmp_path):
    table = save_table(tmp_path / "a", natural(20, 64, 64))
    made = Loader(table, 2, image_size=64, train=True, device="cpu", store_dir=tmp_path, workers=2)
    batches = made.epoch(0)
    next(batches)
    assert any(t.name.startswith("loader") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("loader") for t in threading.enumerate())


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"image_size": 0}, {"workers": 0}])
def test_settings_out_of_range(tmp_path, wrong):
    table = save_table(tmp_path / "a", natural(2, 32, 32))
    settings = {"batch_size": 2, "image_size": 32, "workers": 1} | wrong
    with pytest.raises(ValueError, match="at least 1"):
        Loader(table, train=True, device="cpu", store_dir=tmp_path, **settings)
    with pytest.raises(UserError, match="fewer than one batch of 3"):
        Loader(table, 3, image_size=8, train=True, device="cpu", store_dir=tmp_path, drop_last=True)
    with pytest.raises(UserError, match="photos has no images"):
        Loader(table.take([]), 3, image_size=8, train=False, device="cpu", store_dir=tmp_path)


# Store ----------------------------------------------------------------------------------------


def test_store_keeps_pixels_order_and_repeated_rows(tmp_path):
    images = natural(5, 70, 50)
    table = save_table(tmp_path / "a", images)
    rows = [3, 0, 3, 4]
    store = open_store(table.take(rows), tmp_path / "s")
    assert [np.array_equal(store.image(i), images[row]) for i, row in enumerate(rows)] == [True] * 4
    assert store.arrays[0].shape == (3, 70, 50, 3)
    # the same files in another order are the same store
    assert open_store(table.take([0, 4, 3]), tmp_path / "s").files == store.files
    assert sorted(os.listdir(tmp_path / "s")) == [store.files[0].name]


def test_subsets_and_unions_of_pools_are_decoded_once(tmp_path, monkeypatch):
    images = natural(14, 40, 32)
    real, pool = save_table(tmp_path / "r", images[:6]), save_table(tmp_path / "p", images[6:12])
    other = save_table(tmp_path / "o", images[12:])
    for table in (real, pool, other):
        open_store(table, tmp_path / "s")
    built = sorted(os.listdir(tmp_path / "s"))
    mixed = concat([pool.take([5, 2]), real.take([3, 3]), other], "mixed")
    expected = images[[11, 8, 3, 3, 12, 13]]
    store = open_store(mixed, tmp_path / "s", pools=[real, pool])
    assert all(np.array_equal(store.image(i), image) for i, image in enumerate(expected))
    assert store.nbytes == images[:5].nbytes  # row 3 of `real` counts once
    open_store(real.take([1, 4]), tmp_path / "s", pools=[real, pool])
    assert sorted(os.listdir(tmp_path / "s")) == built

    # the batches, from the threads and from the device, are those of a store of its own
    options = {"image_size": 40, "train": True, "device": "cpu"}
    own = list(Loader(mixed, 4, store_dir=tmp_path / "own", **options).epoch(0))
    options |= {"store_dir": tmp_path / "s", "pools": [real, pool]}
    assert same_epoch(own, list(Loader(mixed, 4, **options).epoch(0)))
    monkeypatch.setattr(resident, "free_memory", lambda device: 2**40)
    made = Loader(mixed, 4, **options)
    assert [len(tensor) for tensor in made._resident[0]] == [1, 2, 2]  # only what the table has
    for (i, x, *labels), (j, z, *others) in zip(own, made.epoch(0), strict=True):
        assert torch.equal(i, j) and all(map(torch.equal, labels, others))
        assert (x - z).abs().mean(dim=(1, 2, 3)).max() < 1 / 255


def test_large_store_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(image_store, "IN_MEMORY", 0)
    images = natural(3, 70, 50)
    store = open_store(save_table(tmp_path / "a", images), tmp_path)
    assert isinstance(store.arrays[0].base, np.memmap)
    assert all(np.array_equal(store.image(i), images[i]) for i in range(3))


def test_stale_or_cut_store_is_never_read(tmp_path):
    images = natural(4, 40, 40)
    table = save_table(tmp_path / "a", images)
    first = open_store(table, tmp_path / "s")
    Image.fromarray(255 - images[2]).save(table.paths[2])
    second = open_store(table, tmp_path / "s")
    assert np.array_equal(second.image(2), 255 - images[2])
    os.utime(table.paths[0], ns=(1, 1))
    third = open_store(table, tmp_path / "s")
    (path,) = third.files
    assert len({*first.files, *second.files, path}) == 3
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    again = open_store(table, tmp_path / "s")
    assert np.array_equal(again.image(3), images[3])


def test_mixed_sizes_keep_the_common_ones(tmp_path, capsys):
    many = [natural(1, 40 + 10 * kind, 50)[0] for kind in range(4) for _ in range(6 - kind)]
    rare = natural(1, 90, 90)[0]
    store = open_store(save_table(tmp_path / "a", [rare, *many]), tmp_path)
    assert [store.image(i).shape for i in range(1, 19)] == [image.shape for image in many]
    assert store.image(0).shape == (40, 50, 3)
    expected = np.asarray(Image.fromarray(rare).resize((50, 40), Image.Resampling.LANCZOS))
    assert np.array_equal(store.image(0), expected)
    assert "1 of 19 images" in capsys.readouterr().err


def test_kinds_of_images(tmp_path):
    photo = Image.fromarray(natural(1, 60, 40)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    photo.save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(photo.transpose(Image.Transpose.ROTATE_270))
    assert np.array_equal(decode(tmp_path / "turned.png"), turned)
    photo.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert header_size(str(tmp_path / "turned.jpg")) == (40, 60)
    assert np.abs(np.asarray(decode(tmp_path / "turned.jpg")).astype(int) - turned).mean() < 8

    photo.convert("CMYK").save(tmp_path / "cmyk.jpg")
    photo.convert("L").save(tmp_path / "grey.png")
    photo.convert("P").save(tmp_path / "palette.png")
    photo.convert("RGBA").save(tmp_path / "alpha.png")
    deep = np.asarray(photo.convert("L")).astype(np.uint16) * 256 + 77
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name in ("cmyk.jpg", "grey.png", "palette.png", "alpha.png", "deep.png"):
        image = decode(tmp_path / name)
        assert image.mode == "RGB" and image.size == (40, 60)
    grey = np.asarray(decode(tmp_path / "grey.png"))
    assert np.array_equal(grey, np.asarray(decode(tmp_path / "deep.png")))
    assert np.array_equal(np.asarray(decode(tmp_path / "alpha.png")), np.asarray(photo))


def test_bad_images_are_named_together_and_leave_nothing(tmp_path, monkeypatch):
    table = save_table(tmp_path / "a", natural(9, 60, 60), "jpg")
    good, cut, empty, text = map(Path, table.paths[:4])
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    empty.write_bytes(b"")
    text.write_text("not a picture")
    moving = [Image.new("RGB", (60, 60), colour) for colour in ("red", "blue")]
    moving[0].save(table.paths[4], "PNG", save_all=True, append_images=moving[1:])
    Image.new("L", (200, 60)).save(table.paths[5])
    monkeypatch.setattr(decoding, "MAX_PIXELS", 60 * 60)
    Image.new("L", (60, 60)).save(table.paths[6], "TIFF")
    with pytest.raises(UserError) as caught:
        open_store(table, tmp_path / "s")
    message = str(caught.value)
    assert message.startswith("6 of the 9 images of photos") and "\n" not in message
    for row in range(1, 7):
        assert table.paths[row] in message
    for row in (0, 7, 8):
        assert table.paths[row] not in message
    assert "animation" in message and "200x60 pixels" in message
    assert not [name for name in os.listdir(tmp_path / "s") if not name.endswith(".lock")]
    os.remove(table.paths[8])
    with pytest.raises(UserError, match="008.jpg .No such file"):
        open_store(table, tmp_path / "s")


def test_store_folder_that_is_a_file(tmp_path):
    table = save_table(tmp_path / "a", natural(1, 20, 20))
    (tmp_path / "s").write_text("")
    with pytest.raises(UserError, match="cannot hold the decoded images"):
        open_store(table, tmp_path / "s")


def _count_and_open(table, folder, decoded, results):
    original = image_store.decode

    def counting(path):
        with decoded.get_lock():
            decoded.value += 1
        return original(path)

    image_store.decode = counting
    store = open_store(table, folder, threads=1)
    results.put(int(sum(store.image(i).sum() for i in range(len(table)))))


def test_two_processes_build_one_store(tmp_path):
    images = natural(60)
    table = save_table(tmp_path / "a", images)
    (tmp_path / "s").mkdir()
    context = multiprocessing.get_context("fork")
    decoded, results = context.Value("i", 0), context.Queue()
    arguments = (table, tmp_path / "s", decoded, results)
    both = [context.Process(target=_count_and_open, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    sums = [results.get(timeout=60) for _ in both]
    for process in both:
        process.join(60)
    assert sums == [int(images.sum())] * 2
    assert decoded.value == 60  # once, not twice
    assert len(os.listdir(tmp_path / "s")) == 1


def test_a_sigterm_is_noticed_while_another_run_decodes(tmp_path, monkeypatch):
    table = save_table(tmp_path / "a", natural(4))
    store = open_store(table, tmp_path / "s")
    (path,) = store.files
    path.unlink()
    monkeypatch.setattr(PREEMPTION, "requested", True)
    with open(path.with_suffix(".lock"), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as stopped:
            open_store(table, tmp_path / "s")
    assert stopped.value.code == PREEMPTED
    assert not path.exists()


def _build_and_die(table, folder):
    original = image_store.write_at

    def deadly(descriptor, data, offset):
        original(descriptor, data, offset)
        os.kill(os.getpid(), 9)

    image_store.write_at = deadly
    open_store(table, folder, threads=1)


def test_killed_builder_leaves_no_lock_and_no_rubbish(tmp_path):
    images = natural(6)
    table = save_table(tmp_path / "a", images)
    process = multiprocessing.get_context("fork").Process(
        target=_build_and_die, args=(table, tmp_path / "s")
    )
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert any(name.endswith(".tmp") for name in os.listdir(tmp_path / "s"))
    store = open_store(table, tmp_path / "s")
    assert all(np.array_equal(store.image(i), images[i]) for i in range(6))
    assert os.listdir(tmp_path / "s") == [store.files[0].name]
