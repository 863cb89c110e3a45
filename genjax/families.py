"""The families of models that a config file can name by its `kind`."""

from collections.abc import Mapping

from genjax.image.adversarial_config import AdversarialConfig
from genjax.run_config import RunConfig
from genjax.text.language_modeling_config import LanguageModelingConfig
from genjax.video.prediction_config import PredictionConfig
from genjax.video.video_adversarial_config import VideoAdversarialConfig

FAMILIES: Mapping[str, type[RunConfig]] = {
    "adversarial": AdversarialConfig,
    "language_modeling": LanguageModelingConfig,
    "prediction": PredictionConfig,
    "video_adversarial": VideoAdversarialConfig,
}
"""The config class of each `kind`. A new family is one more entry."""
