"""The walls of the house, read off the source tree."""

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("genjax", "train", "tools", "benchmarks")
WINGS = ("text", "image", "video")

pytestmark = pytest.mark.fast


def sources(*folders):
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return [file.relative_to(ROOT) for file in files]


@functools.cache
def parsed(file):
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imports_of(tree, package=()):
    """Dotted names that a file imports, wherever in it; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def names_of(tree):
    """Dotted names that a file uses, `import ... as` and `from ... import` written out."""
    written_out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            written_out |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                written_out[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and parts:
            yield ".".join([written_out.get(node.id, node.id), *reversed(parts)])


def within(name, *modules):
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def importers(files, *modules):
    """Which of the files import any of the modules, as "file: module"."""
    return [
        f"{file}: {name}"
        for file in files
        for name in imports_of(parsed(file), file.parent.parts)
        if within(name, *modules)
    ]


def users(files, *names):
    return [f"{file}: {name}" for file in files for name in names_of(parsed(file)) if name in names]


def test_the_core_imports_nothing_of_the_shell():
    assert importers(sources("genjax"), "train", "tools", "benchmarks", "tests") == []


def test_the_shell_imports_no_tools_and_nobody_imports_tests():
    assert importers(sources("train"), "tools", "benchmarks") == []
    assert importers(sources(*PACKAGES), "tests") == []


@pytest.mark.parametrize("wing", WINGS)
def test_wings_do_not_import_each_other(wing):
    others = {f"genjax.{other}" for other in WINGS} - {f"genjax.{wing}"}
    if wing == "video":
        # Frames are images.
        others.remove("genjax.image")
    assert importers(sources(f"genjax/{wing}"), *others) == []


def test_what_wings_share_imports_no_wing():
    shared = sources("genjax/nn", "genjax/data", "genjax/parallel")
    assert importers(shared, *(f"genjax.{wing}" for wing in WINGS)) == []


def test_the_loop_knows_no_model():
    wings = [f"genjax.{wing}" for wing in WINGS]
    files = [file for file in sources("train") if file.name != "__main__.py"]
    assert importers(files, *wings, "genjax.families") == []
    assert importers(sources("train"), *wings) == []


def test_only_the_parallel_package_of_the_core_knows_devices():
    files = [file for file in sources("genjax") if "parallel" not in file.parts]
    devices = ("jax.devices", "jax.local_devices", "jax.make_mesh", "jax.set_mesh")
    meshes = ("jax.sharding.Mesh", "jax.sharding.AbstractMesh", "jax.sharding.NamedSharding")
    assert users(files, *devices, *meshes) == []


def test_models_do_not_know_the_mesh():
    # A kernel that is split by hand names the axes; it is told nothing about devices.
    axes = ("BATCH_AXES", "SEQUENCE_AXIS", "TENSOR_AXIS")
    allowed = ("genjax.parallel.mesh", *(f"genjax.parallel.mesh.{name}" for name in axes))
    found = importers(sources("genjax/nn"), "genjax.parallel")
    assert [one for one in found if one.partition(": ")[2] not in allowed] == []


def test_tensorflow_is_imported_nowhere():
    assert importers(sources(*PACKAGES, "tests"), "tensorflow") == []


def test_private_modules_of_jax_are_used_in_one_place():
    # JAX's coordination service has no public key-value store.
    allowed = Path("genjax/parallel/processes.py")
    files = [file for file in sources(*PACKAGES, "tests") if file != allowed]
    assert importers(files, "jax._src", "jaxlib", "flax.core.nn") == []
    private = [
        f"{file}: {name}"
        for file in files
        for name in names_of(parsed(file))
        if re.match(r"(jax|flax|optax|orbax|grain)\.(\w+\.)*_[a-z]", name)
    ]
    assert private == []


def test_the_core_prints_nothing():
    printing = [
        f"{file}:{node.lineno}"
        for file in sources("genjax")
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert printing == []


def test_no_file_names_a_path_of_somebodys_machine():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    # Written with a class, so that this file does not name one itself.
    machine = re.compile(r"(?<![\w.~}])[/](work|root|tmp|home|Users|mnt|workspace)(/|\b)")
    found = []
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if not file.is_file():
            continue
        text = file.read_bytes().decode("utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), 1):
            if machine.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert found == []


# The rules' own tools: a rule that sees nothing passes everything.


def test_imports_are_seen_in_every_form():
    code = (
        "import jax._src.core\n"
        "from genjax import text\n"
        "from ..image import networks\n"
        "from . import clips\n"
        "def late():\n    from train.loop import train\n"
    )
    found = set(imports_of(ast.parse(code), ("genjax", "video")))
    assert {"jax._src.core", "genjax.text", "genjax.image.networks", "genjax.video.clips"} <= found
    assert "train.loop" in found


def test_names_are_seen_through_their_aliases():
    code = (
        "import jax\nimport jax as j\nfrom jax import sharding as s\nfrom jax import make_mesh\n"
        "jax.devices()\nj.local_devices()\ns.Mesh\n"
    )
    found = set(names_of(ast.parse(code)))
    assert {"jax.devices", "jax.local_devices", "jax.sharding.Mesh", "jax.make_mesh"} <= found


def test_the_tree_is_where_the_rules_look():
    assert len(sources("genjax")) > 20
    assert all(sources(package) for package in PACKAGES)
