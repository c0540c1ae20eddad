"""Importing this starts the script again in the checkout's .venv, where there is one and the script runs elsewhere."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv/bin/python"

if PYTHON.exists() and Path(sys.prefix).resolve() != ROOT / ".venv":
    os.execv(PYTHON, [str(PYTHON), *sys.argv])
if find_spec("torch") is None:
    sys.exit("torch is missing: scripts/setup makes a .venv with it, and this script then runs there by itself")
