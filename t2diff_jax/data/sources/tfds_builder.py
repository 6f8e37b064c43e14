"""Writes an interaction log as `t2diff_log`, a dataset of tensorflow-datasets: one example per user, no TensorFlow.

What does not belong to a user (item ids, titles, categories, names) lies in `catalogue.npz` beside the examples.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from t2diff_jax.data.log import InteractionLog

SPLIT = "users"
CATALOGUE = "catalogue.npz"


class T2diffLog(tfds.core.GeneratorBasedBuilder):
    """The behaviours of one user per example, oldest first, users in the order of the log."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing is downloaded, so there are no checksums to look for beside the code

    def __init__(self, *, log: InteractionLog, **kwargs: Any):
        self._log = log
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "user": tfds.features.Scalar(np.int64),
            "items": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "times": tfds.features.Tensor(shape=(None,), dtype=np.int64),
        }
        if self._log.user_features is not None:
            width = self._log.user_features.shape[1]
            features["user_features"] = tfds.features.Tensor(shape=(width,), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Interaction log {self._log.name}: {self._log.n_users} users, {self._log.n_items} items.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        log = self._log
        for user, (start, stop) in enumerate(zip(log.offsets[:-1], log.offsets[1:], strict=True)):
            example = {"user": user, "items": log.items[start:stop], "times": log.times[start:stop]}
            if log.user_features is not None:
                example["user_features"] = log.user_features[user]
            yield user, example


def write_log(log: InteractionLog, data_dir: str) -> pathlib.Path:
    """Writes the log below `data_dir`, where source `tfds` reads it back with an equal digest.

    Content vectors are not written; they stay in their own file (`data.content`).

    Returns:
      The folder of the dataset.

    Raises:
      FileExistsError: a `t2diff_log` of the same version is there already.
    """
    builder = T2diffLog(log=log, data_dir=data_dir, file_format="array_record")
    folder = pathlib.Path(builder.data_dir)
    if folder.exists():
        raise FileExistsError(f"{folder}: already there; delete it or choose another data_dir")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(compute_stats=tfds.download.ComputeStatsMode.SKIP)
    )
    arrays = {
        "name": log.name,
        "user_ids": log.user_ids,
        "item_ids": log.item_ids,
        "titles": log.titles,
        "categories": log.categories,
        "category_names": np.array(log.category_names, np.str_),
        "user_feature_names": np.array(log.user_feature_names, np.str_),
        "user_feature_sizes": np.array(log.user_feature_sizes, np.int64),
    }
    np.savez(folder / CATALOGUE, **{key: value for key, value in arrays.items() if value is not None})
    return folder
