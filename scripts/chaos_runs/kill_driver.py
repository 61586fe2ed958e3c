"""The driver is killed at any instant: while it starts, trains, writes a checkpoint or ends."""

from collections.abc import Iterator
from random import Random

from evidence import Undisturbed, find_differences
from runs import DiskState, Hung, Run
from stage import Outcome, Stage


def disturb(stage: Stage, kills: int) -> Iterator[Outcome]:
    """Kills drivers ``kills`` times, in runs of all presets. If a run ends before its instant, another one is drawn.

    The first kill of each run falls within its rounds, because a run this short mostly starts up.
    """
    random = stage.random("driver")
    return stage.spread(kills, lambda preset, count: _disturb_run(stage, preset, count, random))


def _disturb_run(stage: Stage, preset: str, kills: int, random: Random) -> Outcome:
    undisturbed = stage.undisturbed(preset)
    with stage.run(preset) as run:
        hits: list[str] = []
        trained, before = 0, DiskState()
        try:
            while len(hits) < kills and _kill_once(run, undisturbed, before, random, within_rounds=not hits):
                after = run.read_disk()
                hits.append(_describe_instant(before, after, undisturbed.rounds))
                trained += (after.rounds if after.rounds > before.rounds else after.checkpoint) - before.checkpoint
                before = after
            if len(hits) == kills:
                run.start()
            problems = find_differences(run, run.finish(), undisturbed)
        except Hung as error:
            problems = (str(error),)
    return Outcome(
        preset=preset,
        hits=tuple(hits),
        problems=problems,
        rounds_redone=max(0, trained - before.checkpoint),
        seconds_lost=run.seconds - undisturbed.seconds,
    )


def _kill_once(run: Run, undisturbed: Undisturbed, before: DiskState, random: Random, *, within_rounds: bool) -> bool:
    """Starts a run and kills it at a random instant of its rounds or of its life. Returns False if it ended before."""
    run.start()
    if within_rounds:
        target = random.uniform(before.rounds + 1, undisturbed.rounds)
        ended = run.ended_before_round(target, undisturbed.round_seconds)
    else:
        ended = run.ended_within(random.uniform(0, undisturbed.seconds_from(before.checkpoint)))
    if not ended:
        run.kill()
    return not ended


def _describe_instant(before: DiskState, after: DiskState, rounds: int) -> str:
    """Infers from the files what the driver was doing."""
    if after.rounds == rounds == after.checkpoint:
        met = "ending"
    elif (after.rounds, after.checkpoint) == (before.rounds, before.checkpoint):
        met = "starting"
    else:
        met = "training"
    return f"{met}, a checkpoint half written" if after.loose - before.loose else met
