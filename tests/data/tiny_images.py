"""TFDS data sets of a few images; TFDS wants its builders in a module."""

import io

import numpy as np
import tensorflow_datasets as tfds

from tests.data.picture_files import encode, plain

COUNTS = {"train": 30, "test": 4}
CLASS_NAMES = ["zero", "one", "two"]


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Images whose gray value is their number; the label is the number modulo 3."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(names=CLASS_NAMES),
            "number": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in COUNTS.items()}

    def _generate_examples(self, count):
        for index in range(count):
            # A file, since TFDS encodes arrays by TensorFlow.
            image = io.BytesIO(plain(index))
            yield index, {"image": image, "label": index % 3, "number": index}


class OddImages(tfds.core.GeneratorBasedBuilder):
    """Two sizes, a broken file and a missing label."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(),
            "kind": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "validation": self._generate_examples()}

    def _generate_examples(self):
        large = encode(np.full((9, 12), 40, np.uint8))
        files = [(plain(10), 0), (plain(20)[:-20], 1), (plain(30), -1), (large, 1), (plain(50), 1)]
        for index, (data, label) in enumerate(files):
            yield index, {"picture": io.BytesIO(data), "kind": label}
