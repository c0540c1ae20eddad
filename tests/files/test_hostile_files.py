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

# Opens every file in a process of its own with little memory, and tells what came of each. An audit hook sees whatever
# would leave the process, whoever calls it.
OPENS = """
import json, resource, sys, time
import torch
from torch import nn
import bayesify, bayesify.files.load_model, bayesify.files.read_weights, bayesify.planning.planner
from tests.files.hostile_files import GENERATORS
seen, allowed = [], None
def watch(event, args):
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.fork", "socket.connect", "shutil.rmtree", "os.remove"):
        seen.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"{event} {args[0]}") if args[0] != sys.argv[2] else None
sys.addaudithook(watch)
bayesify.plan(nn.Sequential(nn.Linear(2, 2)))
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30), used + (6 << 30)))
safe, outcomes = set(torch.serialization.get_safe_globals()), {}
generator = next(each for each in GENERATORS if each.__name__ == sys.argv[1])
for name, content in generator():
    with open(sys.argv[2], "wb") as file:
        file.write(content)
    told = []
    begin = time.process_time()
    for call in (bayesify.load, bayesify.files.read_weights.read_weights):
        try:
            opened = call(sys.argv[2], meta=True) if call is bayesify.load else call(sys.argv[2])
            told.append("opened")
            if isinstance(opened, nn.Module):
                try:
                    bayesify.plan(opened)
                except bayesify.BayesifyError:
                    pass
        except bayesify.BayesifyError as error:
            told.append("refused" if error.exit_code in (2, 4) and "\\n" not in str(error) else f"told: {error}")
        except BaseException as error:
            told.append(f"{type(error).__name__}: {error}"[:200])
    outcomes[name] = [told, time.process_time() - begin, len(content)]
peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - used
changed = set(torch.serialization.get_safe_globals()) != safe
print(json.dumps({"outcomes": outcomes, "seen": seen, "peak": peak, "changed": changed}))
"""

# What opens because nothing is wrong with it: a value that may be stored, at a place where it means nothing.
MAY_OPEN = {"rules", "streams"}


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.__name__)
def test_hostile_files_are_refused_and_do_nothing(generator, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", OPENS, generator.__name__, str(tmp_path / "hostile.pt")]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seen"] == []
    assert not told["changed"]
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.pt"]
    outcomes = {name: outcome for name, (outcome, _, _) in told["outcomes"].items()}
    assert {name: outcome for name, outcome in outcomes.items() if not set(outcome) <= {"opened", "refused"}} == {}
    if generator.__name__ not in MAY_OPEN:
        assert [name for name, outcome in outcomes.items() if outcome[0] == "opened"] == []
    slow = {name: seconds for name, (_, seconds, size) in told["outcomes"].items() if seconds > 2 + size * 1e-5}
    assert slow == {}
    assert told["peak"] < 1 << 30
