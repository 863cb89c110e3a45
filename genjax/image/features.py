"""Where a run's images are compared: the extractor of its config, and features kept on disk."""

import contextlib
import hashlib
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Num

from genjax.data.image_source import ImageSource
from genjax.image.classifier import (
    TrainedClassifier,
    accuracy,
    fit_classifier,
    load_classifier,
    save_classifier,
)
from genjax.image.inception_v3 import load_inception
from genjax.image.metrics.features import (
    ClassifierExtractor,
    Extractor,
    Features,
    InceptionExtractor,
    PixelExtractor,
)
from genjax.image.metrics.features_config import (
    ClassifierFeatures,
    FeaturesConfig,
    InceptionFeatures,
    PixelFeatures,
)
from genjax.nn.layout import gathered
from genjax.parallel.partition import split_like_batch
from genjax.parallel.processes import everywhere

CLASSIFIER = "classifier.npz"
"""The classifier among a run's assets."""


def make_extractor(
    config: FeaturesConfig, source: ImageSource, assets: Path | None, cache: Path | None
) -> Extractor:
    """The extractor of a config; a classifier is read from the assets or the cache, or trained.

    Args:
        config: which one.
        source: the images that a classifier knows.
        assets: what the run kept, or None.
        cache: folder of what any run kept, or None for none.

    Raises:
        UserError: the images have no classes, or weights cannot be read.
    """
    match config:
        case PixelFeatures():
            return PixelExtractor()
        case InceptionFeatures(weights=weights):
            return InceptionExtractor(load_inception(weights.expanduser()))
        case ClassifierFeatures():
            return ClassifierExtractor(
                _classifier(config, source.base or source, assets, cache),
                stacked=source.base is not None,
            )


def _classifier(
    config: ClassifierFeatures, source: ImageSource, assets: Path | None, cache: Path | None
) -> TrainedClassifier:
    content = f"{source.fingerprint} {config.model_dump_json()}"
    fingerprint = hashlib.sha256(content.encode()).hexdigest()
    places = [assets / CLASSIFIER] if assets is not None else []
    if cache is not None:
        places.append(cache / f"classifier-{fingerprint[:32]}.npz")
    for path in places:
        if path.exists():
            found = load_classifier(path)
            if found.fingerprint == fingerprint:
                return found
    train, held_out = source.splits["train"], source.splits["validation"]
    assert train.labels is not None and held_out.labels is not None
    params = fit_classifier(
        train.images, train.labels, source.num_classes, width=config.width, steps=config.steps
    )
    classifier = TrainedClassifier(
        params=params,
        num_classes=source.num_classes,
        width=config.width,
        image_shape=source.image_shape,
        data=Path(source.name).name,
        fingerprint=fingerprint,
        accuracy=0.0,
    )
    share = accuracy(classifier.module, params, held_out.images, held_out.labels)
    classifier = TrainedClassifier(**{**vars(classifier), "accuracy": share})
    if cache is not None:
        save_classifier(places[-1], classifier)
    return classifier


class FeatureStore:
    """Features of real images, computed once for each set of them and kept on disk."""

    def __init__(self, extractor: Extractor, source: ImageSource, cache: Path | None) -> None:
        """Keep features below `cache`, or in memory alone if it is None."""
        digest = hashlib.sha256(f"{source.fingerprint} {extractor.describe()}".encode())
        for leaf in jax.tree.leaves(extractor.params):
            digest.update(np.asarray(leaf).tobytes())
        self._digest = digest.hexdigest()
        self._cache = cache
        self._known: dict[str, Features] = {}

    def _path(self, name: str) -> Path | None:
        key = hashlib.sha256(f"{self._digest} {name}".encode()).hexdigest()
        return None if self._cache is None else self._cache / f"features-{key[:32]}.npz"

    def get(self, name: str) -> Features | None:
        """The features of a set of images, or None if they are not known yet to every process."""
        if name not in self._known:
            self._read(name)
        # Those that do not know them compute them together with all others.
        return self._known.get(name) if everywhere(name in self._known) else None

    def _read(self, name: str) -> None:
        path = self._path(name)
        if path is None or not path.exists():
            return
        # Half a file, as after a crash of the machine, is made anew.
        damage = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
        with contextlib.suppress(*damage), path.open("rb") as file, np.load(file) as arrays:
            self._known[name] = Features(arrays["features"], arrays.get("probabilities"))

    def put(self, name: str, features: Features) -> None:
        """Keep the features of a set of images; a disk without room keeps nothing."""
        self._known[name] = features
        path = self._path(name)
        if path is None:
            return
        # Runs and machines that share the folder may make the same features at the same time.
        part = path.with_suffix(f".{uuid.uuid4().hex}.part")
        arrays = {"features": features.features}
        if features.probabilities is not None:
            arrays["probabilities"] = features.probabilities
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.savez(file, **arrays)
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()


def extract(
    extractor: Extractor, batches: Iterator[Num[np.ndarray, "B H W C"]], count: int
) -> Features:
    """Features of the first `count` images of batches of one shape, on the host."""

    @jax.jit
    def apply(params: Any, images: Array) -> Features:
        return gathered(extractor.apply(params, split_like_batch(images)))

    found = [jax.device_get(apply(extractor.params, images)) for images in batches]
    features = np.concatenate([one.features for one in found])[:count]
    if found[0].probabilities is None:
        return Features(features, None)
    return Features(features, np.concatenate([one.probabilities for one in found])[:count])
