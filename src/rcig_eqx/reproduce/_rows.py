"""The paper's experiments as values: one `Row` for each row of its Tables 2, 4, 7 and 8."""

from dataclasses import dataclass

Number = tuple[float, float]
"""A percentage, its mean and standard deviation as the paper states them."""


@dataclass(frozen=True)
class DatasetFacts:
    """What a data set's rows have in common."""

    title: str  # as in the paper's tables
    shape: tuple[int, int, int]  # height, width and channels that the paper distills at
    classes: int
    images: int  # of the training split


DATASETS = {
    "mnist": DatasetFacts("MNIST", (28, 28, 1), 10, 60_000),
    "fashion_mnist": DatasetFacts("Fashion-MNIST", (28, 28, 1), 10, 60_000),
    "cifar10": DatasetFacts("CIFAR-10", (32, 32, 3), 10, 50_000),
    "cifar100": DatasetFacts("CIFAR-100", (32, 32, 3), 100, 50_000),
    "tiny_imagenet": DatasetFacts("Tiny-ImageNet", (64, 64, 3), 200, 100_000),
    "cub200": DatasetFacts("CUB-200", (32, 32, 3), 200, 5_994),
    "imagenette": DatasetFacts("ImageNette", (128, 128, 3), 10, 9_469),
    "imagewoof": DatasetFacts("ImageWoof", (128, 128, 3), 10, 9_025),
    "imagenet64": DatasetFacts("ImageNet", (64, 64, 3), 1000, 1_281_167),
}
"""The data sets of the paper, by the names that `data.load` and `data.open_records` take."""


@dataclass(frozen=True)
class Row:
    """One experiment of the paper, at the paper's scale (appendix C).

    `subset` is as appendix C has it. Section 3.6 speaks of every set above 1,000; CUB-200 at 10 a
    class has no size stated, and all here.
    """

    dataset: str
    images_per_class: int
    steps: int  # outer iterations (Table 7)
    seconds: float  # of one iteration, on the paper's GPUs (Table 7)
    plain: Number  # accuracy without augmentation at evaluation (Table 8)
    augmented: Number  # with it; Tables 2 and 4 have the better of the two
    frepo: Number | None = None  # the best baseline that shares this library's parts (Tables 2, 4)
    subset: int | None = None  # distilled images of a backward pass, all if `None`
    float64: bool = False  # whether the ridge system is solved in double precision
    width: int = 128  # filters of the first block

    @property
    def name(self) -> str:
        """How the row is asked for: `fashion_mnist/1`."""
        return f"{self.dataset}/{self.images_per_class}"

    @property
    def facts(self) -> DatasetFacts:
        """Of its data set."""
        return DATASETS[self.dataset]

    @property
    def images(self) -> int:
        """|S|: distilled images, mirrored ones not counted."""
        return self.images_per_class * self.facts.classes

    @property
    def mirrored_images(self) -> int:
        """Distilled images, mirrored ones counted."""
        return self.images * (2 if self.flip else 1)

    @property
    def depth(self) -> int:
        """Blocks: 3, 4 or 5 for images of up to 32, 64 or 128 pixels."""
        return {32: 3, 64: 4, 128: 5}[max(32, self.facts.shape[0])]

    @property
    def l2_rate(self) -> float:
        """λ / |S|, by depth."""
        return {3: 5e-4, 4: 5e-3, 5: 5e-2}[self.depth]

    @property
    def flip(self) -> bool:
        """Whether the set also stands for its mirror images: in color, up to 1,000."""
        return self.facts.shape[2] == 3 and self.images <= 1000

    @property
    def block(self) -> int | None:
        """Pixels of a side of the blocks that are whitened together, `None` for whole images."""
        return 64 if self.facts.shape[0] > 64 else None

    @property
    def augment(self) -> bool:
        """Whether Tables 2 and 4 have this row's accuracy with augmentation."""
        return self.augmented > self.plain

    @property
    def paper(self) -> Number:
        """The accuracy in Tables 2 and 4."""
        return max(self.plain, self.augmented)


TABLE_2 = (
    Row("mnist", 1, 15_000, 0.16, (94.7, 0.5), (92.7, 0.8), (93.0, 0.4)),
    Row("mnist", 10, 10_000, 0.45, (98.9, 0.0), (98.7, 0.1), (98.6, 0.1)),
    Row("mnist", 50, 5_000, 1.98, (99.1, 0.1), (99.2, 0.0), (99.2, 0.0), float64=True),
    Row("fashion_mnist", 1, 15_000, 0.16, (79.8, 1.1), (70.5, 3.5), (75.6, 0.3)),
    Row("fashion_mnist", 10, 10_000, 0.45, (88.5, 0.2), (86.7, 0.2), (86.2, 0.2)),
    Row("fashion_mnist", 50, 5_000, 1.92, (90.2, 0.2), (88.7, 0.2), (89.6, 0.1), float64=True),
    Row("cifar10", 1, 15_000, 0.18, (53.9, 1.0), (50.9, 1.5), (46.8, 0.7)),
    Row("cifar10", 10, 10_000, 0.65, (69.1, 0.4), (66.4, 1.0), (65.5, 0.4)),
    Row("cifar10", 50, 5_000, 2.94, (73.5, 0.3), (72.6, 0.4), (71.7, 0.2)),
    Row("cifar100", 1, 10_000, 0.68, (39.3, 0.4), (36.7, 0.3), (28.7, 0.1)),
    Row("cifar100", 10, 5_000, 6.15, (44.1, 0.4), (43.5, 0.3), (42.5, 0.2)),
    Row("cifar100", 50, 4_000, 10.09, (45.5, 0.4), (46.7, 0.3), (44.3, 0.2), subset=2000),
    Row("tiny_imagenet", 1, 5_000, 5.60, (25.6, 0.3), (24.2, 0.2), (15.4, 0.3)),
    Row("tiny_imagenet", 10, 2_000, 11.58, (27.4, 0.3), (29.4, 0.2), (25.4, 0.2), subset=500),
    Row("cub200", 1, 10_000, 0.99, (11.2, 0.4), (12.1, 0.2), (12.4, 0.2)),
    Row("cub200", 10, 2_000, 17.24, (14.3, 0.3), (15.7, 0.3), (16.8, 0.1)),
)
TABLE_4 = (
    Row("imagenette", 1, 6_000, 3.03, (53.0, 0.9), (47.2, 1.2), (48.1, 0.7)),
    Row("imagenette", 10, 3_000, 15.15, (65.0, 0.7), (63.9, 0.8), (66.5, 0.8)),
    Row("imagewoof", 1, 6_000, 2.87, (33.9, 0.6), (27.0, 2.1), (29.7, 0.6)),
    Row("imagewoof", 10, 3_000, 13.22, (42.2, 0.7), (40.2, 0.6), (42.2, 0.9)),
    Row("imagenet64", 1, 2_000, 8.55, (14.6, 0.2), (15.6, 0.2), (7.5, 0.3), subset=500),
    Row("imagenet64", 2, 2_000, 12.37, (15.9, 0.1), (16.6, 0.1), (9.7, 0.2), subset=500),
)
ROWS = {row.name: row for row in (*TABLE_2, *TABLE_4)}
"""The rows of the paper's tables by name, such as `"fashion_mnist/1"`."""

# Table 1: what each method of the paper reaches, by row and method.
_METHODS = ("random", "vig", "cig", "rig", "rcig_paper")
TABLE_1: dict[str, dict[str, Number]] = {
    row: dict(zip(_METHODS, numbers, strict=True))
    for row, *numbers in (
        ("mnist/1", (62.73, 0.95), (77.42, 1.41), (69.23, 1.43), (94.80, 0.43), (94.79, 0.35)),
        ("mnist/10", (93.22, 0.16), (90.17, 0.61), (95.37, 0.26), (98.55, 0.11), (98.93, 0.03)),
        ("mnist/50", (97.79, 0.12), (91.43, 0.35), (95.78, 0.17), (98.88, 0.08), (99.23, 0.03)),
        ("cifar10/1", (20.76, 0.49), (26.54, 1.20), (29.70, 0.95), (44.48, 4.33), (52.75, 0.76)),
        ("cifar10/10", (38.43, 0.36), (54.61, 0.13), (56.48, 0.60), (66.16, 0.78), (69.24, 0.40)),
        ("cifar10/50", (54.44, 0.34), (35.63, 0.59), (56.68, 0.57), (62.07, 4.02), (73.34, 0.29)),
        ("cifar100/1", (6.24, 0.08), (17.79, 0.13), (19.72, 0.55), (18.39, 2.84), (39.55, 0.16)),
        ("cifar100/10", (21.08, 0.11), (29.30, 0.13), (31.36, 0.23), (46.09, 0.23), (44.14, 0.25)),
    )
}

# As many random real images as there are distilled ones (Tables 1 and 4).
RANDOM: dict[str, Number] = {row: methods["random"] for row, methods in TABLE_1.items()} | {
    "imagenette/1": (23.5, 4.8), "imagenette/10": (47.4, 2.4), "imagewoof/1": (14.2, 0.9),
    "imagewoof/10": (27.0, 1.9), "imagenet64/1": (1.1, 0.1), "imagenet64/2": (1.4, 0.1),
}  # fmt: skip

# Table 3: CIFAR-10 at 10 images per class, by the normalization distilled with and the network
# evaluated with. "DN", the default normalization, is the one distilled with.
_NETWORKS = ("conv-dn", "conv-nn", "resnet-dn", "resnet-bn", "vgg-bn", "alexnet")


def _across(*numbers: Number) -> dict[str, Number]:
    return dict(zip(_NETWORKS, numbers, strict=True))


TABLE_3: dict[str, dict[str, Number]] = {
    "none": _across((69.1, 0.4), (69.1, 0.4), (51.3, 1.7), (49.7, 1.4), (46.2, 1.8), (60.8, 1.8)),
    "batch": _across((66.0, 0.6), (66.0, 0.6), (54.4, 1.1), (54.8, 1.1), (55.4, 1.1), (62.1, 0.8)),
}
# Distilled with batch normalization.
TABLE_3_FREPO = _across(
    (65.5, 0.4), (65.5, 0.4), (54.4, 0.8), (52.4, 0.7), (55.4, 0.7), (61.6, 0.2)
)

# Tables 5 and 6: test accuracy and attack AUC, of the paper's RCIG and FRePo 500 distilled images.
PRIVACY_COLUMNS = ("Test, %", "Threshold", "LR", "MLP", "RF", "KNN")
TABLE_5: dict[str, tuple[Number, ...]] = {
    "real": ((99.2, 0.1), (0.99, 0.01), (0.99, 0.00), (1.00, 0.00), (1.00, 0.00), (0.97, 0.00)),
    "subset": ((96.8, 0.2), (0.52, 0.00), (0.50, 0.01), (0.53, 0.01), (0.55, 0.00), (0.54, 0.00)),
    "distilled": ((98.9, 0.0), (0.49, 0.0), (0.50, 0.0), (0.53, 0.0), (0.53, 0.0), (0.52, 0.0)),
    "frepo": ((98.5, 0.1), (0.52, 0.00), (0.51, 0.00), (0.53, 0.01), (0.52, 0.01), (0.51, 0.01)),
}
TABLE_6: dict[str, tuple[Number, ...]] = {
    "real": ((89.7, 0.2), (0.99, 0.01), (0.99, 0.00), (0.99, 0.00), (0.99, 0.00), (0.98, 0.00)),
    "subset": ((81.1, 0.7), (0.53, 0.01), (0.51, 0.01), (0.52, 0.01), (0.52, 0.01), (0.53, 0.00)),
    "distilled": ((86.7, 0.3), (0.5, 0.01), (0.5, 0.01), (0.5, 0.01), (0.5, 0.01), (0.5, 0.0)),
    "frepo": ((87.6, 0.2), (0.52, 0.00), (0.53, 0.01), (0.53, 0.01), (0.53, 0.01), (0.52, 0.00)),
}
