"""Prediction runs that compile in seconds: configs and tasks."""

from genjax.config import check
from genjax.video.prediction_config import PredictionConfig

CONVLSTM = {"kind": "convlstm", "features": [3, 2], "kernel_size": 3, "patch_size": 4}
PREDRNN = {"kind": "predrnn", "features": 2, "num_layers": 2, "kernel_size": 3, "patch_size": 4}
SIMVP = {
    "kind": "simvp",
    "spatial_features": 4,
    "spatial_layers": 2,
    "temporal_features": 8,
    "temporal_layers": 2,
    "mlp_ratio": 2,
}
MODELS = {"convlstm": CONVLSTM, "predrnn": PREDRNN, "simvp": SIMVP}

DIGITS = {"kind": "moving_digits", "size": 16, "digit_size": 8}

PREDICT = {"kind": "predict", "past": 3, "future": 3}
INTERPOLATE = {"kind": "interpolate", "before": 2, "between": 2, "after": 1}
INPAINT = {"kind": "inpaint", "frames": 3}
CONDITIONINGS = {"predict": PREDICT, "interpolate": INTERPOLATE, "inpaint": INPAINT}


def configured(network="convlstm", asked="predict", /, **tables):
    """A small config; tables replace or join those that are there."""
    tree = {
        "kind": "prediction",
        "mesh": {"data": 1},
        "data": {"source": DIGITS, "batch_size": 4},
        "model": MODELS[network],
        "conditioning": CONDITIONINGS[asked],
        "evaluation": {"count": 6},
        "samples": {"count": 2},
    }
    for name, table in tables.items():
        inner = tree.get(name)
        tree[name] = inner | table if isinstance(inner, dict) and "kind" not in table else table
    return check(tree, PredictionConfig)


def task_of(*names, **tables):
    """The task of such a config."""
    return configured(*names, **tables).make_task()
