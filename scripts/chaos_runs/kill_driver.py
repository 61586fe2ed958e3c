"""The driver dies at any instant: while it starts, trains, writes a checkpoint, or ends."""

from collections.abc import Iterator
from itertools import cycle, islice
from random import Random

from evidence import differences
from runs import Hung, Run, Standing
from stage import Outcome, Stage

KILLS_A_RUN = 2


def disturb(stage: Stage, kills: int) -> Iterator[Outcome]:
    """So many kills over runs of all presets. An instant that a run has not come to is drawn again, in another run."""
    random, left = stage.random("driver"), kills
    for preset in islice(cycle(stage.presets), 3 * kills):
        if left:
            outcome = _disturbed(stage, preset, min(KILLS_A_RUN, left), random)
            left -= len(outcome.hits)
            yield outcome


def _disturbed(stage: Stage, preset: str, kills: int, random: Random) -> Outcome:
    undisturbed = stage.undisturbed(preset)
    with stage.run(preset) as run:
        hits: list[str] = []
        trained, before = 0, Standing()
        try:
            while len(hits) < kills and _killed(run, random.uniform(0, undisturbed.seconds_from(before.checkpoint))):
                after = run.standing()
                hits.append(_met(before, after, len(undisturbed.history)))
                trained += (after.rounds if after.rounds > before.rounds else after.checkpoint) - before.checkpoint
                before = after
            if len(hits) == kills:
                run.start()
            problems = differences(run, run.finish(), undisturbed)
        except Hung as error:
            problems = (str(error),)
    return Outcome(
        preset=preset,
        hits=tuple(hits),
        problems=problems,
        rounds_redone=max(0, trained - before.checkpoint),
        seconds_lost=run.seconds - undisturbed.seconds,
    )


def _killed(run: Run, instant: float) -> bool:
    """Start it; kill it at the instant, if it comes to it."""
    run.start()
    if run.ended_within(instant):
        return False
    run.kill()
    return True


def _met(before: Standing, after: Standing, rounds: int) -> str:
    """What the driver was about, by what it left."""
    if after.rounds == rounds == after.checkpoint:
        met = "ending"
    elif (after.rounds, after.checkpoint) == (before.rounds, before.checkpoint):
        met = "starting"
    else:
        met = "training"
    return f"{met}, a checkpoint half written" if after.loose - before.loose else met
