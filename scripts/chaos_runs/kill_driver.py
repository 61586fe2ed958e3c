"""The driver dies at any instant: while it starts, trains, writes a checkpoint, or ends."""

from collections.abc import Iterator
from itertools import cycle, islice
from random import Random

from evidence import Undisturbed, differences
from runs import Hung, Run, SearchStatus
from stage import Outcome, Stage

KILLS_A_RUN = 2


def disturb(stage: Stage, kills: int) -> Iterator[Outcome]:
    """So many kills over runs of all presets. An instant that a run has not come to is drawn again, in another run.

    The first kill of each run falls within its rounds: a run this short spends most of its life on its start.
    """
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
        trained, before = 0, SearchStatus()
        try:
            while len(hits) < kills and _killed(run, undisturbed, before, random, within_rounds=not hits):
                after = run.standing()
                hits.append(_met(before, after, undisturbed.rounds))
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


def _killed(run: Run, undisturbed: Undisturbed, before: SearchStatus, random: Random, *, within_rounds: bool) -> bool:
    """Start it; kill it at a random instant of its rounds, or of all of its life, if it comes to it."""
    run.start()
    if within_rounds:
        target = random.uniform(before.rounds + 1, undisturbed.rounds)
        ended = run.ended_before_round(target, undisturbed.round_seconds)
    else:
        ended = run.ended_within(random.uniform(0, undisturbed.seconds_from(before.checkpoint)))
    if not ended:
        run.kill()
    return not ended


def _met(before: SearchStatus, after: SearchStatus, rounds: int) -> str:
    """What the driver was about, by what it left."""
    if after.rounds == rounds == after.checkpoint:
        met = "ending"
    elif (after.rounds, after.checkpoint) == (before.rounds, before.checkpoint):
        met = "starting"
    else:
        met = "training"
    return f"{met}, a checkpoint half written" if after.loose - before.loose else met
