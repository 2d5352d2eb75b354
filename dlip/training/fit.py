"""Whether a teacher fits a student, before either is touched."""

from dlip.common.errors import MissingAbility, UserError
from dlip.losses.term import TERMS
from dlip.models.protocol import Model
from dlip.training.weights import distills, terms_text
from dlip.vlm import VLM


def _owner(teacher: Model, name: str) -> Model | None:
    try:
        return TERMS[name].owner(teacher)
    except MissingAbility:
        return None


def check_teacher(student: VLM, teacher: VLM, weights: dict[str, float]) -> None:
    """Raise UserError where the teacher was not trained for a term, or a term compares tokens of different
    vocabularies, or captions after different prompts."""
    vocabulary, terms = student.tokenizer and student.tokenizer.vocabulary, distills(weights)
    owners = {name: _owner(teacher.med, name) for name in terms}
    missing = [name for name, owner in owners.items() if owner is None]
    foreign = [name for name, owner in owners.items() if owner and not owner.reads(vocabulary)]
    by_token = [name for name in foreign if TERMS[name].by_token]
    refused = []
    if missing:
        refused.append(f"the teacher was not trained for {', '.join(missing)}")
    if by_token:
        refused.append(f"{', '.join(by_token)} compare token by token, but its vocabulary is not the student's")
    if refused:
        others = {name: w for name, w in weights.items() if w and name not in (*missing, *by_token)}
        instead = f": {terms_text(others)}" if distills(others) else ""
        raise UserError(f"{', and '.join(refused)}; leave these terms out{instead}")
    if any(TERMS[name].source == "decoder" or TERMS[name].ability == "lm" for name in terms):
        if teacher.med.model_for("lm").config.prompt_ids != student.med.config.prompt_ids:
            raise UserError("teacher and student have different prompts; give the student the teacher's prompt_ids")
