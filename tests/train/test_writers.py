"""Logs: valid JSON whatever happens, cut to the restored step, and on the disk at once."""

import json
import struct
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from genjax.errors import UserError
from genjax.media import AnimationSample, ImageSample
from genjax.run_config import LogConfig
from genjax.task import TextSample
from tests.toy import ToyConfig
from train.run_directory import RunDirectory
from train.writers import JsonLines, LineFile, Writers, open_writers, recorded


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


def entries(path):
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the last line is whole"
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]


def test_lines_are_in_the_file_at_once(run):
    lines = JsonLines(run, 0)
    lines.record("train", 1, {"loss": 2.5})
    lines.samples(1, [TextSample(index=0, text="é\n")])
    assert entries(run.metrics_file) == [{"kind": "train", "step": 1, "loss": 2.5}]
    assert entries(run.samples_file) == [{"step": 1, "index": 0, "text": "é\n"}]
    lines.close()


@pytest.mark.fast
def test_not_a_number_is_valid_json(run):
    lines = JsonLines(run, 0)
    values = {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 1.0}
    lines.record("train", 1, values)
    lines.close()
    (entry,) = entries(run.metrics_file)
    assert entry == {"kind": "train", "step": 1, "a": "nan", "b": "inf", "c": "-inf", "d": 1.0}


@pytest.mark.fast
def test_cut_to_the_restored_step(run):
    first = JsonLines(run, 0)
    for step in range(1, 6):
        first.record("train", step, {"loss": float(step)})
        first.samples(step, [TextSample(index=0, text=str(step))])
    first.record("event", 5, {"message": "stopped"})
    first.close()
    JsonLines(run, 3).close()
    kept = [(entry["kind"], entry["step"]) for entry in entries(run.metrics_file)]
    assert kept == [("train", 1), ("train", 2), ("train", 3), ("event", 5)]
    assert [entry["step"] for entry in entries(run.samples_file)] == [1, 2, 3]
    JsonLines(run, -1).close()
    assert [entry["kind"] for entry in entries(run.metrics_file)] == ["event"]


TORN = [b'{"kind": "train", "step": 2, "lo', b'{"kind": "train", "step"', b"{", b"\0\0\0\0"]
TORN += [b"12", b"null", b'"text"', b"[]", b"{}", b'{"step": "2"}', b"\xff\xfe\x80", b"\n\n"]


@pytest.mark.fast
@pytest.mark.parametrize("torn", TORN)
def test_torn_lines_are_passed_over(run, torn):
    good = b'{"kind": "train", "step": 1, "loss": 3.0}\n'
    run.metrics_file.write_bytes(good + torn)
    assert recorded(run, "train", "loss") == 3.0
    lines = JsonLines(run, 5)
    lines.record("train", 6, {"loss": 2.0})
    lines.close()
    assert [entry["step"] for entry in entries(run.metrics_file)] == [1, 6]


def test_samples_with_odd_line_ends_survive(run):
    texts = ["a\u2028b", "a\x85b", "a\x0bb\x1cc", "a\r\nb", "\ud800"]
    lines = JsonLines(run, 0)
    lines.samples(1, [TextSample(index=index, text=text) for index, text in enumerate(texts)])
    lines.close()
    JsonLines(run, 1).close()
    found = [json.loads(line)["text"] for line in run.samples_file.read_text().split("\n") if line]
    assert found == [*texts[:-1], "?"]


def test_recorded(run):
    assert recorded(run, "train", "loss") is None
    lines = JsonLines(run, 0)
    for step, loss in [(1, 3.0), (2, 2.0), (3, 1.0)]:
        lines.record("train", step, {"loss": loss})
    lines.record("speed", 3, {"seconds": 9.0})
    lines.close()
    assert recorded(run, "train", "loss") == 1.0
    assert recorded(run, "train", "loss", 2) == 2.0
    assert recorded(run, "train", "loss", 7) is None
    assert recorded(run, "train", "accuracy") is None
    assert recorded(run, "speed", "seconds") == 9.0


class Disk:
    """A file on a disk with room for some bytes."""

    def __init__(self):
        self.room, self.data = 0, b""

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        part = bytes(data[: self.room])
        self.room -= len(part)
        self.data += part
        return len(part)

    def close(self):
        pass


def test_a_line_half_written_is_finished_later(tmp_path):
    lines = LineFile(tmp_path / "log")
    lines.close()
    disk = lines._file = Disk()
    for room, text in [(0, "first"), (3, "second"), (100, "third")]:
        disk.room = room
        if room < 100:
            with pytest.raises(OSError, match="No space"):
                lines.write(text)
        else:
            lines.write(text)
    assert disk.data == b"first\nsecond\nthird\n"


class Fails:
    def __init__(self):
        self.calls = self.closed = 0

    def record(self, kind, step, values):
        self.calls += 1
        raise OSError(28, "No space left on device")

    def samples(self, step, samples):
        raise AssertionError

    def close(self):
        self.closed += 1


def test_one_writer_that_fails_does_not_stop_the_others(run):
    said, failing = [], Fails()
    writers = Writers(JsonLines(run, 0), [failing], said.append)
    for step in (1, 2):
        writers.record("train", step, {"loss": 1.0})
    writers.samples(2, [TextSample(index=0, text="text")])
    assert writers.problem() is None
    writers.close()
    assert (failing.calls, failing.closed) == (1, 1)
    assert said == ["logging to Fails ends here (No space left on device); metrics.jsonl goes on"]
    assert [entry["step"] for entry in entries(run.metrics_file)] == [1, 2]


def test_tensorboard_files_hold_the_tags(run):
    config = ToyConfig(log=LogConfig(tensorboard=True))
    for session in (0, 3):
        writers = open_writers(config, run, session)
        writers.record("train", session + 1, {"loss": 0.5, "protocol": "words", "flag": True})
        writers.record("validation", session + 1, {"perplexity": float("nan")})
        writers.samples(session + 1, [TextSample(index=2, text="Once upon")])
        writers.close()
        files = sorted(run.tensorboard.glob("events*"))
        assert len(files) == (1 if session == 0 else 2)
        data = files[-1].read_bytes()
        for tag in (
            b"brain.Event:2",
            b"train/loss",
            b"validation/perplexity",
            b"sample/2",
            b"Once upon",
        ):
            assert tag in data
        assert b"protocol" not in data and b"flag" not in data


def test_weights_and_biases_that_is_not_installed(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = ToyConfig(log=LogConfig(wandb_project="words"))
    with pytest.raises(
        UserError, match=r"log.wandb_project: 'words' .*pip install genjax\[wandb\]"
    ):
        open_writers(config, run, 0)


class FakeWandb:
    def __init__(self):
        self.calls = []

    def Image(self, data, caption):
        return ("image", data.shape, caption)

    def Video(self, data, caption, format):
        return ("video", data.getvalue()[:4], caption, format)

    def init(self, **settings):
        self.calls.append(("init", settings))
        return self

    def log(self, values, step):
        self.calls.append(("log", values, step))

    def finish(self):
        self.calls.append(("finish",))


def test_weights_and_biases_goes_on_with_the_same_run(run, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = ToyConfig(log=LogConfig(wandb_project="words"))
    for _ in range(2):
        writers = open_writers(config, run, 0)
        writers.record("train", 1, {"loss": 0.5})
        writers.samples(1, [TextSample(index=0, text="text")])
        writers.close()
    starts = [call[1] for call in fake.calls if call[0] == "init"]
    assert starts[0]["id"] == starts[1]["id"] and starts[0]["project"] == "words"
    assert starts[0]["config"]["kind"] == "toy" and starts[0]["resume"] == "allow"
    assert ("log", {"train/loss": 0.5}, 1) in fake.calls
    assert fake.calls[-1] == ("finish",)


# ---- images and clips ----------------------------------------------------------------------------


def grid(value=0, name="grid", channels=3):
    return ImageSample(
        index=0,
        name=name,
        image=np.full((6, 5, channels), value, np.uint8),
        caption={"what": "generated"},
    )


def clip():
    frames = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
    return AnimationSample(index=1, name="walk", animation=frames, format="webp")


def test_images_of_every_step_are_kept_and_later_ones_replaced(run):
    lines = JsonLines(run, 0)
    for step in (5, 10):
        lines.samples(step, [grid(step), clip()])
    lines.close()
    resumed = JsonLines(run, 5)
    resumed.samples(10, [grid(99)])
    resumed.close()
    found = entries(run.samples_file)
    assert [(line["step"], line["index"]) for line in found] == [(5, 0), (5, 1), (10, 0)]
    assert found[0] == {
        "step": 5,
        "index": 0,
        "image": "samples/00000005/grid.png",
        "what": "generated",
    }
    values = [np.asarray(Image.open(run.folder / found[i]["image"])).max() for i in (0, 2)]
    assert values == [5, 99]


def full_disk():
    """A disk without room for pictures, until the returned context is undone."""
    patch = pytest.MonkeyPatch()

    def full(self, data):
        raise OSError(28, "No space left on device")

    patch.setattr(Path, "write_bytes", full)
    return patch


def test_images_wait_for_room_on_the_disk(run):
    said = []
    writers = Writers(JsonLines(run, 0), tell=said.append)
    disk = full_disk()
    writers.samples(5, [grid(5), TextSample(index=1, text="five")])
    writers.record("train", 6, {"loss": 1.0})
    writers.samples(10, [grid(10)])
    assert writers.problem() == "No space left on device"
    assert set(said) == {"cannot write the log (No space left on device); it is tried again later"}
    assert entries(run.metrics_file) == [{"kind": "train", "step": 6, "loss": 1.0}]
    assert not list(run.folder.rglob("*.part"))
    disk.undo()
    assert writers.problem() is None
    writers.close()
    found = [(line["step"], line["index"]) for line in entries(run.samples_file)]
    assert found == [(5, 0), (5, 1), (10, 0)]
    assert np.asarray(Image.open(run.folder / "samples/00000005/grid.png")).max() == 5


def test_images_that_wait_too_long_are_given_up_and_told(run):
    writers = Writers(JsonLines(run, 0), tell=lambda text: None)
    disk = full_disk()
    for step in range(1, 7):
        writers.samples(step, [grid(step)])
    disk.undo()
    writers.samples(7, [grid(7)])
    assert writers.problem() == "2 samples found no room on the disk in time"
    writers.close()
    assert [line["step"] for line in entries(run.samples_file)] == [3, 4, 5, 6, 7]


def events(file):
    """The events of a file of TensorBoard's: length, checksum, message, checksum."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[12 + length + 4 :]


def test_tensorboard_shows_images_and_clips(run):
    writers = open_writers(ToyConfig(log=LogConfig(tensorboard=True)), run, 0)
    writers.samples(5, [grid(7), clip()])
    writers.close()
    (file,) = run.tensorboard.glob("events*")
    values = {value.tag: value.image for event in events(file) for value in event.summary.value}
    assert set(values) == {"sample/grid", "sample/walk"}
    still, moving = values["sample/grid"], values["sample/walk"]
    assert (still.height, still.width, still.colorspace) == (6, 5, 3)
    assert np.asarray(Image.open(BytesIO(still.encoded_image_string))).max() == 7
    shown = Image.open(BytesIO(moving.encoded_image_string))
    assert (shown.format, shown.n_frames) == ("GIF", 3)


def test_weights_and_biases_get_images_and_clips(run, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writers = open_writers(ToyConfig(log=LogConfig(wandb_project="digits")), run, 0)
    writers.samples(5, [grid(), grid(name="grey", channels=1), clip()])
    writers.close()
    ((values, step),) = [call[1:] for call in fake.calls if call[0] == "log"]
    assert step == 5
    assert values["sample/grid"] == ("image", (6, 5, 3), "grid (generated): 5 x 6 pixels, RGB")
    assert values["sample/grey"][:2] == ("image", (6, 5))
    assert values["sample/walk"][:2] == ("video", b"GIF8") and values["sample/walk"][3] == "gif"
