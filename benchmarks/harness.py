"""Paired timings in fresh processes: what a benchmark of ours needs beyond the functions it compares.

A benchmark module has *cases*. A case is a function that builds its inputs and gives named variants, all of which do
the same work. Every repetition is a process of its own, started with the environment of its regime. It builds the
inputs once, checks that the variants agree, warms them up and runs them in random order, round after round. Ratios are
formed between medians of one process and only then pooled, so what disturbs a whole process cancels.

    CASES = {"squares": lambda job: {"power": lambda: Variant(lambda: x**2), "product": lambda: Variant(lambda: x * x)}}
    if __name__ == "__main__":
        main(CASES, report)  # report(options) calls options.collect(jobs) and writes tables

Two regimes, because formulas that write large temporaries spend most of their time in page faults under the stock
allocator, which gives every large block back to the system at once: ``stock`` is what users get; in ``retained`` freed
memory stays with the process, which compares the arithmetic. On GPUs torch has its own allocator, and the regime is
``device``.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import random
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
REGIMES: dict[str, dict[str, str]] = {
    "stock": {},
    "retained": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 35)},
    "device": {},
}
REGIME_TEXT = {"stock": "Stock allocator", "retained": "Heap retained", "device": "On the GPU"}
FORWARD, BOTH = "forward", "forward + backward"
MIN_ROUNDS, MAX_ROUNDS = 3, 25


@dataclass(frozen=True)
class Variant:
    """One way to do a case's work.

    Args:
        forward: The work.
        inputs: What gradients are asked for; none: only the forward pass is timed.
        grad: Gradient of the output, an input like the others.
        same: Whether outputs and gradients must equal those of the case's first variant.
        tolerance: Norm of the difference over the norm.
    """

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...] = ()
    grad: Tensor | None = None
    same: bool = True
    tolerance: float = 1e-3

    def run(self, direction: str) -> list[Tensor]:
        """The output, or the gradients."""
        if direction == FORWARD:
            with torch.no_grad():
                return [self.forward()]
        return list(torch.autograd.grad(self.forward(), self.inputs, self.grad))

    @property
    def directions(self) -> tuple[str, ...]:
        """What is timed."""
        return (FORWARD, BOTH) if self.inputs else (FORWARD,)


@dataclass(frozen=True)
class Job:
    """What one process is asked to measure."""

    case: str
    size: int
    regime: str = "stock"
    seed: int = 0
    seconds: float = 10.0
    threads: int = 1
    device: str = "cpu"
    variants: tuple[str, ...] = ()  # none: all
    memory: bool = False  # peak memory of the first of `variants` instead of times


Case = Callable[[Job], Mapping[str, Callable[[], Variant]]]


@dataclass
class Timings:
    """Medians in seconds of every process that did the same job, by variant and direction."""

    processes: list[dict[str, dict[str, float]]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # why, by variant

    def __contains__(self, variant: str) -> bool:
        return any(variant in process for process in self.processes)

    def variants(self) -> list[str]:
        """Names, in the order of the case."""
        return list(dict.fromkeys(name for process in self.processes for name in process))

    def seconds(self, variant: str, direction: str) -> list[float]:
        """Median of every process; empty if it was not timed."""
        return [p[variant][direction] for p in self.processes if direction in p.get(variant, {})]

    def ratios(self, slow: str, fast: str, direction: str) -> list[float]:
        """How many times longer `slow` takes than `fast`, for every process."""
        both = [p for p in self.processes if direction in p.get(slow, {}) and direction in p.get(fast, {})]
        return [p[slow][direction] / p[fast][direction] for p in both]


@dataclass(frozen=True)
class Memory:
    """Bytes: of the inputs, and at the highest moment of one forward and backward pass above them."""

    inputs: int
    above: int


# In the process that measures


def measure(job: Job, cases: Mapping[str, Case]) -> dict[str, object]:
    """Do the job and return what can be written as JSON."""
    torch.set_num_threads(job.threads)
    return _measure_memory(job, cases[job.case]) if job.memory else _measure_times(job, cases[job.case])


def _build(job: Job, case: Case) -> dict[str, Callable[[], Variant]]:
    torch.manual_seed(job.seed)
    return {name: make for name, make in case(job).items() if not job.variants or name in job.variants}


def _measure_times(job: Job, case: Case) -> dict[str, object]:
    variants, failed = _working(_build(job, case))
    todo = [(name, direction) for name, variant in variants.items() for direction in variant.directions]
    if job.regime != "stock":
        for name, direction in todo:  # a second time: after the first pass the heap still grows
            variants[name].run(direction)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in variants}
    shuffle = random.Random(job.seed).shuffle
    gc.collect()
    gc.disable()
    begin = time.perf_counter()
    rounds = 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() - begin < job.seconds):
        shuffle(todo)
        for name, direction in todo:
            times[name].setdefault(direction, []).append(_time(variants[name], direction, job.device))
        rounds += 1
    medians = {name: {d: statistics.median(t) for d, t in passes.items()} for name, passes in times.items()}
    return {"medians": medians, "failed": failed}


def _working(factories: Mapping[str, Callable[[], Variant]]) -> tuple[dict[str, Variant], dict[str, str]]:
    """The variants that run and agree with the first one, and what is wrong with the others."""
    variants: dict[str, Variant] = {}
    failed: dict[str, str] = {}
    yardstick: dict[str, list[Tensor]] = {}
    for name, make in factories.items():
        try:
            variants[name] = _checked(make(), yardstick)
        except Exception as error:  # noqa: PERF203 - whatever it is, the others can still be measured
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"
    return variants, failed


def _checked(variant: Variant, yardstick: dict[str, list[Tensor]]) -> Variant:
    """Run a variant once each way and compare; the first one becomes the yardstick."""
    for direction in variant.directions:
        result = variant.run(direction)
        if variant.same:
            _check_agreement(result, yardstick.setdefault(direction, result), variant.tolerance)
    return variant


def _check_agreement(result: Sequence[Tensor], yardstick: Sequence[Tensor], tolerance: float) -> None:
    largest = max(x.norm() for x in yardstick)
    for expected, got in zip(yardstick, result, strict=True):
        # Some gradients are zero but for rounding, such as that of a bias that softmax cancels.
        scale = torch.maximum(expected.norm(), largest * 1e-2)
        error = (got - expected).norm() / scale
        if not error <= tolerance:
            raise AssertionError(f"differs from the first variant by {error:.1e} of its norm")


def _time(variant: Variant, direction: str, device: str) -> float:
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        variant.run(direction)
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    result = variant.run(direction)  # kept alive: giving memory back is not part of the time
    seconds = time.perf_counter() - start
    del result
    return seconds


def _measure_memory(job: Job, case: Case) -> dict[str, object]:
    (name,) = job.variants
    tiny = _build(replace(job, size=500), case)[name]()  # loads libraries, starts threads
    _run_last(tiny)
    del tiny
    empty = _resident(job.device)
    variant = _build(job, case)[name]()
    inputs = _resident(job.device)
    _reset_peak(job.device)
    result = _run_last(variant)
    peak = _peak(job.device)
    del result
    return {"inputs": inputs - empty, "above": peak - inputs}


def _run_last(variant: Variant) -> list[Tensor]:
    return variant.run(variant.directions[-1])


def _resident(device: str) -> int:
    """Bytes the process holds, once everything free has been given back."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    if platform.system() == "Linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
        return _status("VmRSS")
    return _peak(device)  # nothing better: then figures are lower bounds


def _reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif platform.system() == "Linux":
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    if platform.system() == "Linux":
        return _status("VmHWM")
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if platform.system() == "Darwin" else highest * 1024


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024


# In the process that asks


@dataclass(frozen=True)
class Options:
    """The command line of a benchmark.

    Args:
        module: Name of the benchmark's module.
        quick: A smoke run: small inputs, one process, no judgement.
        processes: Repetitions.
        seconds: Each process times for about this long.
        threads: Of torch, in every process.
        device: ``"cpu"`` or ``"cuda"``.
        only: Sections to run; none: all.
        output: Folder of the results.
        failures: What did not run so far.
    """

    module: str
    quick: bool
    processes: int
    seconds: float
    threads: int
    device: str
    only: tuple[str, ...]
    output: Path
    failures: list[str] = field(default_factory=list)

    @property
    def regimes(self) -> tuple[str, ...]:
        """Of the host's allocator, where it is glibc's; torch has its own for GPUs."""
        if self.device == "cuda":
            return ("device",)
        if platform.system() != "Linux":
            return ("stock",)
        return ("retained",) if self.quick else ("retained", "stock")

    def wants(self, section: str) -> bool:
        """Whether the section is to be run."""
        return not self.only or section in self.only

    def time(self, jobs: Iterable[Job]) -> dict[Job, Timings]:
        """Times for every job, each in as many processes as were asked for; jobs that failed have no processes."""
        tasks = [replace(job, seed=seed) for seed in range(self.processes) for job in jobs]
        pooled: dict[Job, Timings] = {}
        for task, result in self._run(tasks):
            timings = pooled.setdefault(replace(task, seed=0), Timings())
            if result is not None:
                timings.processes.append(result["medians"])
                timings.failed.update(result["failed"])
        return pooled

    def peak_memory(self, jobs: Iterable[Job]) -> dict[Job, Memory]:
        """Peak memory of every job, one process each; jobs that failed are missing."""
        tasks = [replace(job, memory=True) for job in jobs]
        return {task: Memory(**result) for task, result in self._run(tasks) if result is not None}

    def _run(self, tasks: Sequence[Job]) -> Iterable[tuple[Job, dict | None]]:
        with tqdm(tasks, unit="process", desc=self.module.rpartition(".")[2], disable=None) as progress:
            for task in progress:
                task = replace(task, seconds=self.seconds, threads=self.threads, device=self.device)
                progress.set_postfix_str(f"{task.case} {task.size:,} {task.regime}")
                yield task, self._spawn(task)

    def _spawn(self, job: Job) -> dict | None:
        command = [sys.executable, "-m", self.module, "--child", json.dumps(asdict(job))]
        environment = {**os.environ, **REGIMES[job.regime]}
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        what = f"{job.case}, {job.size:,}, {job.regime}"
        if done.returncode != 0:
            reason = f"the process ended with {done.returncode}\n{done.stderr[-4000:]}"
            self._complain(f"{what}, {'; '.join(job.variants) or 'all variants'}: {reason}")
            return None
        result = json.loads(done.stdout.splitlines()[-1])
        for name, reason in result.get("failed", {}).items():
            self._complain(f"{what}, {name}: {reason}")
        return result

    def _complain(self, failure: str) -> None:
        self.failures.append(failure)
        tqdm.write(failure, sys.stderr)


def main(cases: Mapping[str, Case], report: Callable[[Options], None], sections: Sequence[str]) -> None:
    """The command line of a benchmark module, and of the processes it starts."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="smoke run: small inputs, one process, figures mean nothing"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=_cores(), help="threads of torch")
    parser.add_argument("--processes", type=int, default=3, help="repetitions")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each process times")
    parser.add_argument("--only", nargs="+", default=[], choices=sections, help="sections to run")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        job = Job(**{**json.loads(args.child), "variants": tuple(json.loads(args.child)["variants"])})
        print(json.dumps(measure(job, cases)))
        return
    module = sys.modules["__main__"].__spec__
    if module is None:
        parser.error("run this as a module, from the repository: python -m benchmarks.attention")
    output = args.output or ROOT / "benchmarks" / "results" / ("quick" if args.quick else "")
    options = Options(
        module=module.name,
        quick=args.quick,
        processes=1 if args.quick else args.processes,
        seconds=0.2 if args.quick else args.seconds,
        threads=args.threads,
        device=args.device,
        only=tuple(args.only),
        output=output,
    )
    report(options)
    if options.failures:
        sys.exit(f"{len(options.failures)} did not run, see above")


# Tables


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def milliseconds(seconds: Sequence[float]) -> str:
    """Median over processes."""
    return f"{statistics.median(seconds) * 1000:.3g}" if seconds else "-"


def spread(values: Sequence[float]) -> str:
    """Median over processes, and from the lowest to the highest."""
    if not values:
        return "-"
    low, median, high = (
        f"{x:.2f}" if x >= 1 else f"{x:.3f}" for x in (min(values), statistics.median(values), max(values))
    )
    return median if len(values) == 1 else f"{median} ({low} to {high})"


def ratio_table(timings: Timings, leave_out: Sequence[str] = ()) -> str:
    """Times of all variants, and how many times longer the first one takes."""
    names = [name for name in timings.variants() if name not in leave_out]
    if not names:
        return "No process came to its end.\n"
    base = names[0]
    rows = []
    for name in names:
        cells = [name]
        for direction in (FORWARD, BOTH):
            cells += [milliseconds(timings.seconds(name, direction)), spread(timings.ratios(base, name, direction))]
        rows.append(cells)
    rows += [[name, f"failed: {reason.splitlines()[0]}", "-", "-", "-"] for name, reason in timings.failed.items()]
    return table(["", *(x for d in (FORWARD, BOTH) for x in (f"{d}, ms", f"{base} ÷ this"))], rows)


@dataclass(frozen=True)
class Bar:
    """What was promised of a figure, and whether the median over processes keeps it."""

    name: str
    values: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None

    def row(self, judged: bool) -> list[str]:
        """Of the table of bars."""
        bound = f"at least {self.at_least:g}" if self.at_most is None else f"at most {self.at_most:g}"
        if not self.values or not judged:
            return [self.name, spread(self.values), bound, "-" if self.values else "not measured"]
        median = statistics.median(self.values)
        met = median >= self.at_least if self.at_least is not None else median <= (self.at_most or 0)
        return [self.name, spread(self.values), bound, "yes" if met else "**no**"]


def bar_table(bars: Sequence[Bar], judged: bool) -> str:
    """All bars, with what was measured."""
    return table(
        ["bar", "measured: median (lowest to highest process)", "wanted", "met"], [b.row(judged) for b in bars]
    )


def save(options: Options, name: str, title: str, sections: Sequence[str]) -> Path:
    """Write ``<name>-<machine>.md`` into the output folder and return its path."""
    text = "\n".join([f"# {title}\n", _conditions(options), *sections])
    path = options.output / f"{name}-{machine(options.device)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
    print(path)
    return path


def machine(device: str) -> str:
    """The machine's name as part of a file name."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{_cpu_model()} {_cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _conditions(options: Options) -> str:
    commit = _output("git", "describe", "--always", "--dirty")
    packages = ("torch", "torch-geometric", "torch-scatter", "dgl", "numpy", "scipy")
    versions = [f"Python {platform.python_version()}", *(f"{p} {_version(p)}" for p in packages)]
    device = _cpu_model()
    if options.device == "cuda":
        device = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {device}"
    command = f"python -m {shlex.join([options.module, *sys.argv[1:]])}"
    return table(
        ["", ""],
        [
            ["date, geoattn", f"{datetime.date.today()}, {commit or _version('geoattn')}"],
            ["command", f"`{command}`"],
            ["machine", f"{device}, {_isa()}, {_cores()} cores, {options.threads} threads, {_gigabytes()}"],
            [
                "versions",
                f"{', '.join(versions)}, {_output('c++', '--version').partition(chr(10))[0] or 'no compiler'}",
            ],
            ["processes", f"{options.processes}, each about {options.seconds:g} s and at least {MIN_ROUNDS} rounds"],
        ],
    ) + ("\nA smoke run: small inputs, one process; the figures mean nothing.\n" if options.quick else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(name: str) -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{name}\s*: (.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else ""


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _isa() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _gigabytes() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
