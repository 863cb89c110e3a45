"""A run directory explains itself: config, environment, metrics, samples, checkpoints."""

import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import jax

from genjax.config import differences, dump
from genjax.errors import UserError
from genjax.run_config import RESUMABLE_CHANGES, RunConfig

_PACKAGES = ("genjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunDirectory:
    """The files of one run, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.assets = folder / "assets"
        self.config_file = folder / "config.toml"
        self.metrics_file = folder / "metrics.jsonl"
        self.samples_file = folder / "samples.jsonl"
        self.environment_file = folder / "environment.json"
        self.resumes_file = folder / "resumes.jsonl"
        self.tensorboard = folder / "tensorboard"
        self._lock: TextIO | None = None

    def exists(self) -> bool:
        """Whether a run was started here."""
        try:
            return self.config_file.exists()
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be a run directory ({error.strerror}); "
                "choose another with --workdir"
            ) from error

    def appears(self, seconds: float = 10.0) -> bool:
        """The same, with some patience for what another machine has just written."""
        end = time.monotonic() + seconds
        while not self.exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    def open(
        self,
        config: RunConfig,
        saved: RunConfig | None,
        save_assets: Callable[[Path], None] | None = None,
    ) -> None:
        """Start or continue a run here.

        Args:
            config: the config asked for.
            saved: the config of the run that is here, or None if there is none.
            save_assets: writes a new run's assets.

        Raises:
            UserError: the folder cannot be written, another process trains here, or the run here
                has another config; names the differences.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if saved is not None:
                self._refuse_changes(config, saved)
            else:
                self._refuse_foreign_files()
            self.lock("wait for it, or choose another with --workdir")
            if saved is None:
                # Again: another process may have started and ended a run here in the meantime.
                self._refuse_foreign_files()
            self.assets.mkdir(exist_ok=True)
            if saved is None and save_assets is not None:
                save_assets(self.assets)
            self._write_environment(saved is not None)
            # Last: with it the run exists, and has all that it needs to go on.
            self._write("config.toml", dump(config))
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            raise UserError(
                f"{self.folder}: cannot write the run directory ({error.strerror}); "
                "make room, or choose another with --workdir"
            ) from error

    def discard(self) -> None:
        """Take back a new run that a mistake kept from its first step.

        Its config would otherwise stand in the way of the corrected command.
        """
        for folder in (self.checkpoints, self.assets, self.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        for name in ("config.toml", "environment.json", "metrics.jsonl", "samples.jsonl", "lock"):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write_environment(self, resumes: bool) -> None:
        """Add this session's account; those of earlier sessions of the run stay as they are."""
        here = environment()
        if not (resumes and self.environment_file.exists()):
            self._write(self.environment_file.name, json.dumps(here, indent=2) + "\n")
            return
        earlier = ""
        if self.resumes_file.exists():
            earlier = self.resumes_file.read_text(encoding="utf-8")
        self._write(self.resumes_file.name, f"{earlier}{json.dumps(here)}\n")

    def _write(self, name: str, text: str) -> None:
        """Write a file so that a crash leaves either the old or the new one."""
        part = self.folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.folder / name)

    def lock(self, advice: str) -> None:
        """Keep other processes from training here or deleting checkpoints, until `close`.

        Args:
            advice: what to do if another process does, for the message.

        Raises:
            UserError: another process does.
            OSError: the lock cannot be written.
        """
        self._lock = (self.folder / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise UserError(
                f"{self.folder}: another process (pid {holder}) trains in this run directory; "
                f"{advice}"
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _refuse_changes(self, config: RunConfig, saved: RunConfig) -> None:
        fixed = [
            one.model_dump(mode="json", exclude=set(RESUMABLE_CHANGES)) for one in (saved, config)
        ]
        changed = differences(*fixed)
        if changed:
            shown = changed[:12] + ([f"and {len(changed) - 12} more"] if len(changed) > 12 else [])
            lines = "\n".join(f"  {line}" for line in shown)
            raise UserError(
                f"{self.folder} holds a run with another config:\n{lines}\n"
                "give the run's own values to continue it, or another --workdir"
            )

    def _refuse_foreign_files(self) -> None:
        foreign = sorted(
            entry.name
            for entry in self.folder.iterdir()
            # What a start that was cut short leaves.
            if entry.name not in ("lock", "assets", "environment.json") and entry.suffix != ".part"
        )
        if foreign:
            raise UserError(
                f"{self.folder}: not empty and not a run (it holds {foreign[0]}); "
                "choose another folder with --workdir"
            )

    def close(self) -> None:
        """Let other processes use the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def environment() -> dict[str, Any]:
    """Versions, devices, command and source revision of this process, to reproduce a run."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "command": shlex.join([Path(sys.executable).name, *_module_arguments()]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [f"{device.device_kind} ({device.platform})" for device in jax.devices()],
        "processes": jax.process_count(),
        "versions": versions,
        "git_commit": _git_commit(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _module_arguments() -> list[str]:
    """`sys.argv`, with `-m module` in place of the path of a program started that way."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return sys.argv
    return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


def _git_commit() -> str | None:
    """The commit of the source tree that runs, with "+" if it was changed, or None."""
    root = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()
