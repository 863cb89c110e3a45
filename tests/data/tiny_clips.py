"""TFDS data sets of a few clips; TFDS wants its builders in a module."""

import io

import numpy as np
import tensorflow_datasets as tfds

from tests.data.picture_files import plain

COUNTS = {"train": 8, "test": 3}


class TinyClips(tfds.core.GeneratorBasedBuilder):
    """Clips of 6 frames; frame t of clip k has the gray value 10 k + t; labels are k modulo 2."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "video": tfds.features.Tensor(shape=(None, 4, 4, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
            "number": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in COUNTS.items()}

    def _generate_examples(self, count):
        for index in range(count):
            values = 10 * index + np.arange(6, dtype=np.uint8)
            video = np.broadcast_to(values[:, None, None, None], (6, 4, 4, 1))
            yield index, {"video": video, "label": index % 2, "number": index}


class FramedClips(tfds.core.GeneratorBasedBuilder):
    """Clips of encoded frames, one of which is broken in clip 2; no labels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "frames": tfds.features.Sequence(tfds.features.Image(shape=(4, 4, 1))),
            "name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(5):
            files = [plain(10 * index + t) for t in range(6)]
            if index == 2:
                files[4] = files[4][:-20]
            yield index, {"frames": [io.BytesIO(file) for file in files], "name": str(index)}
