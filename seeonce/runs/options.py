"""What a run asks and how, as the user says it and as run.json keeps it."""

from dataclasses import dataclass, field
from pathlib import Path

from cache.layout import now
from checkpoint.backend import installed_version
from infer.limits import BatchLimits
from infer.sampling import Sampling
from seeonce.runs.prompts import Prompt, Showing
from seeonce.runs.recording import LATEST, Selected
from seeonce.runs.run import RunInfo, Totals


@dataclass(frozen=True, slots=True)
class DescribeOptions:
    """What to ask and how: the options of ``seeonce describe``. ``fresh`` decodes what is known, too."""

    prompts: tuple[Prompt, ...]
    recording: str = LATEST
    model: str | None = None
    output: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    limits: BatchLimits = field(default_factory=BatchLimits)
    name: str = ""
    fresh: bool = False
    prompt_names: tuple[str, ...] = ()
    showing: Showing = field(default_factory=Showing)


def options_of(info: RunInfo) -> DescribeOptions:
    """Return the options that a run was made with."""
    return DescribeOptions(
        prompts=tuple(Prompt(text) for text in info.prompts),
        recording=info.recording,
        model=info.model_path,
        sampling=info.sampling,
        limits=info.limits,
        name=info.name,
        fresh=info.fresh,
        prompt_names=info.prompt_names,
        showing=info.showing,
    )


def run_info(
    run_id: str, selected: Selected, options: DescribeOptions, plan_id: str, model_id: str
) -> RunInfo:
    """Return what run.json says of a run that begins now."""
    encoder, checkpoint = selected.manifest.encoder, selected.checkpoint
    return RunInfo(
        id=run_id,
        recording=selected.manifest.recording.id,
        encoder_id=encoder.encoder_id.hex,
        model=selected.model,
        model_path=str(checkpoint.path),
        revision=checkpoint.revision,
        prompts=tuple(prompt.text for prompt in options.prompts),
        sampling=options.sampling,
        limits=options.limits,
        showing=options.showing,
        compute_dtype=encoder.compute_dtype,
        versions=versions(),
        started_at=now(),
        ended_at=None,
        status="running",
        totals=Totals(),
        name=options.name,
        prompt_names=options.prompt_names,
        plan_id=plan_id,
        model_id=model_id,
        fresh=options.fresh,
    )


def versions() -> dict[str, str]:
    """Return the versions of what answers."""
    return {name: installed_version(name) for name in ("seeonce", "mlx", "mlx-vlm", "transformers")}
