"""Thousands of hostile and damaged files: each is refused with one line, runs nothing, and costs little."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import bayesify
from tests.files.hostile_files import GENERATORS

ROOT = pathlib.Path(bayesify.__file__).parents[1]

# Opens all files in one process with little memory, and tells what came of each. An audit hook sees whatever
# would leave the process, whoever calls it.
OPENS = """
import json, resource, sys, time
import torch
from torch import nn
import bayesify, bayesify.files.load_model, bayesify.planning.planner
from bayesify.cli.batch_files import read_batch
from bayesify.files.read_weights import read_weights
from tests.files.hostile_files import GENERATORS
seen = []
def watch(event, args):
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "socket.connect", "shutil.rmtree", "os.remove"):
        seen.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"{event} {args[0]}") if not args[0].startswith(sys.argv[1]) else None
sys.addaudithook(watch)
bayesify.plan(nn.Sequential(nn.Linear(2, 2)))
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30), used + (6 << 30)))
safe = set(torch.serialization.get_safe_globals())


def result(call, path):
    try:
        opened = call(path, **({"meta": True} if call is bayesify.load else {}))
        if isinstance(opened, nn.Module):
            try:
                bayesify.plan(opened)
            except bayesify.BayesifyError:
                pass
        return "opened"
    except bayesify.BayesifyError as error:
        return "refused" if error.exit_code in (2, 4) and "\\n" not in str(error) else f"told: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]


for generator in GENERATORS:
    outcomes = {}
    for name, content in generator():
        inputs = generator.__name__ == "inputs"
        path, calls = sys.argv[1], (bayesify.load, read_weights)
        if inputs:
            path, calls = path + name.partition(" ")[0], (lambda path: read_batch(path, torch.float32),)
        with open(path, "wb") as file:
            file.write(content)
        begin = time.process_time()
        results = [result(call, path) for call in calls]
        outcomes[name] = [results, time.process_time() - begin, len(content)]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - used
    changed = set(torch.serialization.get_safe_globals()) != safe
    told = {"outcomes": outcomes, "seen": seen, "peak": peak, "changed": changed}
    print(json.dumps([generator.__name__, told]), flush=True)
"""

# What opens because nothing is wrong with it: a value that may be stored, at a place where it means nothing.
MAY_OPEN = {"rules", "streams"}


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """What one process said of the files of all generators, its exit status, and what lies in its folder."""
    folder = tmp_path_factory.mktemp("hostile")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", OPENS, str(folder / "hostile.pt")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(map(json.loads, done.stdout.splitlines())), [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_hostile_files_are_refused_and_do_nothing(generator, process):
    told, left = process[0][generator.__name__], process[1]
    assert told["seen"] == []
    assert not told["changed"]
    assert {name.partition(".")[0] for name in left} == {"hostile"}
    outcomes = {name: outcome for name, (outcome, _, _) in told["outcomes"].items()}
    assert {name: outcome for name, outcome in outcomes.items() if not set(outcome) <= {"opened", "refused"}} == {}
    if generator.__name__ not in MAY_OPEN:
        assert [name for name, outcome in outcomes.items() if outcome[0] == "opened"] == []
    slow = {name: seconds for name, (_, seconds, size) in told["outcomes"].items() if seconds > 2 + size * 1e-5}
    assert slow == {}
    assert told["peak"] < 1 << 30
