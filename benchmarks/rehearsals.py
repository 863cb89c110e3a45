"""Rehearse the configs for pods on the TPU's compiler, and say what came out where it is read.

`python -m benchmarks.rehearsals RECORD.json` compiles each config for each slice that the record
does not have yet, one after the other, and adds it. With `--docs` it then writes what the record
has into the table of `docs/scaling.md` and into each config. It takes hours on a few cores:
GANs have several forms of a step, each of hundreds of convolutions and their derivatives.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/scaling.md"
SLICES = ("v5e:16x16", "v5p:8x8x8")
CONFIGS = (
    "configs/text/transformer_1_3b.toml",
    "configs/text/transformer_8b.toml",
    "configs/text/lstm_1b.toml",
    "configs/image/stylegan2_1024_pod.toml",
    "configs/image/r3gan_256_pod.toml",
    "configs/video/convlstm_l_256.toml",
    "configs/video/stylegan2_video_256.toml",
)
OVERRIDES = {
    # What memory has room for.
    ("configs/text/transformer_8b.toml", "v5p:8x8x8"): ["model.remat=dots"],
    # An image for each of 512 chips, and as many in all.
    ("configs/image/stylegan2_1024_pod.toml", "v5p:8x8x8"): [
        "data.batch_size=512",
        "steps=48828",
    ],
}

Record = dict[str, Any]
"""`rehearsals`: for each config what `tools.rehearse --json` says of each slice, with the
overrides and versions that it was made with."""

_COLUMNS = (
    "config",
    "slice, mesh",
    "memory of a chip",
    "step, from all overlapped to nothing",
    "limited by",
    "a second, at most",
    "MFU, at most",
    "chip-hours, at least",
)
_BEGIN, _END = "<!-- rehearsals -->\n", "<!-- end -->\n"
_SENTENCE = "# Rehearsed ("
_COMMAND = "#   python -m train"


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rehearsals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("record", type=Path, metavar="RECORD.json")
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=CONFIGS, metavar="CONFIG")
    parser.add_argument("--slice", nargs="+", choices=SLICES, default=SLICES, metavar="SLICE")
    parser.add_argument("--again", action="store_true", help="also what the record has")
    parser.add_argument(
        "--docs", action="store_true", help="write docs and configs from the record"
    )
    options = parser.parse_args()
    for config in options.only:
        for name in options.slice:
            if options.again or _found(read(options.record), config, name) is None:
                add(options.record, config, name, _rehearse(config, name))
    record = read(options.record)
    if options.docs:
        write_docs(record)
    fitting = [one["fits"] for config in CONFIGS for one in record["rehearsals"].get(config, [])]
    print(f"{sum(fitting)} of {len(CONFIGS) * len(SLICES)} are rehearsed and fit")
    return 0 if sum(fitting) == len(CONFIGS) * len(SLICES) else 1


def _rehearse(config: str, name: str) -> Record:
    """What a process of its own, whose memory goes with it, says of a config on a slice."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        overrides = OVERRIDES.get((config, name), [])
        command: list[str] = [sys.executable, "-m", "tools.rehearse", config, *overrides]
        command += ["--topology", name, "--json", str(file)]
        ended = subprocess.run(command, cwd=ROOT, check=False)
        # A slice that does not fit has its figures, too; without any it has said why.
        if not file.exists():
            sys.exit(ended.returncode)
        return json.loads(file.read_text(encoding="utf-8"))


def read(path: Path) -> Record:
    """A record, or an empty one."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {
        "command": "python -m benchmarks.rehearsals RECORD.json",
        "hardware": f"no TPU: compiled on {os.cpu_count()} CPU cores",
        "rehearsals": {},
    }


def add(path: Path, config: str, name: str, content: Record) -> None:
    """Put what `tools.rehearse --json` wrote of a config on one slice into a record."""
    record = read(path)
    (found,) = content["rehearsals"]
    others = [one for one in record["rehearsals"].get(config, []) if one["topology"] != name]
    made = {
        "overrides": content["overrides"],
        "versions": content["versions"],
        "date": datetime.date.today().isoformat(),
    }
    rows = [*others, made | found]
    record["rehearsals"][config] = sorted(rows, key=lambda one: SLICES.index(one["topology"]))
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _found(record: Record, config: str, name: str) -> Record | None:
    rows = record["rehearsals"].get(config, [])
    return next((one for one in rows if one["topology"] == name), None)


# ---- where it is read --------------------------------------------------------------------------


def write_docs(record: Record) -> None:
    """Write a record's figures into the page and the configs."""
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")
    for config, found in record["rehearsals"].items():
        path = ROOT / config
        path.write_text(with_sentence(path.read_text(encoding="utf-8"), found), encoding="utf-8")


def with_table(page: str, record: Record) -> str:
    """The page with the table of a record in the place of the one that it has."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{_table(record)}{_END}{after}"


def _table(record: Record) -> str:
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    rows += [
        _cells(config, one) for config in CONFIGS for one in record["rehearsals"].get(config, [])
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _cells(config: str, one: Record) -> tuple[str, ...]:
    overrides = "".join(f", `{override}`" for override in one["overrides"])
    where = f"{one['topology']}, {_mesh(one)}{overrides}"
    if not one["fits"]:
        return (f"`{config}`", where, f"{_memory(one)}: does not fit", *[""] * 5)
    unit, rate = next(
        (unit, one["units_per_second"][unit])
        for unit in ("tokens", "images", "frames")
        if unit in one["units_per_second"]
    )
    return (
        f"`{config}`",
        where,
        _memory(one),
        _steps(one),
        one["limit"],
        f"{rate:,.0f} {unit}",
        f"{one['mfu']:.0%}",
        f"{one['chip_hours']:,.0f}",
    )


def with_sentence(config: str, found: list[Record]) -> str:
    """A config's text with a comment that tells of its rehearsals, before the command to train."""
    parts = [
        f"{one['topology']} ({', '.join([_mesh(one), *one['overrides']])}): {_memory(one)} a chip, "
        + (f"{_steps(one)} a step, MFU at most {one['mfu']:.0%}" if one["fits"] else "does not fit")
        for one in found
    ]
    text = f"{_SENTENCE[2:]}bounds by the chips' published peaks, docs/scaling.md): "
    text += "; ".join(parts) + "."
    comment = textwrap.fill(text, 97, initial_indent="# ", subsequent_indent="# ") + "\n"
    # Up to the command, or the next sentence of a line of its own.
    plain = re.sub(rf"(?ms)^{re.escape(_SENTENCE)}.*?(?=^{re.escape(_COMMAND)})", "", config)
    if not found:
        return plain
    before, command, after = plain.partition(_COMMAND)
    return before + comment + command + after


def _mesh(one: Record) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in one["mesh"].items() if size > 1)


def _memory(one: Record) -> str:
    used, available = (one["hbm"][name] / 2**30 for name in ("used", "available"))
    return f"{used:.1f} of {available:.4g} GiB"


def _steps(one: Record) -> str:
    return f"{_time(one['step_seconds'])} to {_time(one['step_seconds_not_overlapped'])}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
