"""Which runs there are, and which of them RUN means."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cache.base.errors import InputError
from cache.base.home import Home
from cache.base.text import visible
from cache.leases import active_leases
from seeonce.runs.lock import is_held
from seeonce.runs.results import read_results
from seeonce.runs.run import INFO_NAME, RESULTS_NAME, Result, Run, RunInfo, prompt_order, readable_info

RECORDED = "recorded"
"""The id of what was said before any run: what Escribano recorded of the frames."""

_RUNS_NAMED = 5

EXPERIMENT_SEPARATOR = " / "
"""Stands in a run's name between the experiment and what tells the run from its others."""


def list_runs(home: Home) -> list[Run]:
    """Return all runs, newest first. Ids begin with the time, so their order is that of time."""
    folders = [path for path in home.runs.iterdir() if path.is_dir()] if home.runs.is_dir() else []
    names = sorted((path.name for path in folders if not path.name.startswith(".")), reverse=True)
    return [load_run(home.runs / name) for name in names]


def finished_run(home: Home, name: str, plan_id: str) -> Run | None:
    """Return the newest run of a name that answered all of a plan.

    A request that failed may fare better the next time. An answer that leaves a frame out, or was cut before
    its schema was fulfilled, is an error, too, but it is the answer: asking again gives the same.
    """
    for folder in _of_plan(home, name, plan_id, "done"):
        run = load_run(folder)
        failed = any(answer.error and answer.finish_reason == "error" for answer in run.answers)
        if not failed and len(run.answers) == run.info.totals.num_results:
            return run
    return None


def running_run(home: Home, name: str, plan_id: str) -> Run | None:
    """Return a run of a name that another process is making of a plan now."""
    for folder in _of_plan(home, name, plan_id, "running"):
        if is_held(folder):
            return load_run(folder)
    return None


def _of_plan(home: Home, name: str, plan_id: str, status: str) -> Iterator[Path]:
    """Yield the folders of the runs that have a name, a plan and a status, newest first."""
    for folder, info in _infos(home):
        if (info.name, info.plan_id, info.status) == (name, plan_id, status):
            yield folder


def select_run(home: Home, selector: str, say: Callable[[str], None]) -> Run:
    """Return the run that RUN means: ``latest``, an id, the start of one, or a name (the newest so called).

    ``RUN:N`` keeps the N-th prompt alone, and ``RUN:text`` the one that begins with a text.

    Raises:
        InputError: no run or prompt fits, or several do.
    """
    name, colon, prompt = selector.rpartition(":")
    try:
        return load_run(_folder(home, selector, say), say)
    except InputError:
        if not colon or not name:
            raise
    return _only_prompt(load_run(_folder(home, name, say), say), prompt)


def select_runs(home: Home, selector: str, say: Callable[[str], None]) -> list[Run]:
    """Return the run that RUN means; for a name the newest about each recording, for an experiment all runs.

    Raises:
        InputError: no run or prompt fits, or several do.
    """
    named: dict[str, Path] = {}
    num_named = 0
    for path, info in _infos(home):
        if selector and info.name == selector:
            named.setdefault(info.recording, path)
            num_named += 1
    if num_named > 1:
        taken = sorted(named.values())
        of_each = " about each recording" if len(taken) > 1 else ""
        say(f"{num_named} runs are called {selector!r}: the newest{of_each}, {_listed(taken)}.")
    paths = sorted(named.values()) or _of_experiment(home, selector)
    return [load_run(path, say) for path in paths] or [select_run(home, selector, say)]


def load_run(folder: Path, say: Callable[[str], None] = lambda _: None) -> Run:
    """Read a run; lines that cannot be read are named to ``say`` and left out."""
    answers: tuple[Result, ...] = ()
    if (folder / RESULTS_NAME).is_file():
        answers = read_results(folder, say)
    info = readable_info(folder)
    if answers and not info.recording:
        info = replace(info, recording=answers[0].recording)
    if not info.prompts:
        info = replace(info, prompts=tuple(dict.fromkeys(answer.prompt for answer in answers)))
    order = prompt_order(info.prompts)
    # Not as they came, which depends on their lengths: RUN:2 must be the second prompt, always.
    in_order = sorted(answers, key=lambda answer: (answer.frame, order(answer)))
    was_killed = info.status == "running" and not is_held(folder)
    return Run(info, tuple(in_order), "interrupted" if was_killed else info.status)


def _by_id(home: Home, selector: str) -> Path:
    ids = sorted((path.parent.name for path in home.runs.glob(f"*/{INFO_NAME}")), reverse=True)
    fits = ids[:1] if selector == "latest" else [id_ for id_ in ids if id_ == selector]
    fits = fits or [id_ for id_ in ids if selector and id_.startswith(selector)]
    if len(fits) == 1:
        return home.runs / fits[0]
    if not ids:
        raise InputError(f"No run in {home.runs}: run seeonce describe first")
    named = ", ".join((fits or ids)[:_RUNS_NAMED])
    raise InputError(
        f"{selector!r} fits {named}: give more of the id"
        if fits
        else f"No run {selector!r}; the newest are {named}"
    )


def _folder(home: Home, selector: str, say: Callable[[str], None]) -> Path:
    try:
        return _by_id(home, selector)
    except InputError:
        named = [path for path, info in _infos(home) if selector and info.name == selector]
        if named:
            if len(named) > 1:
                say(f"{len(named)} runs are called {selector!r}: the newest, {_listed(named[:1])}.")
            return named[0]
        parts = _of_experiment(home, selector)
        if parts:
            raise InputError(
                f"{selector!r} is an experiment of {len(parts)} runs: give one of {_listed(parts)}."
            ) from None
        raise


def _listed(folders: Sequence[Path]) -> str:
    """Name runs with their recordings; of many the first few."""
    named = [
        f"{folder.name} about {visible(readable_info(folder).recording)}" for folder in folders[:_RUNS_NAMED]
    ]
    more = [f"{len(folders) - _RUNS_NAMED} more"] if len(folders) > _RUNS_NAMED else []
    return ", ".join(named + more)


def _infos(home: Home) -> Iterator[tuple[Path, RunInfo]]:
    """Yield folder and run.json of every run, newest first."""
    for path in sorted(home.runs.glob(f"*/{INFO_NAME}"), reverse=True):
        yield path.parent, readable_info(path.parent)


def _of_experiment(home: Home, name: str) -> list[Path]:
    """Return the runs of an experiment in the order in which they were made, the newest of each name."""
    found: dict[str, Path] = {}
    for path, info in _infos(home):
        if name and info.name.startswith(name + EXPERIMENT_SEPARATOR):
            found.setdefault(info.name, path)
    return sorted(found.values())


def _only_prompt(run: Run, wanted: str) -> Run:
    """Keep the answers to one prompt, given as its number from 1 or the start of its text."""
    answered = dict.fromkeys(answer.prompt for answer in run.answers)
    prompts = list(dict.fromkeys(run.info.prompts))
    if not answered.keys() <= set(prompts):  # its run.json is not that of these answers
        prompts = list(answered)
    if wanted.isdecimal() and 1 <= int(wanted) <= len(prompts):
        fits = [prompts[int(wanted) - 1]]
    else:
        fits = [prompt for prompt in prompts if wanted and prompt.startswith(wanted)]
    if len(fits) != 1:
        raise InputError(
            f"Run {run.info.id} has {len(prompts)} prompts and {wanted!r} fits {len(fits)} of them: "
            "give a number from 1 on, or the start of the text."
        )
    return replace(run, answers=tuple(answer for answer in run.answers if answer.prompt == fits[0]))


def remove_runs(home: Home, recording_id: str) -> int:
    """Remove every run that asked about this recording; return how many there were.

    A run whose ``run.json`` cannot be read is kept, since its recording is not known. So is a run
    that has not ended while a command holds a lease: that command may be writing it.
    """
    busy, num_removed = bool(active_leases(home.store)), 0
    for path in sorted(home.runs.iterdir()) if home.runs.is_dir() else []:
        info = readable_info(path)
        may_be_written = busy and info.status == "running"
        if info.recording == recording_id and not path.is_symlink() and not may_be_written:
            shutil.rmtree(path, ignore_errors=True)
            num_removed += not path.exists()
    return num_removed
