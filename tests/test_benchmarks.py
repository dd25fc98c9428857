"""The benchmarks run and write what they promise. What they measure is not tested."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import (
    attention,
    device,
    graph_layers,
    graphs,
    harness,
    neighborhood,
    peers,
    point_transformer_v3,
    serialization,
)
from benchmarks.harness import BOTH, FORWARD
from geoattn import Neighbors, attend
from tests.pretend import pretend_gpu

ROOT = Path(__file__).resolve().parents[1]


def run(module: str, *arguments: str, threads: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--device", "cpu", *arguments]
    command += ["--threads", "1"] if threads else []
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "section", "first"),
    [
        ("attention", "knn-zorder", "PyG"),
        ("layers", "between-products", "PyG"),
        ("windows", "equal-128", "dense"),
        ("sparse_conv", "3-32", "products"),
    ],
)
def test_smoke_run_writes_tables(module, section, first, tmp_path):
    done = run(module, "--only", section, "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("*.md")
    text = report.read_text()
    assert "failed" not in text
    assert f"--only {section}" in text  # the command that made it
    assert re.search(rf"^\| {first} \| [\d.]+ \| 1\.00 \| [\d.]+ \| 1\.00 \|$", text, re.MULTILINE)


class Measured(harness.Options):
    """Instead of measuring: PyG takes 12 times as long as the others, and time grows as the power 1.5 of the size."""

    def time(self, jobs):
        def seconds(name, job):
            return job.size**1.5 * (12 if name.startswith("PyG") else 1)

        def process(job):
            return {name: dict.fromkeys((FORWARD, BOTH), seconds(name, job)) for name in job.variants}

        return {job: harness.Timings([process(job)] * 3) for job in jobs}

    def peak_memory(self, jobs):
        return {job: harness.Memory(inputs=4 * 10**9, above=5 * 10**9) for job in jobs}


def test_the_padded_point_transformer_agrees_with_ours():
    job = harness.Job("step-half-128", 2_000)
    with torch.no_grad():
        padded, ours = (make().forward() for make in point_transformer_v3.CASES[job.case](job).values())
    torch.testing.assert_close(padded, ours, rtol=1e-3, atol=1e-3)


def test_layers_in_pygs_place_agree_with_it():
    """And run: what a process of the benchmark does, on few nodes."""
    for case in ("GATv2Conv-mesh-32", "TransformerConv-knn-first", "GravNetConv-knn", "AttentiveFP"):
        result = harness.measure(harness.Job(case, 200, seconds=0.0), graph_layers.CASES)
        assert not result["failed"]
        ours = "accelerated" if case == "AttentiveFP" else graph_layers.fast_backends("cpu")[0]
        assert {"PyG", ours} <= set(result["medians"])


def test_neighborhoods_agree_with_dense_attention():
    for case in ("7x7-bias", "8x8-stride-4"):
        result = harness.measure(harness.Job(case, 12 * 12, seconds=0.0), neighborhood.CASES)
        assert not result["failed"]
        assert len(result["medians"]) == 3


def test_graph_layers_are_judged(tmp_path, monkeypatch):
    class Found(Measured):
        def time(self, jobs):
            seconds = {"PyG": 12.0, "cpu": 1.0, "torch": 4.0, "accelerated": 3.0}
            process = {name: dict.fromkeys((FORWARD, BOTH), value) for name, value in seconds.items()}
            return {job: harness.Timings([process] * 3) for job in jobs}

    monkeypatch.setattr(graph_layers, "fast_backends", lambda device: ["cpu", "torch"])
    monkeypatch.setattr(graph_layers, "planetoid", lambda: tmp_path)
    graph_layers.report(Found("benchmarks.graph_layers", False, 3, 10, 2, "cpu", (), tmp_path))
    (report,) = tmp_path.glob("*.md")
    text = report.read_text()
    bars = dict(re.findall(r"^\| (\S*?,? ?\S* ?PyG ÷.*?|.*memory of.*?) \| ([\d.]+)", text, re.MULTILINE))
    assert bars["GATv2Conv-mesh, retained: PyG ÷ cpu, forward + backward"] == "12.00"
    assert bars["TransformerConv-knn-64: memory of cpu ÷ PyG"] == "1.00"
    assert "| GATv2Conv, 32 channels | cpu | 1.2e+04 | 1e+03 | 12.00 (12.00 to 12.00)" in text
    assert "| Polynormer | 1.2e+04 | 3e+03 | 4.00 (4.00 to 4.00)" in text


def test_report_judges_every_bar(tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "fast_backends", lambda device: ["cpu", "torch"])
    attention.report(Measured("benchmarks.attention", False, 3, 10, 2, "cpu", (), tmp_path))
    (report,) = tmp_path.glob("*.md")
    bars = dict(re.findall(r"^\| (.*?cpu.*?) \| ([\d.]+)", report.read_text(), re.MULTILINE))
    assert bars["knn-random, retained: PyG ÷ cpu, forward"] == "12.00"
    assert bars["gatv2-mesh, retained: PyG GATv2Conv ÷ cpu, forward + backward"] == "12.00"
    assert bars["growth, Z-order, 10,000 to 1,000,000 points: exponent of cpu, forward"] == "1.50"
    assert bars["memory, knn-random, stock: cpu, MB above inputs, forward + backward"] == "5000.00"
    assert bars["memory, 1,000,000 points, H = 8: cpu, everything held ÷ (query, key, value)"] == "2.93"
    assert len(list(tmp_path.glob("*.png"))) == 1


def one_case(*functions):
    def case(job):
        def variant(function):
            x = torch.linspace(1, 2, job.size).requires_grad_()
            return lambda: harness.Variant(lambda: function(x), (x,), torch.ones(job.size))

        return {function.__name__: variant(function) for function in functions}

    return case


def square(x):
    return x * x


def power(x):
    return x**2


def wrong_gradient(x):
    return x.detach() ** 2 + 0 * x


def raising(x):
    raise RuntimeError("no such kernel")


def test_variants_that_disagree_or_raise_are_left_out():
    case = one_case(square, power, wrong_gradient, raising)
    found = harness.measure(harness.Job("one", 100, seconds=0, threads=torch.get_num_threads()), {"one": case})
    assert set(found["medians"]) == {"square", "power"}
    assert all(seconds > 0 for passes in found["medians"].values() for seconds in passes.values())
    assert "differs" in found["failed"]["wrong_gradient"]
    assert found["failed"]["raising"] == "RuntimeError: no such kernel"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not say how much was held")
def test_peak_memory_is_what_was_held_at_once():
    megabytes = 32
    # In a process of its own, as benchmarks measure it: one that has worked before has freed memory at hand.
    code = f"""
import torch
from benchmarks import harness

def case(job):
    x = torch.linspace(1, 2, job.size).requires_grad_()
    # A product and what it is made of are held at once; what is older is freed.
    return {{"chain": lambda: harness.Variant(lambda: x * 2 * 2 * 2, (x,), torch.ones(job.size))}}

job = harness.Job("one", {megabytes * 2**20 // 4}, threads=1, variants=("chain",), memory=True)
found = harness.measure(job, {{"one": case}})
print(found["inputs"] / 2**20, found["above"] / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    inputs, above = map(float, done.stdout.split())
    assert inputs == pytest.approx(2 * megabytes, rel=0.1)  # x and the gradient of the output
    assert 1.9 * megabytes < above < 5.1 * megabytes


def test_ratios_are_formed_inside_a_process():
    timings = harness.Timings([{"a": {"forward": 4.0}, "b": {"forward": 2.0}}, {"a": {"forward": 30.0}}])
    timings.processes.append({"a": {"forward": 9.0}, "b": {"forward": 3.0}})
    assert timings.ratios("a", "b", "forward") == [2.0, 3.0]


@pytest.mark.parametrize(("value", "word"), [(4.0, "**no**"), (5.0, "yes")])
def test_bar_says_whether_it_is_met(value, word):
    assert harness.Bar("speed", [value], at_least=5).row(judged=True)[-1] == word
    assert harness.Bar("memory", [9 - value], at_most=4).row(judged=True)[-1] == word
    assert harness.Bar("speed", [], at_least=5).row(judged=True)[-1] == "not measured"


def test_every_gather_reads_every_row():
    pattern = Neighbors.knn(torch.rand(200, 3), 5)
    key, value = torch.rand(2, 200, 2, 35).unbind()
    expected = (key + value).sum((1, 2))[pattern.col].view(200, 5).sum(1)
    for name in peers.GATHERS:
        gather = peers.gather(name, key, value, pattern)
        if gather is None:
            continue
        got = gather()()
        if name.startswith("C++"):
            torch.testing.assert_close(got, expected)
        elif name != "index_select":
            torch.testing.assert_close(got, value.flatten(1)[pattern.col].view(200, 5, -1).sum(1))


def test_flex_attention_sees_the_same_neighbors():
    pos = graphs.z_ordered_points(300)
    pattern = Neighbors.knn(pos, 7)
    query, key, value = torch.randn(3, 300, 2, 16).unbind()
    expected = peers.pyg(query, key, value, pattern.row, pattern.col)
    torch.testing.assert_close(peers.flex_knn(pos, pattern)(query, key, value), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [3_600, 15_000, 30_000])
def test_mesh_has_about_the_size_asked_for(size):
    pattern = graphs.body_meshes(size)
    assert abs(pattern.num_queries - size) < 0.1 * size
    assert 6.5 < pattern.num_edges / pattern.num_queries < 7.5


def test_a_device_is_checked_and_timed(tmp_path):
    """As much as fits into a test: a section of either kind, each in a process of its own."""
    sections = ["--only", "windows"]
    done = run("device", *sections, "--output", str(tmp_path), threads=False)
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("device-*.md")
    text = report.read_text()
    assert "failed" not in text
    assert re.search(r"^\| equal runs, float32 \| right, to [\d.e-]+ \|$", text, re.MULTILINE)
    assert re.search(r"^\| attend over Windows \| [\d.]+ \| [\d.]+ \| [\d.]+ and [\d.]+ \| - \|$", text, re.MULTILINE)


def test_parity_checks_run_on_another_device(monkeypatch):
    """What they compute there is all there: on a real GPU nothing of this file can be tried before."""
    monkeypatch.setattr(device, "SECTIONS", {})
    device.make_sections()
    skipped = {"compiled", "tests/ops/test_triton.py", "evaluation of SurfaceTransformer"}
    with pretend_gpu() as there:
        place = device.Place(str(there), quick=True)
        for section, steps in device.SECTIONS.items():
            for name, step in steps.items() if section.startswith("Parity") else ():
                if name not in skipped:
                    ((result,),) = step(place)
                    assert "right" in result or result == "equal", (section, name)


def test_what_fails_on_a_device_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    def wrong(place):
        raise AssertionError("two | three")

    def right(place):
        return [["right"]]

    steps = {"first": right, "second": wrong, "third": right}
    monkeypatch.setattr(device, "SECTIONS", {"Parity: one": steps})
    monkeypatch.setattr(device, "HEADERS", {"Parity: one": device.CHECKED})
    place = device.Place("cpu", quick=True)
    session = device.Session(place, tmp_path / "device.md", tmp_path, 0.0, float("inf"))
    assert device.child("Parity: one", 0, place, session.log("Parity: one")) == 0
    session.write()
    assert session.wrong() == ["Parity: one: second"]
    text = (tmp_path / "device.md").read_text()
    assert "| second | **failed**: AssertionError: two / three |" in text
    assert "| third | right |" in text
    assert "Traceback" in text


def test_a_process_that_dies_on_a_device_is_followed_by_another(tmp_path, monkeypatch):
    """As after an illegal access, which ends the process or all it can do."""
    monkeypatch.setattr(device, "SECTIONS", {"Parity: one": dict.fromkeys(("first", "second", "third"))})
    monkeypatch.setattr(device, "HEADERS", {"Parity: one": device.CHECKED})
    place = device.Place("cpu", quick=True)
    session = device.Session(place, tmp_path / "device.md", tmp_path, 0.0, float("inf"))
    starts = []

    class Dying:
        returncode = -11

        def __init__(self, command, cwd):
            start = int(command[command.index("--start") + 1])
            starts.append(start)
            with session.log("Parity: one").open("a") as file:
                file.write(json.dumps({"number": start, "name": str(start), "state": "begun"}) + "\n")

        def poll(self):
            return self.returncode

    monkeypatch.setattr(device.subprocess, "Popen", Dying)
    session.together(["Parity: one"], float("inf"))
    assert starts == [0, 1, 2]
    assert len(session.wrong()) == 3


def test_a_loop_over_bits_gives_the_same_serialization():
    for case in serialization.CASES:
        assert not harness.measure(harness.Job(case, 200, seconds=0.0), serialization.CASES)["failed"]


def test_torch_scatter_computes_the_same():
    pytest.importorskip("torch_scatter")
    pattern = Neighbors(torch.tensor([0, 2, 2, 5]), torch.tensor([0, 3, 1, 1, 2]), 4)
    query, key, value = (torch.randn(n, 2, 3, dtype=torch.float64, requires_grad=True) for n in (3, 4, 4))
    results = []
    for compute in (peers.torch_scatter_rows, attend):
        out = compute(query, key, value, pattern)
        results.append([out, *torch.autograd.grad(out.sin().sum(), (query, key, value))])
    torch.testing.assert_close(*results)
