"""Weights of I3D and LPIPS, from the files that people have."""

import hashlib
import json
import sys
import warnings

import numpy as np
import pytest

from genjax.errors import UserError
from genjax.image.lpips import load_lpips
from genjax.video.i3d import load_i3d
from tests.image.test_lpips import lpips_state
from tests.video.test_i3d import i3d_state, i3d_units
from tools import convert_i3d, convert_lpips

BRANCHES = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}
UNITS = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}


@pytest.fixture(scope="module")
def state():
    """I3D without scales, which TensorFlow's has not."""
    return i3d_state(scales=False)


@pytest.fixture(scope="module")
def converted(state):
    return convert_i3d.convert(state)


def by_branches(state):
    """The same under the names of another port."""
    found = {}
    for name, value in state.items():
        module, *rest = name.split(".")
        parts = {"logits": "conv3d_0c_1x1"}.get(module, module.lower()).split(".")
        if rest[0] in BRANCHES:
            parts.append(f"branch_{BRANCHES[rest.pop(0)]}")
        rest[0] = rest[0].replace("bn", "batch3d")
        found[".".join([*parts, *rest])] = value
    return found


def by_tensorflow(state):
    """The same under TensorFlow's names and in its layouts."""
    top = "RGB/inception_i3d"
    logits = f"{top}/Logits/Conv3d_0c_1x1/conv_3d"
    kernel = state["logits.conv3d.weight"].transpose(2, 3, 4, 1, 0)
    found = {f"{logits}/w:0": kernel, f"{logits}/b:0": state["logits.conv3d.bias"]}
    for name, *_ in i3d_units():
        block, _, branch = name.partition(".")
        module = f"{top}/{block}" + (f"/{UNITS[branch]}" if branch else "")
        if name == "Mixed_5b.b2b":
            module = f"{top}/Mixed_5b/Branch_2/Conv3d_0a_3x3"
        kernel = state[f"{name}.conv3d.weight"]
        found[f"{module}/conv_3d/w:0"] = kernel.transpose(2, 3, 4, 1, 0)
        for there, here in (
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_variance", "running_var"),
        ):
            value = state[f"{name}.bn.{here}"].reshape(1, 1, 1, 1, -1)
            found[f"{module}/batch_norm/{there}:0"] = value
    return found


# ---- I3D --------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize("rename", [by_branches, by_tensorflow])
def test_every_naming_gives_the_same_network(state, converted, rename):
    found = convert_i3d.convert(rename(state))
    assert found.keys() == converted.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, converted[name])


@pytest.mark.fast
def test_a_file_of_arrays_is_converted_with_its_digest(state, converted, tmp_path, capsys):
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(source, **by_tensorflow(state))
    assert convert_i3d.main([str(source), str(target)]) == 0
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out
    weights = load_i3d(target)
    assert weights.sha256 == digest
    kernel = weights.params["Mixed_4e"]["b2b"]["kernel"]
    assert kernel.shape == (3, 3, 3, 32, 64)
    np.testing.assert_array_equal(kernel, converted["Mixed_4e/b2b/kernel"])
    with np.load(target) as file:
        assert json.loads(str(file["sources"])) == [["in.npz", digest]]


def test_pytorch_files_are_converted(state, converted, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    tensors["Conv3d_1a_7x7.bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    source, target = tmp_path / "in.pt", tmp_path / "out.npz"
    torch.save({"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, source)
    assert convert_i3d.main([str(source), str(target)]) == 0
    found = load_i3d(target).params["Mixed_3b"]["b0"]["bias"]
    np.testing.assert_array_equal(found, converted["Mixed_3b/b0/bias"])
    source.write_bytes(b"no weights")
    assert convert_i3d.main([str(source), str(target)]) == 2
    assert "in.pt is no file of weights" in capsys.readouterr().err
    torch.save([1, 2], source)
    assert convert_i3d.main([str(source), str(target)]) == 2
    assert "holds no dict of tensors" in capsys.readouterr().err


def test_torchscript_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "network.pt"
    module = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(f"{path}")
    found = convert_i3d.read_arrays(path, "")
    assert sorted(found) == ["0.bias", "0.weight"]
    np.testing.assert_array_equal(found["0.weight"], module[0].weight.detach().numpy())


@pytest.mark.fast
def test_arrays_that_are_not_i3ds_are_named(state):
    some = {name: value for name, value in state.items() if name != "Mixed_5c.b3b.bn.running_var"}
    with pytest.raises(UserError, match=r"here.pt: 1 arrays .* first Mixed_5c\.b3b\.bn\.running"):
        convert_i3d.convert(some, "here.pt")
    flow = state | {"Conv3d_1a_7x7.conv3d.weight": np.zeros((64, 2, 7, 7, 7), np.float32)}
    with pytest.raises(UserError, match=r"Conv3d_1a_7x7/kernel has shape \(7, 7, 7, 2, 64\)"):
        convert_i3d.convert(flow)
    short = state | {"Mixed_3b.b0.bn.bias": np.zeros(63, np.float32)}
    with pytest.raises(UserError, match=r"Mixed_3b\.b0\.bn\.bias has 63 numbers"):
        convert_i3d.convert(short)
    flat = state | {"Mixed_3b.b0.conv3d.weight": np.zeros((64, 192), np.float32)}
    with pytest.raises(UserError, match=r"Mixed_3b\.b0\.conv3d\.weight has 2 axes"):
        convert_i3d.convert(flat)


@pytest.mark.fast
def test_the_way_out_is_told(state, tmp_path, capsys, monkeypatch):
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    assert convert_i3d.main([str(source), str(target)]) == 2
    assert "in.npz cannot be read" in capsys.readouterr().err
    source.write_bytes(b"no weights")
    assert convert_i3d.main([str(source), str(target)]) == 2
    assert "in.npz is no file of weights" in capsys.readouterr().err
    np.savez(source, **state)
    assert convert_i3d.main([str(source), str(tmp_path / "out.txt")]) == 2
    assert "must end in .npz" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    assert convert_i3d.main([str(tmp_path / "in.pt"), str(target)]) == 2
    assert "pip install torch" in capsys.readouterr().err


# ---- LPIPS ------------------------------------------------------------------------------------


@pytest.mark.fast
def test_alexnet_and_heads_are_joined(tmp_path, capsys):
    sources = [tmp_path / "alexnet.npz", tmp_path / "heads.npz"]
    for path, arrays in zip(sources, lpips_state(), strict=True):
        np.savez(path, **arrays)
    target = tmp_path / "lpips.npz"
    assert convert_lpips.main([*map(str, sources), str(target)]) == 0
    weights = load_lpips(target)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    assert weights.sha256 == "+".join(digests)
    kernel = lpips_state()[0]["features.3.weight"]
    np.testing.assert_array_equal(weights.params["conv2"]["kernel"], kernel.transpose(2, 3, 1, 0))
    assert weights.params["head5"]["weight"].shape == (256,)
    assert convert_lpips.main([str(sources[0]), str(target)]) == 2
    assert "5 of 15 arrays are missing, first lin0.model.1.weight" in capsys.readouterr().err


@pytest.mark.fast
def test_the_whole_network_in_one_file_is_the_same():
    alexnet, heads = lpips_state()
    whole = {"scaling_layer.shift": np.zeros(3)}
    for number, place in enumerate((0, 3, 6, 8, 10), 1):
        for part in ("weight", "bias"):
            value = alexnet[f"features.{place}.{part}"]
            whole[f"net.slice{number}.{place}.{part}"] = value
        whole[f"lins.{number - 1}.model.1.weight"] = heads[f"lin{number - 1}.model.1.weight"]
    expected = convert_lpips.convert(alexnet | heads)
    found = convert_lpips.convert(whole)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.fast
def test_heads_that_make_no_distance_are_refused():
    alexnet, heads = lpips_state()
    heads["lin2.model.1.weight"][0, 7] = -0.1
    with pytest.raises(UserError, match=r"lin2\.model\.1\.weight has negative weights"):
        convert_lpips.convert(alexnet | heads)
    vgg = alexnet | heads | {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    vgg["lin2.model.1.weight"] = np.abs(vgg["lin2.model.1.weight"])
    with pytest.raises(UserError, match=r"conv1/kernel has shape \(3, 3, 3, 64\)"):
        convert_lpips.convert(vgg)
