"""Actors die: while they start, train, score, or wait. The driver lives."""

from collections.abc import Iterator
from itertools import cycle, islice
from random import Random

from evidence import differences
from processes import ACTOR, kill, title
from runs import Hung
from stage import Outcome, Stage

KILLS_A_RUN = 2  # a client group that loses three actors trains in halves: equal to rounding, not to the bit
WARM_UP_SECONDS = 2.0


def disturb(stage: Stage, kills: int) -> Iterator[Outcome]:
    """So many kills over runs of all presets."""
    random, left = stage.random("actor"), kills
    for preset in islice(cycle(stage.presets), 3 * kills):
        if left:
            outcome = _disturbed(stage, preset, min(KILLS_A_RUN, left), random)
            left -= len(outcome.hits)
            yield outcome


def _disturbed(stage: Stage, preset: str, kills: int, random: Random) -> Outcome:
    undisturbed = stage.undisturbed(preset)
    span = WARM_UP_SECONDS + undisturbed.training_seconds
    instants = sorted(random.uniform(0, span) for _ in range(kills))
    hits: list[str] = []
    with stage.run(preset) as run:
        run.start()
        try:
            now = 0.0
            for instant in instants:
                if run.ended_before(run.actors) or run.ended_within(instant - now) or run.ended_before(run.actors):
                    break
                victim = random.choice(run.actors())
                hits.append(_doing(title(victim)))
                kill([victim])
                now = instant
            problems = differences(run, run.finish(), undisturbed)
        except Hung as error:
            problems = (str(error),)
    return Outcome(preset=preset, hits=tuple(hits), problems=problems, seconds_lost=run.seconds - undisturbed.seconds)


def _doing(name: str) -> str:
    """From a process's title."""
    return {"": "waiting", ".prepare": "starting", ".train": "training", ".score": "scoring"}.get(
        name.removeprefix(ACTOR), "starting"
    )
