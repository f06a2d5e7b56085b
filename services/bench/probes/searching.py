"""The search for the highest rate that is held."""

from collections.abc import Callable


def highest(start: float, precision: float, is_held: Callable[[float], bool]) -> tuple[float, float]:
    """Return the highest rate that was held, 0 for none, and the lowest that was not.

    Doubles from `start` until a rate is not held, then bisects until both differ by the factor `precision` at most.
    """
    held, rate = 0.0, start
    while is_held(rate):
        held, rate = rate, rounded(rate * 2)
    beyond = rate
    while held and beyond / held > precision:
        rate = rounded((held * beyond) ** 0.5)
        if rate in (held, beyond):
            break
        if is_held(rate):
            held = rate
        else:
            beyond = rate
    return held, beyond


def rounded(rate: float) -> float:
    """Return the rate with three digits, so that it reads well and a continued run finds it again."""
    return float(f"{rate:.3g}")
