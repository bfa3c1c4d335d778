"""Every wrong call and file is told apart before any work, in words that name the fix.

The table runs in a process of its own, without runtime type checking, as users run it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES: dict[str, tuple[str, str]] = {
    # name: (exception, what its message must say)
    "images_without_channels": ("ValueError", r"not \[n h w c\].*images\[\.\.\., None\]"),
    "images_empty": ("ValueError", "images are empty"),
    "images_int32": ("ValueError", r"images are int32: pass uint8 .* or floats"),
    "images_nan": ("ValueError", r"NaN or infinite pixels.*nan_to_num"),
    "images_inf": ("ValueError", r"NaN or infinite pixels.*nan_to_num"),
    "labels_one_hot": ("ValueError", r"look one-hot: pass labels\.argmax"),
    "flip_a_number": ("ValueError", "flip is 1: pass a value such as True, False or None"),
    "labels_float": ("ValueError", r"not integers: pass labels\.astype"),
    "labels_negative": ("ValueError", "renumber the classes from 0"),
    "labels_out_of_range": ("ValueError", r"must lie in 0\.\.1"),
    "labels_of_other_length": ("ValueError", "one integer label per image"),
    "class_names_twice": ("ValueError", "duplicates: a"),
    "class_too_small": ("ValueError", r"too few are there of 'b' \(2\): ask for fewer or add"),
    "balanced_a_number": ("ValueError", "balanced is 1: pass a value such as True, False or None"),
    "balanced_grain": ("ValueError", "balanced needs a set whose labels are known"),
    "train_a_bare_array": ("ValueError", r"pass a Dataset, \(images, labels\)"),
    "images_per_class_0": ("ValueError", "images_per_class is 0.*at least 1"),
    "images_per_class_float": ("ValueError", "images_per_class is 1.5.*whole number"),
    "steps_0": ("ValueError", "steps is 0.*at least 1"),
    "batch_size_0": ("ValueError", "batch_size is 0.*at least 1"),
    "batch_size_too_large": ("ValueError", r"batch_size is 99: choose it in 1\.\.12"),
    "key_an_int": ("ValueError", r"pass one key, such as jax\.random\.key\(0\)"),
    "key_missing": ("TypeError", "missing 1 required keyword-only argument: 'key'"),
    "keys_many": ("ValueError", "pass one key"),
    "initialization_unknown": ("ValueError", "initialization is .*choose one of real, noise"),
    "method_a_string": ("ValueError", r"method is 'rcig': .*methods\.rcig\(\)"),
    "optimizer_a_float": ("ValueError", r"optimizer is 0\.1: .*coreset_optimizer\("),
    "preprocess_a_function": ("ValueError", r"preprocess is .*data\.zca\(images\)"),
    "pool_a_number": ("ValueError", r"pool is 3: .*PoolSchedule\(size"),
    "average_a_number": ("ValueError", r"average is 0\.9: .*ema\(0\.99\)"),
    "average_not_made": ("ValueError", r"average is ema: pass a function .* such as ema\(0\.99\)"),
    "growing_average_not_made": ("ValueError", r"average is growing_average: pass"),
    "callbacks_not_callable": ("ValueError", "pass a sequence of functions"),
    "callbacks_one_function": ("ValueError", "pass a sequence of functions"),
    "devices_one": ("ValueError", r"pass a sequence of them, as jax\.devices\(\)"),
    "devices_none_at_all": ("ValueError", "devices is empty: pass at least one"),
    "devices_twice": ("ValueError", "holds one twice.*Pass each once"),
    "model_an_instance": ("ValueError", r"a function from a key to a network.*convnet_for\("),
    "model_not_made": ("ValueError", r"cannot be called with a key .*: pass .*convnet_for\(train"),
    "model_a_class": ("ValueError", r"cannot be called with a key .*: pass .*convnet_for\(train"),
    "model_with_statistics": ("ValueError", r"stores statistics .*models\.AbstractBatchNetwork"),
    "evaluate_learning_rate": ("ValueError", "learning_rate of 0.0 learns nothing"),
    "model_makes_no_network": ("ValueError", "made a Linear; it must be .*AbstractNetwork"),
    "model_other_classes": ("ValueError", "build it with num_classes=2"),
    "model_other_size": ("ValueError", r"does not take images \(8, 8, 1\): build it"),
    "model_other_channels": ("ValueError", r"does not take images.*1 channels and the kernel"),
    "conv_channels": ("ValueError", "have 6 channels and the kernel .* takes 3"),
    "conv_dtypes": ("TypeError", "pass one dtype"),
    "model_too_deep": ("ValueError", "too small for depth=9.*smaller depth"),
    "solve_float64_without_x64": ("ValueError", "jax_enable_x64"),
    "learning_rate_negative": ("ValueError", "learning_rate is -0.1: .* positive"),
    "learning_rate_negative_array": ("ValueError", "learning_rate is -0.1.*: .* positive"),
    "normalization_unknown": ("ValueError", "normalization is 'bacth'.*did you mean 'batch'"),
    "softplus_negative": ("ValueError", "softplus is -1.0: it must be positive, or None"),
    "pool_min_above_max": ("ValueError", "min_visit <= max_visit must hold"),
    "pool_networks_0": ("ValueError", r"networks_per_step is 0: choose it in 1\.\.30"),
    "pool_networks_many": ("ValueError", r"choose it in 1\.\.3, the size of the pool"),
    "pool_empty": ("ValueError", "size is 0: it must be a whole number of at least 1"),
    "images_to_255": ("ValueError", r"floats from 0 to 200, .*divide by 255"),
    "images_standardized": ("ValueError", "leave standardizing to preprocess="),
    "outer_loss_arguments": ("ValueError", "outer_loss cannot be called .*log_temperature"),
    "outer_loss_rows": ("ValueError", "not one number"),
    "inner_loss_closed_form": ("ValueError", r"closed form.*methods\.cig\(inner_loss=\.\.\.\)"),
    "inner_loss_weights": ("ValueError", r"weights have shape \(3, 1\).*pass \[n 1\]"),
    "inner_loss_rows": ("ValueError", "inner_loss returned .*, not one number"),
    "l2_a_number": ("ValueError", r"l2 is 0\.1: pass a function"),
    "network_head": ("ValueError", r"head is a Conv2d: .*must be an equinox\.nn\.Linear"),
    "network_sizes": ("ValueError", "build it for .* 64 features .* the head takes 9"),
    "initialization_images": ("ValueError", r"initialization has images \(1, 8, 8, 1\), where"),
    "initialization_made": ("ValueError", "initialization is .*AbstractInitializer"),
    "parameterization_a_function": ("ValueError", r"parameterization is .*plain\(\)"),
    "adam_rate": ("ValueError", "learning_rate is -1.0: it must be positive"),
    "adam_steps": ("ValueError", "steps is -1: it must be a whole number"),
    "adam_untuned": ("ValueError", r"find one with tune\(state, batch\)"),
    "neumann_step": ("ValueError", "step_size is 0.0: it must be positive"),
    "adam_steps_half": ("ValueError", "steps is 2.5: it must be a whole number"),
    "neumann_terms": ("ValueError", "max_steps is 0: it must be a whole number of at least 1"),
    "rig_inner_cg": ("ValueError", r"not quadratic: pass Adam\(\)"),
    "vig_dual": ("ValueError", "solves only the linearized problem of a SquaredError"),
    "frepo_dtype": ("ValueError", "needs 64-bit numbers"),
    "subset_half": ("ValueError", "subset is 1.5: it must be a whole number"),
    "staged_half": ("ValueError", "steps is 2.9: it must be a whole number"),
    "staged_class": ("ValueError", r"first is .*frepo.*: pass a method, such as methods\.rcig\(\)"),
    "preset_of_a_value": ("ValueError", r"method is Rcig\((.|\n)*pass what makes one"),
    "below_largest": ("ValueError", r"below_largest is 0\.0: it must be in \(0, 1\]"),
    "one_class": ("ValueError", "train has one class: pass two or more"),
    "vig_dtype": ("ValueError", r"this method \(cig, vig\) trains the head: leave dtype out"),
    "cig_clip": ("ValueError", r"zero where the head is trained .*leave clip out"),
    "paper_damping": ("ValueError", "damping is -1.0: it must be a number of at least 0"),
    "paper_one_step": ("ValueError", "one step shows no trend"),
    "shrink": ("ValueError", r"shrink is 1\.1: it must be in \(0, 1\]"),
    "shrink_text": ("ValueError", r"shrink is 'often': it must be in \(0, 1\]"),
    "paper_solver": ("ValueError", "solver is 'cg': pass a value of rcig_eqx.solvers"),
    "ema_of_one": ("ValueError", r"decay is 1\.0: it must be in \[0, 1\)"),
    "growing_average_negative": ("ValueError", "sharpness is -1.0: .* at least 0"),
    "falling_rate_of_nothing": ("ValueError", "(peak|hold) is 0"),
    "falling_rate_at_once": ("ValueError", "(peak|hold) is 0"),
    "cg_rtol": ("ValueError", "rtol is 2.0: it must be between 0 and 1"),
    "rtol_none": ("ValueError", "rtol is None: it must be between 0 and 1"),
    "rtol_text": ("ValueError", "rtol is '1e-3': it must be between 0 and 1"),
    "damping_text": ("ValueError", "damping is '0.1': it must be a number of at least 0"),
    "margin_text": ("ValueError", "margin is 'no': pass True or False"),
    "ridge_dtype_int": ("ValueError", r"dtype is int32: .* jnp\.float32 or jnp\.float64"),
    "ridge_dtype_half": ("ValueError", r"dtype is float16: .* jnp\.float32 or jnp\.float64"),
    "ridge_dtype_text": ("ValueError", "dtype is 'double precision': pass"),
    "checkpoint_every_text": ("ValueError", "every is '60': it must be seconds"),
    "width_text": ("ValueError", "width is '16': it must be a whole number"),
    "softplus_text": ("ValueError", "softplus is 'papr': it must be positive, or None"),
    "labels_from_one": ("ValueError", r"too few .* '0' \(0\): labels count from 0; subtract 1"),
    "rcig_l2_rate": ("ValueError", "l2_rate is 0.0: it must be positive"),
    "rcig_solver": ("ValueError", r"solver is Dual, .*pass the solver within, such as"),
    "rcig_label_solver": ("ValueError", "label_solver is 'cg': pass a value of rcig_eqx.solvers"),
    "dual_of_dual": ("ValueError", r"solver is Dual, .*pass the solver within, such as"),
    "frepo_l2_rate": ("ValueError", "l2_rate is -1.0: it must be positive"),
    "pool_learning_rate": ("ValueError", "learning_rate is 0.0: it must be positive"),
    "cg_max_steps": ("ValueError", "max_steps is 0: it must be a whole number of at least 1"),
    "zca_regularization": ("ValueError", "make it positive, such as 0.1"),
    "evaluate_other_size": ("ValueError", "evaluate on the data set that was distilled"),
    "evaluate_more_classes": ("ValueError", "2 classes and the test set 3"),
    "evaluate_without_preprocess": ("ValueError", "pass the DistillResult itself"),
    "evaluate_an_array": ("ValueError", "pass what distill or load_result returned"),
    "evaluate_labels_nan": ("ValueError", "distilled has labels that are NaN"),
    "evaluate_images_infinite": ("ValueError", "distilled has images that are NaN or infinite"),
    "evaluate_labels_shape": ("ValueError", r"labels \(2,\): make them .*\[n classes\]"),
    "evaluate_labels_rows": ("ValueError", r"labels \(1, 2\): make them .*\[n classes\]"),
    "evaluate_labels_numbers": ("ValueError", "distilled has labels of int32"),
    "evaluate_images_bytes": ("ValueError", "distilled has images of uint8"),
    "evaluate_test_labels_nan": ("ValueError", "labels are float64, not integers"),
    "evaluate_class_names": ("ValueError", "class_names holds duplicates: a"),
    "evaluate_class_names_text": ("ValueError", "class_names is .ab. .str.: pass a list of text"),
    "evaluate_baseline_true": ("ValueError", "bool is no labeled set"),
    "evaluate_baseline_classes": ("ValueError", "baseline has images .* of 1 classes"),
    "evaluate_baseline_size": ("ValueError", r"baseline has images \(8, 7, 1\)"),
    "export_a_coreset": ("ValueError", "result is a Coreset.*: pass what distill"),
    "evaluate_on_an_array": ("ValueError", r"pass a Dataset, \(images, labels\)"),
    "evaluate_no_networks": ("ValueError", "num_networks is 0.*at least 1"),
    "evaluate_key_an_int": ("ValueError", "pass one key"),
    "evaluate_augment": ("ValueError", "augment is 3: pass True"),
    "distill_augment": ("ValueError", "augment is 3: pass True"),
    "evaluate_augment_unknown": ("ValueError", "did you mean 'flip'"),
    "augment_mode": ("ValueError", "mode is 'any': .*one, all"),
    "evaluate_labels": ("ValueError", "did you mean 'hard'"),
    "cross_evaluate_list": ("ValueError", "distilled is a list"),
    "cross_evaluate_nothing": ("ValueError", "pass one set and one model"),
    "cross_evaluate_empty_row": ("ValueError", "no sets in row 'a'"),
    "hold_out_all": ("ValueError", "leaves none on one side"),
    "hold_out_part": ("ValueError", "part is 2.0"),
    "keep_best_on_arrays": ("ValueError", "pass a Dataset, as hold_out returns"),
    "keep_best_never": ("ValueError", "every is 0"),
    "evaluate_model_instance": ("ValueError", "a function from a key to a network"),
    "grid_of_no_coreset": ("ValueError", r"no coreset .*: pass result\.coreset"),
    "grid_without_preprocess": ("ValueError", r"pass result\.coreset"),
    "grid_names": ("ValueError", "pass one name per class"),
    "dataset_unknown": ("ValueError", "Did you mean 'fashion_mnist'"),
    "dataset_no_file": ("DataError", r"there is no \.npz file or folder .*: check the path"),
    "dataset_not_npz": ("DataError", r"cannot be read as an \.npz .*np\.savez_compressed"),
    "split_unknown": ("ValueError", "Did you mean 'test'"),
    "result_missing": ("FileNotFoundError", "does not exist"),
    "published_flip": ("ValueError", "flip is 1: pass True or False"),
    "published_normalized": ("ValueError", "normalized is 'no': pass True or False"),
    "published_preprocess": ("ValueError", r"preprocess is not for images \[8, 8, 1\]: pass one"),
    "published_experiment": ("ValueError", "experiment is 'best': pass one of 0 to 0"),
    "published_a_list": ("ValueError", "distilled is a list: pass what distill"),
    "result_is_no_result": ("DataError", "damaged or no distilled set"),
}


def collect() -> dict[str, list[str]]:
    """What each case raises: type, its module, message."""
    import tempfile

    import equinox as eqx
    import grain
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np

    import rcig_eqx as r
    from rcig_eqx._ridge import kernel_ridge

    images, labels = np.zeros((12, 8, 8, 1), np.uint8), np.repeat([0, 1], 6).astype(np.int32)
    images[6:] = 200
    key, folder = jr.key(0), Path(tempfile.mkdtemp())
    network = r.convnet_for((8, 8, 1), 2, width=2, depth=1)
    preprocess = r.data.standardize(images)
    dataset = r.data.Dataset(images, labels, ("a", "b"))
    bare = r.initializers.real_coreset(dataset, 1, preprocess, key=key)
    coreset = eqx.tree_at(lambda c: c.preprocess, bare, preprocess, is_leaf=lambda x: x is None)
    (folder / "junk.npz").write_bytes(b"PK junk")
    (folder / "junk.safetensors").write_bytes(b"junk" * 10)
    np.savez(folder / "published.npz", image=images / 1.0, label=labels)
    callbacks = (lambda report: sys.exit("a step ran"),)

    def distill(train=(images, labels), **changed):
        given = {"images_per_class": 1, "key": key, "model": network, "batch_size": 4}
        given |= {"steps": 2, "callbacks": callbacks, "progress": False} | changed
        r.distill(train, **given)  # pyright: ignore[reportArgumentType]

    def evaluate(distilled=coreset, test=(images, labels), **changed):
        given = {"key": key, "steps": 1, "num_networks": 1, "progress": False} | changed
        r.evaluate(distilled, test, **given)

    def published(**changed):
        given = {"preprocess": preprocess} | changed
        r.io.load_published(folder / "published.npz", **given)  # pyright: ignore[reportArgumentType]

    def changed(field, value):
        return eqx.tree_at(lambda c: getattr(c, field), coreset, value)

    def spoiled(value):
        x = images.astype(np.float32) / 255
        x[3, 2, 1, 0] = value
        return x

    def net(**changed):
        given = {"in_channels": 1, "image_size": 8, "num_classes": 2, "width": 2, "depth": 1}
        return r.models.ConvNet(**(given | changed), key=key)  # pyright: ignore[reportArgumentType]

    def conv(x, **options):
        r.models.conv2d(x, jnp.ones((3, 3, 3, 4)), padding=1, **options)

    class WithStatistics(r.models.AbstractNetwork):
        head: r.models.Head
        normalize: r.models.Normalize

        def __init__(self, key):
            self.normalize = r.models.Normalize("batch", (8, 8, 1))
            self.head = r.models.Head(64, 2, key=key)

        def features(self, images):
            return images.reshape(len(images), -1)

    few = np.array([0] * 10 + [1] * 2)
    calls = {
        "images_without_channels": lambda: distill((images[..., 0], labels)),
        "images_empty": lambda: distill((images[:0], labels[:0])),
        "images_int32": lambda: distill((images.astype(np.int32), labels)),
        "images_nan": lambda: distill((spoiled(np.nan), labels)),
        "images_inf": lambda: distill((spoiled(np.inf), labels)),
        "labels_one_hot": lambda: distill((images, np.eye(2)[labels])),
        "flip_a_number": lambda: r.Recipe(flip=1),  # pyright: ignore
        "labels_float": lambda: distill((images, labels / 1)),
        "labels_negative": lambda: distill((images, labels - 1)),
        "labels_out_of_range": lambda: r.data.Dataset(images, labels + 1, ("a", "b")),
        "labels_of_other_length": lambda: distill((images, labels[1:])),
        "class_names_twice": lambda: r.data.Dataset(images, labels, ("a", "a")),
        "class_too_small": lambda: r.data.Dataset(images, few, ("a", "b")).per_class(
            3, np.random.default_rng(0)
        ),
        "balanced_a_number": lambda: r.Recipe(balanced=1),  # pyright: ignore
        "balanced_grain": lambda: distill(
            grain.MapDataset.range(12).map(lambda i: (images[i], labels[i])),
            recipe=r.Recipe(balanced=True),
        ),
        "train_a_bare_array": lambda: distill(images),
        "images_per_class_0": lambda: distill(images_per_class=0),
        "images_per_class_float": lambda: distill(images_per_class=1.5),
        "steps_0": lambda: distill(steps=0),
        "batch_size_0": lambda: distill(batch_size=0),
        "batch_size_too_large": lambda: distill(batch_size=99),
        "key_an_int": lambda: distill(key=0),
        "key_missing": lambda: r.distill((images, labels), images_per_class=1),  # pyright: ignore
        "keys_many": lambda: distill(key=jr.split(key)),
        "initialization_unknown": lambda: distill(initialization="reel"),
        "method_a_string": lambda: distill(method="rcig"),
        "optimizer_a_float": lambda: r.Recipe(optimizer=0.1),  # pyright: ignore
        "preprocess_a_function": lambda: distill(preprocess=r.data.zca),
        "pool_a_number": lambda: r.Recipe(pool=3),  # pyright: ignore
        "average_a_number": lambda: r.Recipe(average=0.9),  # pyright: ignore
        "average_not_made": lambda: r.Recipe(average=r.ema),  # pyright: ignore
        "growing_average_not_made": lambda: r.Recipe(average=r.growing_average),  # pyright: ignore
        "callbacks_not_callable": lambda: distill(callbacks=[1]),
        "callbacks_one_function": lambda: distill(callbacks=print),
        "devices_one": lambda: distill(devices=jax.devices()[0]),
        "devices_none_at_all": lambda: distill(devices=[]),
        "devices_twice": lambda: distill(devices=jax.devices()[:1] * 2),
        "model_an_instance": lambda: distill(model=network(key)),
        "model_not_made": lambda: distill(model=r.convnet_for),
        "model_a_class": lambda: distill(model=r.models.ConvNet),
        "model_with_statistics": lambda: distill(model=WithStatistics),
        "evaluate_learning_rate": lambda: evaluate(coreset, learning_rate=0.0),
        "model_makes_no_network": lambda: distill(model=lambda k: eqx.nn.Linear(2, 2, key=k)),
        "model_other_classes": lambda: distill(model=r.convnet_for((8, 8, 1), 3, 2, 1)),
        "model_other_size": lambda: distill(model=r.convnet_for((12, 12, 1), 2, 2, 1)),
        "model_other_channels": lambda: distill(model=r.convnet_for((8, 8, 3), 2, 2, 1)),
        "conv_channels": lambda: conv(jnp.ones((1, 8, 8, 6)), stride=2),
        "conv_dtypes": lambda: conv(jnp.ones((1, 8, 8, 3), jnp.bfloat16)),
        "model_too_deep": lambda: distill(model=r.convnet_for((8, 8, 1), 2, 2, 9)),
        "solve_float64_without_x64": lambda: kernel_ridge(
            jnp.eye(2), jnp.ones((2, 2)), 0.1, dtype="float64"
        ),
        "learning_rate_negative": lambda: r.coreset_optimizer(-0.1),
        "learning_rate_negative_array": lambda: r.coreset_optimizer(jnp.asarray(-0.1)),
        "normalization_unknown": lambda: net(normalization="bacth"),
        "softplus_negative": lambda: net(softplus=-1.0),
        "pool_min_above_max": lambda: r.PoolSchedule(min_visit=3, max_visit=2),
        "pool_networks_0": lambda: r.PoolSchedule(networks_per_step=0),
        "pool_networks_many": lambda: r.PoolSchedule(size=3, networks_per_step=4),
        "pool_empty": lambda: r.PoolSchedule(size=0),
        "images_to_255": lambda: distill((images.astype(np.float32), labels)),
        "images_standardized": lambda: distill((images / 100 - 1, labels)),
        "outer_loss_arguments": lambda: distill(
            method=r.methods.rcig(outer_loss=r._losses.label_margin)  # pyright: ignore[reportArgumentType]
        ),
        "outer_loss_rows": lambda: distill(
            method=r.methods.rcig(outer_loss=lambda f, y, t: (f - y).sum(1))
        ),
        "inner_loss_closed_form": lambda: r.methods.rcig(
            inner_loss=lambda f, y: ((f - y) ** 4).sum()
        ),
        "inner_loss_weights": lambda: distill(
            method=r.methods.rcig(inner_loss=r.SquaredError(np.ones((3, 1))))
        ),
        "inner_loss_rows": lambda: distill(
            method=r.methods.cig(inner_loss=lambda f, y: (f - y).sum(1))
        ),
        "l2_a_number": lambda: r.bilevel.LeastSquares(lambda theta, psi: theta, 0.1),  # pyright: ignore
        "network_head": lambda: r.models.Network(np.ravel, eqx.nn.Conv2d(1, 1, 1, key=key)),  # pyright: ignore
        "network_sizes": lambda: distill(
            model=lambda key: r.models.Network(jnp.ravel, eqx.nn.Linear(9, 2, key=key))
        ),
        "initialization_images": lambda: distill(
            initialization=eqx.tree_at(lambda c: c.images, bare, bare.images[:1])
        ),
        "initialization_made": lambda: distill(initialization=lambda key: 3),
        "parameterization_a_function": lambda: r.Recipe(parameterization=lambda c: c),  # pyright: ignore
        "adam_rate": lambda: r.solvers.Adam(-1.0),
        "adam_steps": lambda: r.solvers.Adam(steps=-1),
        "adam_untuned": lambda: r.solvers.Adam().rate(),
        "adam_steps_half": lambda: r.solvers.Adam(steps=2.5),  # pyright: ignore
        "neumann_step": lambda: r.solvers.Neumann(step_size=0.0),
        "neumann_terms": lambda: r.solvers.Neumann(0),
        "rig_inner_cg": lambda: r.methods.rig(inner=r.solvers.ConjugateGradient()),
        "vig_dual": lambda: r.methods.vig(solver=r.solvers.Dual()),
        "frepo_dtype": lambda: distill(method=r.methods.frepo(dtype="float64")),
        "subset_half": lambda: r.methods.rcig(subset=1.5),  # pyright: ignore
        "staged_half": lambda: r.methods.staged(r.methods.frepo(), r.methods.rcig(), 2.9),  # pyright: ignore
        "staged_class": lambda: r.methods.staged(r.methods.frepo, r.methods.rcig(), 2),  # pyright: ignore
        "preset_of_a_value": lambda: r.presets.authors_code(r.methods.rcig()),  # pyright: ignore
        "below_largest": lambda: r.methods.rcig_paper(below_largest=0.0),
        "one_class": lambda: distill((images, labels * 0)),
        "vig_dtype": lambda: r.methods.vig(dtype=jnp.float64),
        "cig_clip": lambda: r.methods.cig(clip=True),
        "paper_damping": lambda: r.methods.rcig_paper(damping=-1.0),
        "paper_one_step": lambda: r.methods.rcig_paper(inner=r.solvers.Adam(steps=1)),
        "shrink": lambda: r.methods.rcig_paper(shrink=1.1),
        "shrink_text": lambda: r.methods.rig(shrink="often"),  # pyright: ignore
        "paper_solver": lambda: r.methods.rcig_paper(solver="cg"),  # pyright: ignore
        "ema_of_one": lambda: r.ema(1.0),
        "growing_average_negative": lambda: r.growing_average(-1.0),
        "falling_rate_of_nothing": lambda: r.falling_rate(0.0),
        "falling_rate_at_once": lambda: r.falling_rate(hold=0),
        "cg_rtol": lambda: r.solvers.ConjugateGradient(rtol=2.0),
        "rtol_none": lambda: r.solvers.ConjugateGradient(None),  # pyright: ignore
        "rtol_text": lambda: r.solvers.ConjugateGradient("1e-3"),  # pyright: ignore
        "damping_text": lambda: r.methods.cig(damping="0.1"),  # pyright: ignore
        "margin_text": lambda: r.methods.frepo(margin="no"),  # pyright: ignore
        "ridge_dtype_int": lambda: distill(method=r.methods.frepo(dtype=jnp.int32)),
        "ridge_dtype_half": lambda: distill(method=r.methods.frepo(dtype=jnp.float16)),
        "ridge_dtype_text": lambda: distill(method=r.methods.frepo(dtype="double precision")),
        "checkpoint_every_text": lambda: r.Checkpoints("run", every="60"),  # pyright: ignore
        "width_text": lambda: r.convnet_for((8, 8, 1), 2, width="16"),  # pyright: ignore
        "softplus_text": lambda: r.convnet_for((8, 8, 1), 2, softplus="papr"),  # pyright: ignore
        "labels_from_one": lambda: distill((images, labels + 1)),
        "rcig_l2_rate": lambda: r.methods.rcig(l2_rate=0.0),
        "rcig_solver": lambda: r.methods.rcig(solver=r.solvers.Dual()),
        "rcig_label_solver": lambda: r.methods.rcig(label_solver="cg"),  # pyright: ignore
        "dual_of_dual": lambda: r.solvers.Dual(r.solvers.Dual()),
        "frepo_l2_rate": lambda: r.methods.frepo(l2_rate=-1.0),
        "pool_learning_rate": lambda: r.PoolSchedule(learning_rate=0.0),
        "cg_max_steps": lambda: r.solvers.ConjugateGradient(max_steps=0),
        "zca_regularization": lambda: r.data.zca(images, 0.0),
        "evaluate_other_size": lambda: evaluate(test=(images[:, :7], labels)),
        "evaluate_more_classes": lambda: evaluate(test=(images, np.repeat([0, 1, 2], 4))),
        "evaluate_without_preprocess": lambda: evaluate(bare),
        "evaluate_an_array": lambda: evaluate(images),
        "evaluate_labels_nan": lambda: evaluate(changed("labels", jnp.eye(2) * jnp.nan)),
        "evaluate_images_infinite": lambda: evaluate(changed("images", coreset.images / 0)),
        "evaluate_labels_shape": lambda: evaluate(changed("labels", jnp.ones(2))),
        "evaluate_labels_rows": lambda: evaluate(changed("labels", jnp.ones((1, 2)))),
        "evaluate_labels_numbers": lambda: evaluate(changed("labels", jnp.eye(2, dtype="int32"))),
        "evaluate_images_bytes": lambda: evaluate(changed("images", images[:2])),
        "evaluate_test_labels_nan": lambda: evaluate(test=(images, labels * np.nan)),
        "evaluate_class_names": lambda: evaluate(class_names=["a", "a"]),
        "evaluate_class_names_text": lambda: evaluate(class_names="ab"),
        "evaluate_baseline_true": lambda: evaluate(baseline=True),
        "evaluate_baseline_classes": lambda: evaluate(baseline=(images, labels * 0)),
        "evaluate_baseline_size": lambda: evaluate(baseline=(images[:, :, :7], labels)),
        "export_a_coreset": lambda: r.export(coreset, folder / "e"),  # pyright: ignore[reportArgumentType]
        "evaluate_on_an_array": lambda: evaluate(test=images),
        "evaluate_no_networks": lambda: evaluate(num_networks=0),
        "evaluate_key_an_int": lambda: evaluate(key=0),
        "evaluate_augment": lambda: evaluate(augment=3),
        "distill_augment": lambda: r.Recipe(augment=3),  # pyright: ignore[reportArgumentType]
        "evaluate_augment_unknown": lambda: evaluate(augment="flop_crop"),
        "augment_mode": lambda: r.evaluation.Augment("flip", "any"),  # pyright: ignore[reportArgumentType]
        "evaluate_labels": lambda: evaluate(labels="hrad"),
        "cross_evaluate_list": lambda: r.cross_evaluate([coreset], dataset, key=key),  # pyright: ignore
        "cross_evaluate_nothing": lambda: r.cross_evaluate(
            {}, (images, labels), key=key, models={}
        ),
        "cross_evaluate_empty_row": lambda: r.cross_evaluate(
            {"a": []}, dataset, key=key, models={"b": network}
        ),
        "hold_out_all": lambda: r.data.hold_out(dataset, 0.99, seed=0),
        "hold_out_part": lambda: r.data.hold_out(dataset, 2.0, seed=0),
        "keep_best_on_arrays": lambda: r.KeepBest(images, every=1, key=key),  # pyright: ignore[reportArgumentType]
        "keep_best_never": lambda: r.KeepBest(dataset, every=0, key=key),
        "evaluate_model_instance": lambda: evaluate(model=network(key)),
        "grid_without_preprocess": lambda: r.save_grid(bare, ("a", "b"), folder / "x.png"),
        "grid_of_no_coreset": lambda: r.save_grid(object(), ("a", "b"), folder / "x.png"),  # pyright: ignore
        "grid_names": lambda: r.save_grid(coreset, ("a",), folder / "x.png"),
        "dataset_unknown": lambda: r.data.load("fasion_mnist"),
        "dataset_no_file": lambda: r.data.load(folder / "none.npz"),
        "dataset_not_npz": lambda: r.data.load(folder / "junk.npz"),
        "split_unknown": lambda: r.data.load("fashion_mnist_small", "tset"),
        "result_missing": lambda: r.load_result(folder / "none.safetensors"),
        "published_flip": lambda: published(flip=1),
        "published_normalized": lambda: published(normalized="no"),
        "published_preprocess": lambda: published(preprocess=abs),
        "published_experiment": lambda: published(experiment="best"),
        "published_a_list": lambda: r.io.write_published([], folder / "x"),  # pyright: ignore
        "result_is_no_result": lambda: r.load_result(folder / "junk.safetensors"),
    }
    raised = {}
    for name, call in calls.items():
        try:
            call()
        except (Exception, SystemExit) as error:
            raised[name] = [type(error).__name__, type(error).__module__, str(error)]
    return raised


@pytest.fixture(scope="module")
def raised():
    run = subprocess.run(
        [sys.executable, "-W", "error", __file__], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_told_apart_in_words_that_name_the_fix(name, raised):
    exception, says = CASES[name]
    assert name in raised, "nothing was raised"
    kind, module, message = raised[name]
    assert kind.replace("Argument", "Value") == exception, message  # it names the argument
    assert module.split(".")[0] in ("builtins", "rcig_eqx")
    assert re.search(says, message), message
    assert not re.search("XlaRuntimeError|Tracer", message)


def test_every_case_is_in_the_table(raised):
    assert raised.keys() == CASES.keys()


if __name__ == "__main__":
    json.dump(collect(), sys.stdout)
