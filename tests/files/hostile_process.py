"""Opens all files of some generators in one process with little memory, and tells what came of each.

    hostile_process.py FILE MODULE

An audit hook sees whatever would leave the process, whoever calls it. Of every generator a line of JSON is printed.
"""

import contextlib
import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import torch
from torch import nn

import bayesify
from bayesify.cli.batch_files import read_batch
from bayesify.files.read_weights import read_weights
from bayesify.planning.planner import plan

ROOT = pathlib.Path(bayesify.__file__).parents[1]
LEAVES = ("os.system", "subprocess.Popen", "os.exec", "os.fork", "socket.connect", "shutil.rmtree", "os.remove")


def outcomes_of(module: str, folder: pathlib.Path) -> tuple[dict[str, dict], list[str]]:
    """What a process of its own said of the files of all of a module's generators, and what lies in its folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", __name__, str(folder / "hostile.pt"), module]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(map(json.loads, done.stdout.splitlines())), [path.name for path in folder.iterdir()]


def refuse_harm(told: dict, left: list[str]) -> None:
    """Nothing was run, written or kept, everything was quick, and each file was opened or refused in one line."""
    assert told["seen"] == []
    assert not told["changed"]
    assert {name.partition(".")[0] for name in left} == {"hostile"}
    outcomes = {name: outcome for name, (outcome, _, _) in told["outcomes"].items()}
    assert {name: outcome for name, outcome in outcomes.items() if not set(outcome) <= {"opened", "refused"}} == {}
    slow = {name: seconds for name, (_, seconds, size) in told["outcomes"].items() if seconds > 4 + size * 1e-5}
    assert slow == {}
    assert told["peak"] < 1 << 30


def timed(calls: list[str], place: str) -> tuple[list[str], float]:
    """What each call said of the file, and the seconds of the processor that all of them took."""
    begin = time.process_time()
    return [result(CALLS[call], place) for call in calls], time.process_time() - begin


def load(path: str) -> nn.Module:
    return bayesify.load(path, meta=True)


def run(path: str) -> nn.Module:
    """With its weights, and run: what the operators of a program themselves say against a call is no matter."""
    model = bayesify.load(path)
    try:
        model(torch.ones(2, 3))
    except bayesify.BayesifyError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, OverflowError, ArithmeticError):
        pass
    return model


def batch(path: str) -> object:
    return read_batch(path, torch.float32)


CALLS = {"load": load, "read_weights": read_weights, "run": run, "batch": batch}


def result(call, path: str) -> str:
    try:
        opened = call(path)
        if isinstance(opened, nn.Module):
            with contextlib.suppress(bayesify.BayesifyError):
                plan(opened)
        return "opened"
    except bayesify.BayesifyError as error:
        return "refused" if error.exit_code in (2, 4) and "\n" not in str(error) else f"told: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]


def main(path: str, module: str) -> None:
    seen: list[str] = []

    def watch(event: str, args: tuple) -> None:
        if event in LEAVES:
            seen.append(event)
        if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
            seen.append(f"{event} {args[0]}") if not str(args[0]).startswith(path) else None

    generators = importlib.import_module(module).GENERATORS
    for generator in generators:
        next(generator())  # what is made once for all
    bayesify.plan(nn.Sequential(nn.Linear(2, 2)))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30), used + (6 << 30)))
    safe = set(torch.serialization.get_safe_globals())
    sys.addaudithook(watch)
    for generator, calls in generators.items():
        outcomes = {}
        for name, content in generator():
            place = path + name.partition(" ")[0] if name.startswith(".") else path
            with open(place, "wb") as file:
                file.write(content)
            results, seconds = timed(calls, place)
            if seconds > 1:  # the first of its kind imports a library
                results, seconds = timed(calls, place)
            outcomes[name] = [results, seconds, len(content)]
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - used
        changed = set(torch.serialization.get_safe_globals()) != safe
        told = {"outcomes": outcomes, "seen": seen, "peak": peak, "changed": changed}
        print(json.dumps([generator.__name__, told]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
