import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
from fabricate import GAN_BASELINES, PROTOCOL, fabricate_gan_run, fabricate_run, write_lines

from genjax.media import ImageSample
from tools.report.__main__ import main, write_report
from tools.report.names import figure

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "path", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A parsed page: tags with attributes, text, and whether every tag was closed in order."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag, kind=None):
        found = [attrs for name, attrs in self.tags if name == tag]
        return [a for a in found if kind is None or kind in (a.get("class") or "").split()]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def report(*paths, output=None):
    source = write_report(paths, output).read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == []
    return page, source


def test_one_run_shows_figures_baselines_curves_and_materials(tmp_path):
    resume = {"kind": "event", "step": 1000, "message": "resumed from step 1000"}
    path = fabricate_run(tmp_path / "demo", extra=[resume])
    page, _ = report(path)
    assert (path / "report.html").is_file()
    validation = [
        json.loads(line)
        for line in (path / "metrics.jsonl").read_text().splitlines()
        if '"validation"' in line
    ]
    best = min(validation, key=lambda record: record["nats_per_token"])
    for name in ("nats_per_token", "perplexity", "bits_per_byte", "bits_per_character"):
        assert figure(best[name]) in page.text
    for said in (
        "finished at step 2,000 of 2,000",
        "started 2026-03-02 09:14 UTC",
        "resumed once",
        f"Protocol: {PROTOCOL}",
        "uniform",
        "9.010",
        "this run",
        "MFU",
        "1 min 50 s",
        "python -m train configs/text/demo.toml seed=0",
        "8 x TPU v5e",
        "[optimizer.schedule]",
        "saved step 250",
    ):
        assert said in page.text, said
    titles = ("Loss", "Perplexity", "Gradient norm", "Learning rate", "Tokens per second")
    assert all(title in page.text for title in titles)
    assert len(page.all("path", "raw")) == 5
    assert len(page.all("path", "level")) >= 4


def test_the_page_asks_nothing_of_the_network(tmp_path):
    _, source = report(fabricate_run(tmp_path / "demo", steps=300))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', source)
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    assert policy and script
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy.group(1)
    assert "default-src 'none'" in policy.group(1)
    assert not re.findall(r"https?://|\burl\(|@import|<link", source)


def test_everything_from_a_run_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&amp;"
    path = fabricate_run(
        tmp_path / "<b>run",
        steps=100,
        extra=[
            {"kind": "train", "step": 60, evil: 1.0},
            {"kind": evil, "step": 60, "value": 1.0},
            {"kind": "baseline", "step": 0, "name": evil, "nats_per_token": 4.0},
            {"kind": "validation", "step": 60, "nats_per_token": 4.0, "protocol": evil},
            {"kind": "event", "step": 60, "message": "diverged " + evil},
        ],
        ending="",
        samples=[
            {"step": 60, "index": 0, "text": evil + "\x00\x1b[31m", evil: evil},
            {"step": 60, "index": 1, "image": evil},
        ],
    )
    (path / "config.toml").write_text(f"{json.dumps(evil)} = {json.dumps(evil)}\n")
    environment = {"command": evil, "started": evil, evil: evil}
    (path / "environment.json").write_text(json.dumps(environment))
    write_lines(path / "evaluations.jsonl", [{"step": 1, evil: 1.0, "protocol": evil}])
    with (path / "samples.jsonl").open("a") as file:
        file.write('{"step": 60, "index": 2, "text": "half a pair: \\ud83d"}\n')
    other = fabricate_run(tmp_path / "other", steps=100)
    for paths in ([path], [path, other]):
        page, _ = report(*paths, output=tmp_path / "out.html")
        assert len(page.all("script")) == 1
        assert not page.all("img")
        assert not page.all("b", "run")
        assert not any("onerror" in attrs for _, attrs in page.tags)
        assert evil in "".join(page.words)
        assert "\u2400\u241b[31m" in page.text
        assert "half a pair: \ufffd" in page.text


def test_several_runs_stand_side_by_side(tmp_path):
    paths = [
        fabricate_run(tmp_path / f"hidden-{size}", steps=500, hidden_size=size, floor=floor)
        for size, floor in ((128, 3.6), (256, 3.2), (512, 3.4))
    ]
    page, source = report(*paths)
    assert (tmp_path / "report.html").is_file()
    assert "3 runs side by side" in page.text
    assert {a["data-run"] for a in page.all("path", "line")} == {"0", "1", "2"}
    assert [a["data-run"] for a in page.all("button")] == ["0", "1", "2"]
    differing = re.findall(r'<tr class="differs"><th scope="row">(.*?)</th>', source)
    assert differing == ["model.hidden_size"]
    assert "18 keys equal in all runs" in page.text
    ranks = [
        page.text.index(name, page.text.index("Beside the"))
        for name in ("uniform", "hidden-128", "hidden-512", "trigram", "hidden-256")
    ]
    assert ranks == sorted(ranks)
    assert len(page.all("details", "step")) == 12
    assert sum("open" in a for a in page.all("details", "step")) == 3


def test_a_key_missing_from_one_config_differs(tmp_path):
    one, two = (fabricate_run(tmp_path / name, steps=50) for name in ("one", "two"))
    (two / "config.toml").write_text((two / "config.toml").read_text() + "tokens = 7\n")
    page, _ = report(one, two)
    assert "evaluation.tokens not set 7" in page.text


def test_different_protocols_are_called_out(tmp_path):
    one = fabricate_run(tmp_path / "one", steps=500)
    two = fabricate_run(tmp_path / "two", steps=500)
    assert "do not compare" not in report(one, two)[0].text
    text = (two / "metrics.jsonl").read_text().replace(PROTOCOL, "first 100 windows")
    (two / "metrics.jsonl").write_text(text)
    assert "do not compare" in report(one, two)[0].text


def test_twelve_runs_have_twelve_kinds_of_line(tmp_path):
    paths = [fabricate_run(tmp_path / f"r{index}", steps=60, seed=index) for index in range(12)]
    page, _ = report(*paths)
    assert len({a["class"] for a in page.all("svg", "swatch")}) == 12


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    one, two = (fabricate_run(tmp_path / name / "run", steps=50) for name in "ab")
    page, _ = report(one, two)
    assert "a/run" in page.text and "b/run" in page.text


def test_another_family_gets_a_chart_for_every_scalar(tmp_path):
    path = tmp_path / "gan"
    path.mkdir()
    names = ("generator_loss", "discriminator_loss", "r1_penalty", "augment/probability")
    records = [
        {"kind": "train", "step": step, **{name: 1.0 / step for name in names}}
        for step in range(1, 40)
    ]
    records += [{"kind": "validation", "step": 20, "fid_inception": 31.5, "protocol": "5k images"}]
    records += [{"kind": "weights", "step": 20, "norm": 3.0}]
    records += [{"kind": "speed", "step": 20, "images_per_second": 812.0, "seconds": 75.0}]
    write_lines(path / "metrics.jsonl", records)
    (path / "samples").mkdir()
    (path / "samples" / "000020.png").write_bytes(PIXEL)
    (tmp_path / "secret.png").write_bytes(PIXEL)
    samples = ["samples/000020.png", "samples/missing.png", "../secret.png"]
    write_lines(
        path / "samples.jsonl",
        [{"step": 20, "index": i, "image": name} for i, name in enumerate(samples)],
    )
    page, _ = report(path)
    for title in (
        "Generator loss",
        "Discriminator loss",
        "R1 penalty",
        "Augment: probability",
        "FID (inception)",
        "Weights",
        "Images per second",
    ):
        assert title in page.text, title
    assert "31.50 best, at step 20" in page.text
    # The losses of the two networks share one.
    assert len(page.all("figure", "chart")) == 6
    images = [a["src"] for a in page.all("img")]
    assert images == ["data:image/png;base64," + base64.b64encode(PIXEL).decode()]
    assert page.text.count("No such file in the run") == 2


def test_no_validation_one_point_and_values_that_are_not_finite(tmp_path):
    page, _ = report(fabricate_run(tmp_path / "young", steps=10, validate_every=None, ending=""))
    assert "none yet" in page.text and "no end recorded" in page.text
    assert all(re.search(r"M[\d.]+ [\d.]+h0", a["d"]) for a in page.all("path", "line"))
    path = fabricate_run(
        tmp_path / "diverged",
        steps=500,
        ending="diverged at step {steps}: loss is not finite",
        extra=[
            {"kind": "train", "step": 500 + i, "loss": bad}
            for i, bad in enumerate((math.inf, math.nan, -math.inf), 1)
        ]
        + [{"kind": "validation", "step": 503, "nats_per_token": math.nan}],
    )
    page, source = report(path)
    assert "3 values not finite" not in page.text
    assert "4 values not finite" in page.text
    assert "diverged at step 500: loss is not finite" in page.text
    assert "last not finite" in page.text
    assert not re.search(r'd="[^"]*(nan|inf)', source)


def test_a_run_of_nothing_but_nan_still_has_a_page(tmp_path):
    path = tmp_path / "nan"
    path.mkdir()
    records = [{"kind": "train", "step": step, "loss": math.nan} for step in (1, 2)]
    records += [{"kind": "validation", "step": 2, "nats_per_token": math.nan}]
    write_lines(path / "metrics.jsonl", records)
    page, _ = report(path)
    assert "3 values not finite" in page.text


def test_a_run_that_logged_nothing_is_refused(tmp_path, capsys):
    path = fabricate_run(tmp_path / "demo", steps=50)
    for records in (
        [],
        [{"kind": "baseline", "step": 0, "name": "uniform", "nats_per_token": 9.0}],
    ):
        write_lines(path / "metrics.jsonl", records)
        assert main([str(path)]) == 2
        assert "has logged nothing yet" in capsys.readouterr().err
    (path / "metrics.jsonl").unlink()
    assert main([str(path)]) == 2


def test_unreadable_lines_are_told(tmp_path):
    path = fabricate_run(tmp_path / "demo", steps=50)
    (path / "samples.jsonl").write_text(
        '{"step": 1, "text": "fine"}\n{broken\n{"text": "no step"}\n'
    )
    assert "samples.jsonl: 2 unreadable lines left out (2, 3)" in report(path)[0].text


def test_command_line(tmp_path, capsys):
    one, two = (fabricate_run(tmp_path / name, steps=50) for name in ("one", "two"))
    target = tmp_path / "deep" / "page.html"
    assert main([str(one), "--output", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert target.is_file()
    assert main([str(one), str(one)]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main([str(one), str(tmp_path / "gone")]) == 2
    assert "gone: no such folder" in capsys.readouterr().err
    assert main([str(one), "--output", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main([str(one), str(two)]) == 0
    assert main([str(path) for path in (one, tmp_path / "report.html", two)]) == 0
    assert main([str(tmp_path / "report.html")]) == 2
    assert "only an earlier report" in capsys.readouterr().err


def test_a_resumed_sample_replaces_the_first(tmp_path):
    samples = [{"step": 5, "index": 0, "text": word} for word in ("before", "after")]
    page, _ = report(fabricate_run(tmp_path / "demo", steps=50, samples=samples))
    assert "after" in page.text and "before " not in page.text.split("Samples")[1].split("Eval")[0]


def test_long_curves_are_thinned_on_the_page(tmp_path):
    path = fabricate_run(tmp_path / "long", steps=6000, every=1, validate_every=None)
    page, source = report(path)
    counts = [len(re.findall("[ML]", a["d"])) for a in page.all("path") if "data-run" in a]
    assert 900 < max(counts) <= 1500
    assert len(source) < 700_000


def images(page):
    return [a for a in page.all("img") if "data-sample" in a]


def test_an_adversarial_run_shows_losses_figures_baselines_and_grids(tmp_path):
    path = fabricate_gan_run(tmp_path / "gan", steps=400)
    page, source = report(path)
    large = re.findall(r'<figure class="chart large"><figcaption><b>(.*?)</b>', source)
    assert large == ["Losses of the networks", "FID (digits)"]
    both = source[source.index("Losses of the networks") : source.index("<b>FID (digits)</b>")]
    assert "Discriminator loss" in both and "Generator loss" in both
    for said in (
        "FID (digits) 7.563 best, at step 400",
        "Inception Score (digits)",
        "bars by FID (digits)",
        "near 1 means D overfits",
        "Images per second",
    ):
        assert said in page.text, said
    places = [
        page.text.index(name, page.text.index("Beside the baselines"))
        for name in ("noise", "mean image", "this run", "real images against real images (floor)")
    ]
    assert places == sorted(places)
    assert len(page.all("path", "level")) >= 3
    ((_, evaluations),) = re.findall(r'(<table class="numbers beside">)(.*?)</table>', source)
    assert all(name in evaluations for name in GAN_BASELINES)
    assert evaluations.count(">none<") == 2
    # A grid of each step, the real one once: it is the same at all.
    assert len(images(page)) == 8 + 1
    assert page.text.count("The same as at step 400.") == 7
    newest = images(page)[:2]
    assert [a["data-sample"] for a in newest] == ["0", "1"]
    assert all(a["class"] == "pixels" and a["style"] == "width:512px" for a in newest)
    assert "0 generated images, truncation: 1.0" in page.text


def test_adversarial_runs_stand_side_by_side(tmp_path):
    paths = [
        fabricate_gan_run(tmp_path / f"gamma-{gamma}", steps=200, gamma=gamma)
        for gamma in (0.1, 1.0, 10.0)
    ]
    page, source = report(*paths)
    large = re.findall(r'<figure class="chart large"><figcaption><b>(.*?)</b>', source)
    assert large == ["Discriminator loss", "Generator loss", "FID (digits)"]
    assert len(page.all("div", "column")) == 3
    # Equal files of different runs are shown in each.
    assert len(images(page)) == 3 * (4 + 1)
    assert {a["style"] for a in images(page)} == {"width:256px"}


def test_the_best_is_the_one_that_the_run_kept(tmp_path):
    path = fabricate_gan_run(tmp_path / "gan", steps=400)
    config = (path / "config.toml").read_text()
    config = config.replace("fid_digits", "recall").replace("lowest", "highest")
    (path / "config.toml").write_text(config)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "validation" and line["step"] == 150:
            line["recall"] = 0.99
    write_lines(path / "metrics.jsonl", lines)
    page, _ = report(path)
    assert "Recall 0.9900 best, at step 150" in page.text


def test_clips_large_images_and_broken_ones(tmp_path):
    path = fabricate_gan_run(tmp_path / "gan", steps=80)
    folder = path / "samples"
    large = ImageSample(index=0, name="large", image=np.zeros((1200, 1600, 3), np.uint8))
    large.save(folder)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    (folder / "clip.mp4").write_bytes(b"clip")
    records = [
        {"step": 90, "index": index, key: f"samples/{name}"}
        for index, (key, name) in enumerate(
            [("image", "large.png"), ("image", "broken.png"), ("video", "clip.mp4")]
        )
    ]
    write_lines(path / "samples.jsonl", records)
    page, source = report(path)
    first, second = images(page)
    assert first["style"] == "width:1600px" and "class" not in first
    assert "style" not in second
    (video,) = page.all("video")
    assert video["src"] == "data:video/mp4;base64," + base64.b64encode(b"clip").decode()
    assert "media-src data:" in source
