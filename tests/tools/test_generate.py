"""Images and clips from a run: their files, the request beside them, and whose folder it is."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from genjax.config import Config
from genjax.media import AnimationSample, ImageSample, image_grid
from genjax.parallel.mesh import MeshConfig
from genjax.task import TextSample
from tests.toy import Toy, ToyConfig
from tests.train.running import run_toy
from tools import generate, trained

pytestmark = pytest.mark.fast


class Request(Config):
    count: int = 2
    level: float = 1.0
    words: bool = False


class DrawingConfig(ToyConfig):
    def make_task(self, assets=None):
        return Drawing(self)

    def generation_schema(self):
        return Request


class Drawing(Toy):
    def generate(self, state, key, request):
        if request.words:
            yield TextSample(index=0, text="a picture")
            return
        noise = np.asarray(jax.random.uniform(key, (request.count, 4, 4, 1)))
        images = np.round(255 * request.level * noise).astype(np.uint8)
        for index, image in enumerate(images):
            yield ImageSample(
                index=index, name=f"{index:05d}", image=image, caption={"seed": index}
            )
        yield ImageSample(index=request.count, name="grid", image=image_grid(images))
        yield AnimationSample(index=request.count + 1, name="walk", animation=images)


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = DrawingConfig(steps=2, mesh=MeshConfig(data=1))
    monkeypatch.setattr(trained, "FAMILIES", {"toy": DrawingConfig})
    folder = tmp_path / "run"
    run_toy(config, folder)
    return folder


def say(capsys, *arguments):
    code = generate.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_files_go_into_the_run_with_the_request_beside(run, capsys):
    code, out, _ = say(capsys, run, "--count", "3", "--seed", "7")
    assert code == 0
    folder = run / "generated" / "step-2-seed-7"
    names = ["00000.png", "00001.png", "00002.png", "grid.png", "request.json", "walk.webp"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert f"{folder / 'grid.png'}  grid: " in out and out.endswith(f"5 files in {folder}\n")
    assert np.asarray(Image.open(folder / "grid.png")).shape == (8, 8)
    request = json.loads((folder / "request.json").read_text())
    assert (request["step"], request["seed"]) == (2, 7)
    assert request["options"] == {"count": 3, "level": 1.0, "words": False}
    assert request["files"][1] == {"index": 1, "image": "00001.png", "seed": 1}


def test_the_same_request_gives_the_same_files_and_another_its_own(run, capsys):
    generated = run / "generated"
    for arguments in ([], [], ["--level", "0.5"], ["--level", "0.25"], ["--level", "0.5"]):
        assert say(capsys, run, *arguments)[0] == 0
    folders = sorted(path.name for path in generated.iterdir())
    assert folders == ["step-2-seed-0", "step-2-seed-0-2", "step-2-seed-0-3"]
    levels = [
        json.loads((generated / name / "request.json").read_text())["options"]["level"]
        for name in folders
    ]
    assert levels == [1.0, 0.5, 0.25]


def test_a_folder_of_its_own_is_not_mixed_with_anything(run, capsys, tmp_path):
    mine = tmp_path / "mine"
    assert say(capsys, run, "--output", mine)[0] == 0
    before = (mine / "00000.png").read_bytes()
    assert say(capsys, run, "--output", mine)[0] == 0
    code, _, said = say(capsys, run, "--output", mine, "--level", "0.5")
    assert code == 2 and "another request (options.level: 1.0 there, 0.5 asked for)" in said
    assert (mine / "00000.png").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "holiday.png").write_bytes(b"")
    for place, words in ((other, "something else"), (other / "holiday.png", "it is a file")):
        code, _, said = say(capsys, run, "--output", place)
        assert code == 2 and f"--output {place}" in said and words in said
        assert len(said.splitlines()) == 1
    assert [path.name for path in other.iterdir()] == ["holiday.png"]


def test_a_full_disk_is_told_in_a_line(run, capsys, monkeypatch):
    def full(self, folder, within=""):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ImageSample, "save", full)
    code, _, said = say(capsys, run)
    assert code == 2 and "No space left on device" in said and len(said.splitlines()) == 1


def test_many_files_are_not_all_listed(run, capsys):
    _, out, _ = say(capsys, run, "--count", "40")
    assert len(out.splitlines()) == 9 and "42 files in" in out


def test_text_stays_lines_in_a_file(run, capsys, tmp_path):
    file = tmp_path / "text.jsonl"
    code, out, _ = say(capsys, run, "--words", "--output", file)
    assert code == 0 and out == "a picture\n"
    assert json.loads(file.read_text()) == {"index": 0, "text": "a picture"}
    assert not (run / "generated").exists()


def test_a_missing_encoder_is_told(run, capsys, monkeypatch):
    import sys

    original = Drawing.generate

    def films(self, state, key, request):
        for piece in original(self, state, key, request):
            if isinstance(piece, AnimationSample):
                yield dataclasses.replace(piece, format="mp4")

    monkeypatch.setattr(Drawing, "generate", films)
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, said = say(capsys, run)
    assert code == 2 and "genjax[video]" in said
