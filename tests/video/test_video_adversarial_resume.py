"""A video GAN's run, stopped in the middle of its intervals and resumed, equals an unbroken one."""

import numpy as np
import pytest

from tests.train.running import StopAt, arrays, lines, run_toy
from tests.video.small_video_gans import configured
from train.loop import Outcome

CONFIG = configured(
    steps=5,
    frames_judged=2,
    image_conditional=True,
    objective={"r1_gamma": 1.0, "penalty_interval": 3},
    augmentation={
        "kind": "ada",
        "categories": ["blit"],
        "initial_probability": 0.4,
        "interval": 2,
        "adjustment_images": 160,
    },
    mesh={"data": 1},
    log={"every": 1},
    checkpoint={"every": 100},
    evaluation={"every": 100, "count": 8},
    samples={"every_clips": 8 * 4, "count": 4},
)


def go(folder, stop=None):
    return run_toy(CONFIG, folder, task=CONFIG.make_task(), stop=stop)


@pytest.mark.slow
def test_a_stopped_run_equals_an_unbroken_one(tmp_path):
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    assert go(unbroken).outcome is Outcome.FINISHED
    result = go(broken, StopAt(3))
    assert (result.outcome, result.step) == (Outcome.INTERRUPTED, 3)
    half_way, _ = arrays(broken, CONFIG)
    assert half_way["carry/monitors/frame_r1_penalty"] != 0
    assert go(broken).outcome is Outcome.FINISHED
    for kind in ("train", "validation", "baseline"):
        assert lines(broken, kind) == lines(unbroken, kind) != []
    expected, position = arrays(unbroken, CONFIG)
    found, found_position = arrays(broken, CONFIG)
    assert found_position == position and found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name
    assert expected["carry/augmentation/probability"] != np.float32(0.4)
    # Five steps of the loss, two of the penalties.
    for which in ("frame", "clip"):
        assert expected[f"opt_state/{which}_discriminator/count"] == 5 + 2
    files = sorted(path.relative_to(unbroken) for path in (unbroken / "samples").rglob("*.*"))
    names = {path.name for path in files}
    assert names == {"generated.webp", "generated_frames.png", "real.webp", "real_frames.png"}
    for path in files:
        assert (broken / path).read_bytes() == (unbroken / path).read_bytes(), path
