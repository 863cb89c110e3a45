"""A TFDS data set of a few records; TFDS wants its builders in a module."""

import numpy as np
import tensorflow_datasets as tfds

DOCUMENTS = {
    "train": [f"record {i}: naïve café — 日本語 🙂" for i in range(40)],
    "test": ["the only test record"],
}


class TinyText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in DOCUMENTS}

    def _generate_examples(self, split):
        for index, text in enumerate(DOCUMENTS[split]):
            yield index, {"text": text, "label": index}


class DamagedText(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, text in enumerate(["first", b"caf\xe9", "third"]):
            yield index, {"text": text}
