"""Writes small image sets in the layouts of the official files, independently of the readers."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np

REAL = Path(__file__).parents[2] / "shared" / "data"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")

IDX_PREFIX = {"train": "train", "test": "t10k"}
CIFAR_BATCHES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}
CIFAR_FOLDERS = {
    ("cifar10", "binary"): ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    ("cifar10", "python"): ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ("cifar100", "binary"): ("cifar-100-binary", "cifar-100-binary.tar.gz"),
    ("cifar100", "python"): ("cifar-100-python", "cifar-100-python.tar.gz"),
}


def random_set(n, shape, classes, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), np.uint8)
    return images, (np.arange(n) % classes).astype(np.uint8)


def idx_bytes(array, kind=8):
    return (
        bytes([0, 0, kind, array.ndim])
        + b"".join(struct.pack(">I", n) for n in array.shape)
        + array.tobytes()
    )


def write_idx(folder, split, images, labels, *, gz=True):
    folder.mkdir(parents=True, exist_ok=True)
    for what, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
        name, data = f"{IDX_PREFIX[split]}-{what}-ubyte", idx_bytes(array)
        if gz:
            (folder / f"{name}.gz").write_bytes(
                gzip.compress(data, mtime=0)
            )  # the same bytes at any time
        else:
            (folder / name).write_bytes(data)


def _planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar_binary(images, labels, label_bytes):
    coarse = np.full((len(labels), label_bytes - 1), 7, np.uint8)
    return np.hstack([coarse, labels[:, None], _planes(images)]).tobytes()


def cifar_pickle_python3(images, labels, key):
    return pickle.dumps({b"data": _planes(images), key: labels.tolist()}, protocol=2)


def cifar_pickle_python2(images, labels, key):
    """The opcodes Python 2 wrote: `str` for text and bytes alike, numpy's old module names."""

    def text(value):
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    planes = _planes(images)
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n"
    array += b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    shape = number(planes.shape[0]) + number(planes.shape[1]) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(planes.tobytes()) + b"tb"
    listed = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(key) + listed + b"u."


def cifar_files(name, form, split, images, labels):
    """`{file name: contents}` of the batches of a split."""
    batches = CIFAR_BATCHES[name][split]
    parts = np.array_split(np.arange(len(images)), len(batches))
    if form == "binary":
        size = 1 if name == "cifar10" else 2
        return {
            f"{batch}.bin": cifar_binary(images[part], labels[part], size)
            for batch, part in zip(batches, parts, strict=True)
        }
    dump = cifar_pickle_python3 if form == "python3" else cifar_pickle_python2
    key = b"labels" if name == "cifar10" else b"fine_labels"
    return {
        batch: dump(images[part], labels[part], key)
        for batch, part in zip(batches, parts, strict=True)
    }


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_cifar(folder, name, form, split, images, labels, *, archive):
    folder.mkdir(parents=True, exist_ok=True)
    inner, tar = CIFAR_FOLDERS[name, form.rstrip("23")]
    files = cifar_files(name, form, split, images, labels)
    if archive:
        write_tar(folder / tar, {f"{inner}/{f}": data for f, data in files.items()})
    else:
        (folder / inner).mkdir(exist_ok=True)
        for file, data in files.items():
            (folder / inner / file).write_bytes(data)


def write_images(folder, per_class, *, size=(6, 5), mode="RGB", suffix=".png", seed=0):
    """`{class: [n h w c]}` written as `folder/<class>/<i>.png`; gives the arrays back."""
    from PIL import Image

    rng, arrays = np.random.default_rng(seed), {}
    for name, count in per_class.items():
        (folder / name).mkdir(parents=True)
        shape = (count, *size, 3) if mode == "RGB" else (count, *size)
        arrays[name] = rng.integers(0, 256, shape, np.uint8)
        for i, pixels in enumerate(arrays[name]):
            Image.fromarray(pixels).save(folder / name / f"{i:03}{suffix}")
    return arrays


def png(pixels):
    """An image as the bytes of a file, whatever its name will be: exact, as JPEG is not."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def random_pixels(count, *sizes, seed=0):
    """So many images whose sizes take turns."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*sizes[i % len(sizes)], 3), np.uint8) for i in range(count)]


def write_files(place, files, form):
    """`{name: contents}` as a folder, a zip or a tar called `place`, folders included."""
    if form == "folder":
        for name, data in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    elif form == "zip":
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("a-folder")
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        compression = "gz" if form == "tgz" else ""
        with tarfile.open(place, f"w:{compression}") as archive:  # pyright: ignore
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


TINY_WORDS = {
    "n02124075": "Egyptian cat",
    "n01770393": "scorpion",
    "n02012849": "crane",
    "n03126707": "crane",
}


def tiny_imagenet_files(pixels, words=TINY_WORDS):
    """`({name: contents}, {split: [n]} labels)`; the classes of a split's images take turns."""
    wnids = list(words)
    labels = {split: np.arange(len(x)) % len(wnids) for split, x in pixels.items()}
    files, annotations = {}, []
    for i, label in enumerate(labels["train"]):
        name = f"train/{wnids[label]}/images/{wnids[label]}_{i // len(wnids)}.JPEG"
        files[name] = png(pixels["train"][i])
        files[f"train/{wnids[label]}/{wnids[label]}_boxes.txt"] = b"0 0 0 62 62"
    for i, label in enumerate(labels["test"]):
        files[f"val/images/val_{i}.JPEG"] = png(pixels["test"][i])
        annotations.append(f"val_{i}.JPEG\t{wnids[label]}\t0\t0\t62\t62")
    files["test/images/test_0.JPEG"] = png(pixels["test"][0])
    files["val/val_annotations.txt"] = "\n".join(annotations).encode()
    files["wnids.txt"] = "\n".join(wnids).encode()
    lines = [f"{wnid}\t{name}, another name" for wnid, name in words.items()]
    files["words.txt"] = "\n".join([*lines, "n00001740\tentity"]).encode()
    return {f"tiny-imagenet-200/{name}": data for name, data in files.items()}, labels


BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")


def cub_files(pixels, birds=BIRDS):
    """Likewise; training and test images are listed in turn."""
    labels = {split: np.arange(len(x)) % len(birds) for split, x in pixels.items()}
    files, tables = {}, {"images": [], "image_class_labels": [], "train_test_split": []}
    number = 0
    for i in range(len(pixels["train"])):
        for split in ("train", "test"):
            number += 1
            name = f"{birds[labels[split][i]]}/{split}_{i}.jpg"
            files[f"images/{name}"] = png(pixels[split][i])
            tables["images"].append(f"{number} {name}")
            tables["image_class_labels"].append(f"{number} {labels[split][i] + 1}")
            tables["train_test_split"].append(f"{number} {int(split == 'train')}")
    tables["classes"] = [f"{i + 1} {bird}" for i, bird in enumerate(birds)]
    files |= {f"{name}.txt": "\n".join(lines).encode() for name, lines in tables.items()}
    return {f"CUB_200_2011/{name}": data for name, data in files.items()}, labels


def imagenette_files(pixels, folder, wnids):
    """Likewise."""
    labels = {split: np.arange(len(x)) % len(wnids) for split, x in pixels.items()}
    files = {"noisy.csv": b"path"}
    for split, inside in (("train", "train"), ("test", "val")):
        for i, label in enumerate(labels[split]):
            name = f"{inside}/{wnids[label]}/{wnids[label]}_{i // len(wnids)}.JPEG"
            files[name] = png(pixels[split][i])
        files[f"{inside}/{wnids[0]}/._hidden.JPEG"] = b"of a Mac"
    return {f"{folder}/{name}": data for name, data in files.items()}, labels


def write_imagenet_batches(folder, pixels, classes, savez=np.savez):
    """The down-sampled images: ten files of the training split, one of the other."""
    (folder / "Imagenet64_train").mkdir(parents=True)
    train = [folder / "Imagenet64_train" / f"train_data_batch_{i}.npz" for i in range(1, 11)]
    for split, files in (("train", train), ("test", [folder / "val_data.npz"])):
        planes = _planes(np.stack(pixels[split]))
        labels = np.arange(len(planes)) % classes + 1
        parts = np.array_split(np.arange(len(planes)), len(files))
        for file, part in zip(files, parts, strict=True):
            content = {"data": planes[part], "labels": labels[part]}
            savez(file, **content, mean=np.zeros(planes.shape[1]))
