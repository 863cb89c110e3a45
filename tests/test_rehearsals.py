"""The recorded rehearsals of the configs for pods: all there, of today's configs, told rightly."""

import subprocess

import pytest

from benchmarks import rehearsals
from benchmarks.rehearsals import CONFIGS, PAGE, ROOT, SLICES, with_sentence, with_table
from genjax.config import load
from genjax.families import FAMILIES

pytestmark = pytest.mark.fast

RECORD = rehearsals.read(sorted((ROOT / "benchmarks/results").glob("*-rehearsals.json"))[-1])


def test_all_are_rehearsed_and_fit():
    for config in CONFIGS:
        found = RECORD["rehearsals"][config]
        assert [one["topology"] for one in found] == list(SLICES), config
        assert all(one["fits"] for one in found), config
        assert all(one["versions"]["libtpu"] for one in found)


@pytest.mark.parametrize("config", CONFIGS)
def test_they_are_of_todays_config(config):
    for one in RECORD["rehearsals"].get(config, []):
        now = load(ROOT / config, one["overrides"], schema=FAMILIES)
        assert one["steps"] == now.steps
        assert one["units_per_step"] == now.rehearsal_task().units_per_step()
        asked = {axis: size for axis, size in now.mesh.model_dump().items() if size != -1}
        assert asked.items() <= one["mesh"].items()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_config_tells_of_them(config):
    text = (ROOT / config).read_text(encoding="utf-8")
    assert with_sentence(text, RECORD["rehearsals"].get(config, [])) == text


def test_the_page_has_their_table():
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, RECORD) == page


def test_a_slice_that_does_not_fit_is_told_as_such(tmp_path):
    """One rehearsed again replaces the one before."""
    path = tmp_path / "record.json"
    one = {
        "topology": "v5e:16x16",
        "fits": False,
        "mesh": {"data": 1, "fsdp": 256},
        "hbm": {"used": 24.7 * 2**30, "available": 15.75 * 2**30},
    }
    made = {"overrides": ["data.batch_size=512"], "versions": {"libtpu": "1"}}
    for used in (30.0, 24.7):
        one["hbm"]["used"] = used * 2**30
        rehearsals.add(path, CONFIGS[0], "v5e:16x16", {**made, "rehearsals": [one]})
    record = rehearsals.read(path)
    where = "v5e:16x16, fsdp 256, `data.batch_size=512` | 24.7 of 15.75 GiB: does not fit |"
    assert with_table(PAGE.read_text(encoding="utf-8"), record).count(where) == 1
    told = with_sentence(
        "# A model.\n#   python -m train x\nsteps = 3\n", record["rehearsals"][CONFIGS[0]]
    )
    assert told.startswith("# A model.\n# Rehearsed (") and "24.7 of 15.75 GiB a chip, does" in told
    assert told.endswith("does not fit.\n#   python -m train x\nsteps = 3\n")


def test_what_cannot_be_rehearsed_ends_it(tmp_path, monkeypatch):
    """The rehearsal has told why; nothing is recorded."""
    ended = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **settings: ended)
    path = tmp_path / "record.json"
    monkeypatch.setattr("sys.argv", ["rehearsals", str(path)])
    with pytest.raises(SystemExit) as left:
        rehearsals.main()
    assert left.value.code == 2 and not path.exists()
