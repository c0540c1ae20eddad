"""Which code is the user's: neither torch's nor bayesify's."""

from __future__ import annotations

import os
from types import FrameType

import torch

OURS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
NOT_THE_USERS = (os.path.join(torch.__path__[0], ""), OURS)


def user_code(frame: FrameType | None) -> str:
    """`file:line` of the nearest caller outside torch and bayesify; "torch" where there is none."""
    while frame is not None and frame.f_code.co_filename.startswith(NOT_THE_USERS):
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame is not None else "torch"
