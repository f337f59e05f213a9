"""What a file asks: experiments, those of a sweep that cannot be asked, and the sweep's name."""

from pathlib import Path
from typing import Any, NamedTuple

from paretoserve.deploy.target import require_templates, target_of
from paretoserve.errors import InputError
from paretoserve.experiments.experiment import Experiment
from paretoserve.experiments.loading import Source, read_file, read_mapping
from paretoserve.experiments.plan import Refused
from paretoserve.experiments.resolving import Catalogue, resolve_all
from paretoserve.experiments.sweeps import expand, is_sweep, resolve_sweep


class Question(NamedTuple):
    """Experiments, those refused, and the title of a sweep (None: an experiment file)."""

    experiments: tuple[Experiment, ...]
    refused: tuple[Refused, ...] = ()
    title: str | None = None


def read_question(file: Path, catalogue: Catalogue) -> Question:
    """Return what an experiment or sweep file asks; InputError says what is wrong with it."""
    return question_of(read_file(file), Source(str(file)), catalogue)


def question_of(content: dict[str, Any], source: Source, catalogue: Catalogue) -> Question:
    """Return what the content of a file asks. InputError holds a sentence for each mistake.

    An experiment of a sweep that cannot be asked is no mistake: it is refused, with the reason.
    """
    if is_sweep(content):
        return _question_of_sweep(content, source.name, catalogue)
    experiments = resolve_all(read_mapping(content, source), catalogue)
    require_templates(experiments)
    return Question(experiments)


def _question_of_sweep(content: dict[str, Any], file: str, catalogue: Catalogue) -> Question:
    resolved, refused = resolve_sweep(expand(content, file), catalogue)
    experiments, wanting = [], {}
    for one in resolved:
        files_for = one.workers, one.generated_config_version
        if files_for not in wanting:
            wanting[files_for] = _wanting_template(one)
        if reason := wanting[files_for]:
            refused.append(Refused(one.name, one.serving_mode, reason))
        else:
            experiments.append(one)
    if not experiments:
        reasons = "; ".join(dict.fromkeys(one.reason for one in refused))
        raise InputError(f"{file}: none of its {len(refused)} experiments can be asked: {reasons}")
    return Question(tuple(experiments), tuple(refused), Path(file).stem)


def _wanting_template(experiment: Experiment) -> str:
    """Why the deployment files of an experiment cannot be written; "" if they can."""
    try:
        for worker in experiment.workers:
            target_of(experiment, worker)
    except InputError as error:
        return str(error)
    return ""
