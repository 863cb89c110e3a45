"""Profiling a run's steps, and the table of its operations."""

import json
import types

import pytest

import train.profiler
from genjax.errors import UserError
from tests.toy import Toy, ToyConfig
from tests.train.running import StopAt, lines, run_toy
from train.loop import Outcome
from train.profile_table import Operation, idle_share, own_times, read_operations, summary
from train.profiler import TABLE, _check_libtpu, libtpu_is_loaded

STEPS = {"profile_steps": (3, 6), "every": 2}


@pytest.fixture
def profiling():
    """Tests that rehearse in the same process load a libtpu whose profiler may not fit."""
    if libtpu_is_loaded():
        pytest.skip("libtpu is loaded")


def table(folder):
    return json.loads((folder / "profile" / TABLE).read_text())


def events(folder):
    return [entry["message"] for entry in lines(folder, "event")]


def test_a_profile_names_what_the_steps_did(profiling, tmp_path):
    config = ToyConfig(steps=8, evaluation=4, mesh={"data": 2}, log=STEPS)
    result = run_toy(config, tmp_path)
    assert result.outcome is Outcome.FINISHED
    found = table(tmp_path)
    assert found["steps"] == [3, 6] and found["devices"] == 2
    assert (tmp_path / "profile" / found["trace"]).is_file()
    assert 0 < found["idle_share"] < 1
    operations = found["operations"]
    programs = {operation["program"] for operation in operations}
    # The evaluation that lies among the steps shows; what came before and after does not.
    assert programs >= {"jit_train_step", "jit_train_step_double"}
    training = [line for line in operations if line["program"] == "jit_train_step"]
    assert max(operation["count"] for operation in training) == 3
    assert any("dot_general" in operation["source"] for operation in training)
    shares = [operation["share"] for operation in operations]
    assert shares == sorted(shares, reverse=True)
    others = found["others"]["share"] if found["others"] else 0.0
    assert sum(shares) + others == pytest.approx(1.0, abs=0.01)
    assert any(said.startswith("profiled steps 3 to 6:") for said in events(tmp_path))
    assert lines(tmp_path, "speed")[-1]["seconds_profiling"] > 0


def test_a_stop_ends_the_profile_and_a_resumed_run_profiles_what_is_left(profiling, tmp_path):
    config = ToyConfig(steps=9, log=STEPS | {"profile_steps": (2, 9)})
    stopped = run_toy(config, tmp_path, stop=StopAt(4))
    assert stopped.outcome is Outcome.INTERRUPTED
    assert table(tmp_path)["steps"] == [2, 4]
    run_toy(config, tmp_path)
    # The first step of a session compiles.
    assert table(tmp_path)["steps"] == [6, 9]


def test_divergence_ends_the_profile(profiling, tmp_path):
    class Broken(Toy):
        def train_step(self, state, batch, variant=None):
            state, metrics = super().train_step(state, batch, variant)
            return state, metrics | {"loss": metrics["loss"] / (state.step < 5)}

    config = ToyConfig(steps=9, log={"profile_steps": (2, 9), "every": 1})
    assert run_toy(config, tmp_path, task=Broken(config)).outcome is Outcome.DIVERGED
    first, last = table(tmp_path)["steps"]
    assert first == 2 and 5 <= last < 9


def test_a_session_that_begins_past_the_steps_says_so_once(profiling, tmp_path):
    config = ToyConfig(steps=6, log={"every": 2})
    run_toy(config, tmp_path, stop=StopAt(5))
    again = config.model_copy(update={"log": ToyConfig(log=STEPS | {"profile_steps": (2, 5)}).log})
    run_toy(again, tmp_path)
    said = [message for message in events(tmp_path) if "no profile" in message]
    assert said == ["no profile: this session begins at step 5, past log.profile_steps"]
    assert not (tmp_path / "profile").exists()


def test_a_trace_that_cannot_be_written_stops_no_training(profiling, tmp_path, monkeypatch):
    def full():
        raise RuntimeError("RESOURCE_EXHAUSTED: no space left on device")

    stop = train.profiler.jax.profiler.stop_trace
    monkeypatch.setattr(train.profiler.jax.profiler, "stop_trace", lambda: (stop(), full()))
    config = ToyConfig(steps=8, log=STEPS)
    assert run_toy(config, tmp_path).outcome is Outcome.FINISHED
    assert any("no space left" in message for message in events(tmp_path))


@pytest.mark.fast
@pytest.mark.parametrize("steps", [(1, 5), (5, 5), (6, 5), (0, 1)])
def test_steps_that_cannot_be_profiled(steps):
    with pytest.raises(ValueError, match=r"such as \[10, 20\]"):
        ToyConfig(log={"profile_steps": steps})
    with pytest.raises(ValueError, match="ends at step 20, and the run at step 19"):
        ToyConfig(steps=19, log={"profile_steps": (10, 20)})
    assert ToyConfig(steps=20, log={"profile_steps": (10, 20)})


@pytest.mark.fast
def test_a_libtpu_whose_profiler_crashes_is_refused(monkeypatch):
    asked = ['jaxlib==0.10.2; extra == "tpu"', 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(train.profiler.importlib.metadata, "requires", lambda name: asked)
    _check_libtpu("0.0.42")
    _check_libtpu("0.0.42.1")
    with pytest.raises(UserError, match=r"libtpu 0\.0\.421 crashes.*comes with libtpu 0\.0\.42;"):
        _check_libtpu("0.0.421")


def operation(name, start, duration, device="TPU:0", line="XLA Ops"):
    return Operation(device, line, "jit_step", name, start, duration, "")


@pytest.mark.fast
def test_an_operations_own_time_is_without_those_inside():
    nested = [
        operation("add", 120, 10),
        operation("while", 100, 100),
        operation("call", 130, 40),
        operation("dot", 135, 30),
        operation("copy", 200, 5),
        operation("while", 100, 100, line="Stream #2"),
        operation("while", 100, 100, device="TPU:1"),
    ]
    assert own_times(nested) == [10, 50, 10, 30, 5, 100, 100]


@pytest.mark.fast
def test_a_device_is_idle_while_no_line_of_it_works():
    busy = [
        operation("a", 0, 40),
        operation("b", 20, 30, line="Stream #2"),
        operation("c", 60, 40),
        operation("a", 500, 100, device="TPU:1"),
    ]
    assert idle_share(busy) == pytest.approx(0.05)
    assert idle_share([]) == 0


@pytest.mark.fast
def test_a_summary_is_the_mean_over_devices():
    executed = [
        operation(name, start, duration, device)
        for device in ("TPU:0", "TPU:1")
        for name, start, duration in (("dot", 0, 6e9), ("add", 6e9, 1e9), ("dot", 7e9, 2e9))
    ]
    executed.append(operation("copy", 9e9, 2e9))
    found = summary(executed, {("jit_step", "dot"): "mlp/dot_general"}, longest=2)
    assert found["devices"] == 2 and found["seconds"] == 10
    assert found["operations"] == [
        {
            "program": "jit_step",
            "name": "dot",
            "source": "mlp/dot_general",
            "seconds": 8,
            "share": 0.8,
            "count": 2,
        },
        {
            "program": "jit_step",
            "name": "add",
            "source": "",
            "seconds": 1,
            "share": 0.1,
            "count": 1,
        },
    ]
    assert found["others"] == {"names": 1, "seconds": 1, "share": 0.1, "count": 0.5}


def plane(name, **named_lines):
    made = [types.SimpleNamespace(name=n, events=events) for n, events in named_lines.items()]
    return types.SimpleNamespace(name=name, lines=made)


def event(name, **stats):
    return types.SimpleNamespace(name=name, start_ns=1.0, duration_ns=2.0, stats=stats.items())


@pytest.mark.fast
def test_operations_of_each_kind_of_device():
    host = plane(
        "/host:CPU",
        python=[event("step"), event("Foo::Bar", hlo_op="no")],
        tf_XLAEigen=[
            event("dot.3", hlo_op="dot.3", hlo_module="jit_step", device_ordinal=1),
            event("end: dot.3"),
        ],
    )
    text = "%fusion.7 = f32[8]{0} fusion(%p), kind=kLoop"
    tpu = plane(
        "/device:TPU:0",
        **{
            "XLA Modules": [event("jit_step(12)")],
            "XLA Ops": [event(text, tf_op="mlp/dot_general")],
            "Steps": [event("1")],
        },
    )
    gpu = plane(
        "/device:GPU:0",
        **{
            "Stream #13(Compute)": [event("gemm_kernel", hlo_op="dot.1", hlo_module="jit_step")],
            "Stream #14(MemcpyD2D)": [event("MemcpyD2D")],
            "Launch Stats": [event("launch")],
        },
    )

    def read(*planes):
        found = read_operations(types.SimpleNamespace(planes=planes))
        return [(one.device, one.program, one.name, one.source) for one in found]

    assert read(host) == [("CPU:1", "jit_step", "dot.3", "")]
    assert read(host, tpu) == [("/device:TPU:0", "", "fusion.7", "mlp/dot_general")]
    assert read(gpu, host) == [
        ("/device:GPU:0", "jit_step", "dot.1", ""),
        ("/device:GPU:0", "", "MemcpyD2D", ""),
    ]
