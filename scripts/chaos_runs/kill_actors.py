"""Actors are killed while they start, train, score or wait. The driver keeps running."""

from collections.abc import Iterator
from random import Random

from evidence import find_differences
from processes import ACTOR, kill, read_title
from runs import Hung
from stage import Outcome, Stage

WARM_UP_SECONDS = 2.0


def disturb(stage: Stage, kills: int) -> Iterator[Outcome]:
    """Kills actors ``kills`` times, in runs of all presets."""
    random = stage.random("actor")
    return stage.spread(kills, lambda preset, count: _disturb_run(stage, preset, count, random))


def _disturb_run(stage: Stage, preset: str, kills: int, random: Random) -> Outcome:
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
                hits.append(_describe_activity(read_title(victim)))
                kill([victim])
                now = instant
            problems = find_differences(run, run.finish(), undisturbed)
        except Hung as error:
            problems = (str(error),)
    return Outcome(preset=preset, hits=tuple(hits), problems=problems, seconds_lost=run.seconds - undisturbed.seconds)


def _describe_activity(name: str) -> str:
    """Reads what an actor was doing from the title of its process."""
    return {"": "waiting", ".prepare": "starting", ".train": "training", ".score": "scoring"}.get(
        name.removeprefix(ACTOR), "starting"
    )
