"""Learning rates as a factor of the peak: pure functions of where a run is, in steps or in tokens, whichever unit the caller counts in.

`position` counts from 0; a step's rate is that of its end, so that the first step of a warmup learns and the last step of a decay is at the floor.
Warmup is linear and takes the given fraction of the run. Pass tokens as they are (the +1 is then negligible).
"""

import math


def wsd(position: float, total: float, warmup: float, decay: float, floor: float) -> float:
    """Warmup, stable, decay by minus-sqrt: floor + (1 - floor)(1 - sqrt(ratio)) (Megatron-LM optimizer_param_scheduler.py; Nemotron 3 Super, Ultra).

    total          the run's length in the unit of position
    warmup, decay  fractions of total
    floor          last rate over the peak
    """
    done = _done(position, total, warmup, floor)
    if warmup + decay > 1:
        raise ValueError(f"warmup ({warmup}) and decay ({decay}) are fractions of one run and add up to more than 1")
    begin = total * (1 - decay)
    if done <= begin:
        return _warm(done, total, warmup)
    return min(_warm(done, total, warmup), floor + (1 - floor) * (1 - math.sqrt((done - begin) / (total - begin))))


def cosine(position: float, total: float, warmup: float, floor: float) -> float:
    """Linear warmup, then half a cosine from 1 to floor at the end of the run."""
    done = _done(position, total, warmup, floor)
    begin = total * warmup
    if done <= begin:
        return _warm(done, total, warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * (done - begin) / (total - begin))) / 2


def constant(position: float, total: float, warmup: float = 0.0) -> float:
    """Linear warmup, then 1."""
    return _warm(_done(position, total, warmup, 0.0), total, warmup)


def _done(position: float, total: float, warmup: float, floor: float) -> float:
    """The end of the unit `position` begins, checked."""
    if not position >= 0:
        raise ValueError(f"a position in a run is at least 0, not {position}")
    if not (total > 0 and 0 <= warmup <= 1 and 0 <= floor <= 1):
        raise ValueError(f"a schedule needs total > 0 and fractions within [0, 1], not total={total}, warmup={warmup}, floor={floor}")
    return min(position + 1, total)


def _warm(done: float, total: float, warmup: float) -> float:
    return min(1.0, done / (total * warmup)) if warmup else 1.0
