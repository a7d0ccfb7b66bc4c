"""IQL updates per second: robot_rl, d3rlpy and jitted JAX on the same problem, in one process.

The rivals take turns in short rounds after a warm-up, so that what else the machine does hits all
of them; the figures are medians over the rounds. Batches are made beforehand, different from one
update to the next. Every number of threads is measured in a process of its own, bound to as many
cores before any library starts its threads. d3rlpy gets that many threads within each operation,
JAX a pool of that size; robot_rl gets `Agent.set_workers` and one thread within each operation.

Install, in an environment of its own because d3rlpy pins an old gymnasium:

  python -m pip install torch==2.13.0
  python -m pip install --no-deps d3rlpy
  python -m pip install gym gymnasium h5py tqdm structlog click colorama dataclasses-json
  python -m pip install scikit-learn
  python -m pip install jax optax
  python -m pip install .

Then: python benchmarks/iql_updates.py --json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

OBSERVATION_DIM, ACTION_DIM, BATCH_SIZE, HIDDEN = 17, 6, 256, (256, 256)
DISCOUNT, EXPECTILE, INVERSE_TEMPERATURE, MAX_WEIGHT = 0.98, 0.7, 3.0, 100.0
LEARNING_RATE, TAU = 3e-4, 0.005
BATCHES = 64
RESULTS = Path(__file__).parent / "results" / "iql_updates.json"


@dataclasses.dataclass
class Rival:
    """One implementation: ``update(i)`` learns from batch i, ``sync()`` waits until it is done.

    ``torch_threads`` are those within one operation of torch, while it is this rival's turn.
    """

    name: str
    version: str
    update: Callable[[int], Any]
    sync: Callable[[], Any] = lambda: None
    torch_threads: int = 1


def make_batches(seed: int = 0) -> list[dict[str, Any]]:
    """Random transitions, float32."""
    import numpy as np

    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    return [
        {
            "observation": normal(BATCH_SIZE, OBSERVATION_DIM),
            "action": np.tanh(normal(BATCH_SIZE, ACTION_DIM)),
            "reward": normal(BATCH_SIZE),
            "next_observation": normal(BATCH_SIZE, OBSERVATION_DIM),
            "discount": np.full(BATCH_SIZE, DISCOUNT, np.float32),
        }
        for _ in range(BATCHES)
    ]


def make_ours(batches: list[dict[str, Any]], threads: int, compile_mode: str) -> Rival:
    """robot_rl's IQL; ``compile_mode`` is on or off."""
    import torch

    from robot_rl.agents import Batch, make_agent

    agent = make_agent(
        "iql",
        observation_dim=OBSERVATION_DIM,
        goal_dim=0,
        action_dim=ACTION_DIM,
        config={
            "hidden_dims": HIDDEN,
            "learning_rate": LEARNING_RATE,
            "batch_size": BATCH_SIZE,
            "discount": DISCOUNT,
            "expectile": EXPECTILE,
            "inverse_temperature": INVERSE_TEMPERATURE,
            "max_weight": MAX_WEIGHT,
            "tau": TAU,
            "compile": compile_mode,
        },
    )
    data = [Batch.from_numpy(batch) for batch in batches]
    if compile_mode == "off":
        agent.set_workers(min(threads, 2))
        name, torch_threads = "robot_rl", 1
    else:
        name, torch_threads = "robot_rl compiled", threads
    return Rival(
        name, torch.__version__, lambda i: agent.update(data[i]), torch_threads=torch_threads
    )


def make_d3rlpy(batches: list[dict[str, Any]], threads: int) -> Rival:
    """d3rlpy's IQL, called below its own conversion from numpy, with tensors made beforehand."""
    logging.disable(logging.WARNING)
    # The old gym that d3rlpy imports announces its end on standard error.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import d3rlpy
        from d3rlpy.torch_utility import TorchMiniBatch
    import torch

    algo = d3rlpy.algos.IQLConfig(
        actor_learning_rate=LEARNING_RATE,
        critic_learning_rate=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        gamma=DISCOUNT,
        tau=TAU,
        n_critics=2,
        expectile=EXPECTILE,
        weight_temp=INVERSE_TEMPERATURE,
        max_weight=MAX_WEIGHT,
    ).create(device="cpu:0")
    algo.create_impl((OBSERVATION_DIM,), ACTION_DIM)
    column = torch.zeros(BATCH_SIZE, 1)
    data = [
        TorchMiniBatch(
            observations=torch.from_numpy(batch["observation"]),
            actions=torch.from_numpy(batch["action"]),
            rewards=torch.from_numpy(batch["reward"]).unsqueeze(1),
            next_observations=torch.from_numpy(batch["next_observation"]),
            next_actions=torch.from_numpy(batch["action"]),
            returns_to_go=column,
            terminals=column,
            intervals=column + 1.0,
            device="cpu:0",
        )
        for batch in batches
    ]
    implementation = algo.impl
    return Rival(
        "d3rlpy",
        d3rlpy.__version__,
        lambda i: implementation.update(data[i], i),
        torch_threads=threads,
    )


def make_jax(batches: list[dict[str, Any]], threads: int) -> Rival:
    """The same losses, networks, Adam and target update in jax and optax, one jitted call.

    Its ``threads`` are as many as the cores that the process is bound to.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    def init(key: Any, dims: tuple[int, ...]) -> list[tuple[Any, Any]]:
        layers = []
        for fan_in, fan_out in itertools.pairwise(dims):
            key, sub = jax.random.split(key)
            bound = 1.0 / np.sqrt(fan_in)
            weight = jax.random.uniform(sub, (fan_in, fan_out), minval=-bound, maxval=bound)
            layers.append((weight, jnp.zeros(fan_out)))
        return layers

    def mlp(layers: list[tuple[Any, Any]], x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = jax.nn.relu(x @ weight + bias)
        weight, bias = layers[-1]
        return x @ weight + bias

    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    critic_dims = (OBSERVATION_DIM + ACTION_DIM, *HIDDEN, 1)
    params: dict[str, Any] = {
        "value": init(keys[0], (OBSERVATION_DIM, *HIDDEN, 1)),
        "critic": [init(keys[1], critic_dims), init(keys[2], critic_dims)],
        "policy": init(keys[3], (OBSERVATION_DIM, *HIDDEN, ACTION_DIM)),
        "log_std": jnp.full(ACTION_DIM, np.log(0.15)),
    }
    target = jax.tree.map(lambda x: x + 0.0, params["critic"])
    optimizer = optax.adam(LEARNING_RATE)
    moments = optimizer.init(params)
    stop = jax.lax.stop_gradient

    def loss(params: Any, target: Any, batch: Any) -> Any:
        state_action = jnp.concatenate([batch["observation"], batch["action"]], 1)
        target_q = jnp.minimum(*(mlp(net, state_action) for net in target))[:, 0]
        value = mlp(params["value"], batch["observation"])[:, 0]
        difference = target_q - value
        asymmetry = jnp.where(difference < 0.0, 1.0 - EXPECTILE, EXPECTILE)
        value_loss = (asymmetry * difference**2).mean()
        next_value = stop(mlp(params["value"], batch["next_observation"])[:, 0])
        goal = batch["reward"] + batch["discount"] * next_value
        critic_loss = sum(
            ((mlp(net, state_action)[:, 0] - goal) ** 2).mean() for net in params["critic"]
        )
        weight = stop(jnp.minimum(jnp.exp(INVERSE_TEMPERATURE * difference), MAX_WEIGHT))
        mean = jnp.tanh(mlp(params["policy"], batch["observation"]))
        log_std = params["log_std"]
        scaled = (batch["action"] - mean) * jnp.exp(-log_std)
        log_prob = (-0.5 * scaled**2 - log_std - 0.5 * np.log(2.0 * np.pi)).sum(1)
        policy_loss = -(weight * log_prob).mean()
        metrics = (value_loss, critic_loss, policy_loss, value.mean(), goal.mean())
        return value_loss + critic_loss + policy_loss, metrics

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, target: Any, moments: Any, batch: Any) -> Any:
        gradient, metrics = jax.grad(loss, has_aux=True)(params, target, batch)
        change, moments = optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, change)
        target = jax.tree.map(lambda old, new: old + TAU * (new - old), target, params["critic"])
        return params, target, moments, metrics

    data = [{key: jnp.asarray(value) for key, value in batch.items()} for batch in batches]
    held: list[Any] = [params, target, moments, None]

    def update(i: int) -> None:
        held[:] = step(*held[:3], data[i])

    return Rival("jax", jax.__version__, update, lambda: jax.block_until_ready(held[3]))


def flops_per_update() -> int:
    """Floating point operations of the update's matrix products; nothing else is counted."""

    def forward(dims: tuple[int, ...]) -> int:
        return sum(2 * BATCH_SIZE * a * b for a, b in itertools.pairwise(dims))

    def backward(dims: tuple[int, ...]) -> int:
        # Of the weights, and of every layer's input but the first.
        return forward(dims) + forward(dims[1:])

    value = (OBSERVATION_DIM, *HIDDEN, 1)
    critic = (OBSERVATION_DIM + ACTION_DIM, *HIDDEN, 1)
    policy = (OBSERVATION_DIM, *HIDDEN, ACTION_DIM)
    trained = sum(forward(net) + backward(net) for net in (value, critic, critic, policy))
    return trained + forward(value) + 2 * forward(critic)


def measure_peaks(threads: int, size: int = 2048, repeats: int = 4) -> dict[str, float]:
    """GFLOP/s of a large float32 product: torch.mm, and the oneDNN kernel that torch ships."""
    import torch

    from robot_rl.nets.dense import affine

    torch.set_num_threads(threads)
    left, right, bias = torch.randn(size, size), torch.randn(size, size), torch.zeros(size)
    kernels: dict[str, Callable[[], Any]] = {
        "torch.mm": lambda: torch.mm(left, right),
        "torch onednn": lambda: affine(left, right, bias, relu=False),
    }
    peaks = {}
    with torch.inference_mode():
        for name, kernel in kernels.items():
            kernel()
            best = float("inf")
            for _ in range(repeats):
                start = time.perf_counter()
                kernel()
                best = min(best, time.perf_counter() - start)
            peaks[name] = 2.0 * size**3 / best / 1e9
    return peaks


def run_round(rival: Rival, seconds: float) -> float:
    """Updates per second over about ``seconds``."""
    import torch

    torch.set_num_threads(rival.torch_threads)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(8):
            rival.update(count % BATCHES)
            count += 1
        rival.sync()
    return count / (time.perf_counter() - start)


def measure(rivals: list[Rival], seconds: float, round_seconds: float) -> dict[str, list[float]]:
    """Rates of each rival, one per round, the rivals taking turns."""
    for rival in rivals:
        run_round(rival, 2.0 * round_seconds)
    rates: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for _ in range(max(3, round(seconds / round_seconds))):
        for rival in rivals:
            rates[rival.name].append(run_round(rival, round_seconds))
    return rates


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="measured time per rival (default 10)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        help="cores, and threads per library; several are measured one after the other"
        " (default 1 and, where there are two cores, 2)",
    )
    parser.add_argument(
        "--compiled", action="store_true", help="also robot_rl under torch.compile (slow to start)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument(
        "--out",
        type=Path,
        nargs="?",
        const=RESULTS,
        help="also write the results into this file, beside other numbers of threads there"
        " (without a value: benchmarks/results/iql_updates.json)",
    )
    options = parser.parse_args(arguments)
    if options.seconds <= 0.0:
        parser.error(f"--seconds is {options.seconds}; it must be above 0")
    cores = len(os.sched_getaffinity(0))
    if options.threads is None:
        options.threads = [1, 2][:cores]
    for threads in options.threads:
        if not 1 <= threads <= cores:
            parser.error(f"--threads is {threads}; it must be from 1 to {cores}")
    return options


def bind_cores(threads: int) -> None:
    """Leaves the process only ``threads`` cores: the one setting that every library obeys."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    # Torch's waiting threads spin otherwise, and starve each other as soon as a core is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["JAX_PLATFORMS"] = "cpu"


def collect(threads: int, compiled: bool) -> tuple[list[Rival], dict[str, str]]:
    """The rivals that can be imported, and why the others are left out."""
    batches = make_batches()
    modes = ("off", "on") if compiled else ("off",)
    rivals = [make_ours(batches, threads, mode) for mode in modes]
    absent = {}
    for name, maker in {"d3rlpy": make_d3rlpy, "jax": make_jax}.items():
        try:
            rivals.append(maker(batches, threads))
        except ImportError as error:
            absent[name] = f"{error}; --help says how to install it"
    return rivals, absent


def summarise(
    rates: dict[str, list[float]], rivals: list[Rival], peaks: dict[str, float], threads: int
) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ours = medians["robot_rl"]
    achieved = ours * flops_per_update() / 1e9
    return {
        "threads": threads,
        "updates_per_second": medians,
        "lowest_and_highest": {name: [min(v), max(v)] for name, v in rates.items()},
        "ratio_of_robot_rl_to": {n: ours / m for n, m in medians.items() if n != "robot_rl"},
        "mflop_per_update": flops_per_update() / 1e6,
        "gflops": achieved,
        "peak_gflops": peaks,
        "fraction_of_peak": {name: achieved / peak for name, peak in peaks.items()},
        "rounds": len(next(iter(rates.values()))),
        "versions": {rival.name: rival.version for rival in rivals},
    }


def describe(result: dict[str, Any]) -> str:
    lines = [f"IQL updates per second, {result['threads']} thread(s), medians:"]
    for name, rate in result["updates_per_second"].items():
        low, high = result["lowest_and_highest"][name]
        ratio = result["ratio_of_robot_rl_to"].get(name)
        versus = "" if ratio is None else f"   robot_rl is {ratio:.2f} x this"
        lines.append(f"  {name:18s} {rate:8.1f}   ({low:.1f} to {high:.1f}){versus}")
    lines.append(f"matrix products of robot_rl: {result['gflops']:.1f} GFLOP/s")
    for name, peak in result["peak_gflops"].items():
        fraction = result["fraction_of_peak"][name]
        lines.append(f"  {fraction:.2f} of the peak of {name}, {peak:.1f} GFLOP/s")
    return "\n".join(lines)


def run(threads: int, seconds: float, compiled: bool) -> dict[str, Any]:
    """Measures with ``threads`` threads; for a process that has not imported torch yet."""
    bind_cores(threads)
    load = os.getloadavg()[0]
    rivals, absent = collect(threads, compiled)
    peaks = measure_peaks(threads)
    rates = measure(rivals, seconds, round_seconds=0.5)
    # Again, for the machine may have been busier before: the best counts.
    peaks = {name: max(peak, peaks[name]) for name, peak in measure_peaks(threads).items()}
    result = summarise(rates, rivals, peaks, threads)
    # More than ``threads`` at the end means that others were at work.
    return {**result, "left_out": absent, "load_before_and_after": [load, os.getloadavg()[0]]}


def run_apart(threads: int, seconds: float, compiled: bool) -> dict[str, Any]:
    """`run`, in a fresh process."""
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, fresh) as pool:
        return pool.submit(run, threads, seconds, compiled).result()


def as_document(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is printed and written: the runs by number of threads."""
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {"benchmark": "iql_updates", "machine": machine, "runs": dict(sorted(runs.items()))}


def write(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Keeps what other numbers of threads gave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text())["runs"] if path.exists() else {}
    path.write_text(json.dumps(as_document({**before, **runs}), indent=2) + "\n")


def main() -> int:
    options = parse()
    runs = {}
    for threads in options.threads:
        result = run_apart(threads, options.seconds, options.compiled)
        runs[str(threads)] = result
        for name, reason in result["left_out"].items():
            print(f"{name} is left out: {reason}", file=sys.stderr)
        print(describe(result), flush=True)
    if options.out is not None:
        write(runs, options.out)
    if options.json:
        print(json.dumps(as_document(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
