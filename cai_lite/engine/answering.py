"""A model's answers to the evaluation's prompts, each with what the measures say of it.

Neither the outcome classifier nor the prompts' checks are used for training, filtering or reward.
"""

from collections.abc import Sequence

import numpy as np

from ..data import Prompt
from ..prompts import chat
from ..records import Answer, Rows, fill
from ..run import PromptSet, Run
from .models import Base, role
from .outcomes import OutcomeClassifier, harmfulness, likeliest
from .reward import PreferenceModel
from .sampling import Sampling, generate


def evaluation_prompts(run: Run) -> list[tuple[PromptSet, Prompt]]:
    """(prompt set, prompt) of every evaluation prompt the preset asks for."""
    preset = run.preset
    sizes: dict[PromptSet, int] = {
        "red_team": preset.eval_red_team,
        "helpful": preset.eval_helpful,
        "borderline": preset.eval_borderline,
    }
    return [(s, prompt) for s, n in sizes.items() for prompt in run.prompts(s, "eval", n)]


def answer_all(
    run: Run,
    base: Base,
    reader: OutcomeClassifier,
    model: str,
    adapter: str | None,
    store: Rows[Answer],
    judge: PreferenceModel | None = None,
) -> list[Answer]:
    """One model's answers to all evaluation prompts, measured; without a judge, no rewards.

    `model` is its name in the rows of `store`, `adapter` the role that answers (None: the base).
    """
    work = evaluation_prompts(run)
    with run.progress.bar(f"answers of {model}", len(work)) as advance:
        return fill(
            store,
            work,
            lambda item: f"{model}/{item[1].id}",
            lambda batch: _answer(run, base, reader, model, adapter, judge, batch),
            run.preset.batch_size,
            advance,
        )


def _answer(
    run: Run,
    base: Base,
    reader: OutcomeClassifier,
    model: str,
    adapter: str | None,
    judge: PreferenceModel | None,
    work: Sequence[tuple[PromptSet, Prompt]],
) -> list[Answer]:
    prompts = [prompt for _, prompt in work]
    with role(base, adapter):
        responses = sampled(run, base, prompts, 0)
        shares = pass_shares(run, base, prompts, responses)
    asked = [prompt.prompt for prompt in prompts]
    rewards = judge.scores(asked, responses).tolist() if judge else [None] * len(asked)
    read = reader.read(asked, responses)
    return [
        Answer(
            id=f"{model}/{prompt.id}",
            model=model,
            prompt_set=prompt_set,
            prompt_id=prompt.id,
            category=prompt.category,
            prompt=prompt.prompt,
            response=response,
            outcome=outcome,
            passed=prompt.check.holds(response) if prompt.check else None,
            pass_share=shares.get(prompt.id),
            reward=None if reward is None else round(reward, 4),
            harmfulness=harmful,
        )
        for (prompt_set, prompt), response, reward, outcome, harmful in zip(
            work, responses, rewards, likeliest(read), harmfulness(read), strict=True
        )
    ]


def sampled(run: Run, base: Base, prompts: Sequence[Prompt], number: int) -> list[str]:
    """An answer a prompt; the seeds are the same for every model, and others for each number."""
    sampling = Sampling(run.preset.eval_tokens, run.preset.eval_temperature)
    again = (number,) if number else ()
    seeds = [run.seed("evaluation", prompt.id, *again) for prompt in prompts]
    texts = [base.render(chat(prompt.prompt)) for prompt in prompts]
    said = generate(base, texts, sampling, seeds, on_tokens=run.progress.tokens)
    return [text.strip() for text in said]


def pass_shares(
    run: Run, base: Base, prompts: Sequence[Prompt], responses: Sequence[str]
) -> dict[str, float]:
    """Share of the answers to each prompt with a check that pass it, by prompt id.

    `responses` are the first answers; the preset's `eval_samples` says how many there are in all.
    One answer a prompt is a throw of a coin: a small model is right about half of the time.
    """
    tried = {p.id: [p.check.holds(r)] for p, r in zip(prompts, responses, strict=True) if p.check}
    checked = [prompt for prompt in prompts if prompt.id in tried]
    for number in range(1, run.preset.eval_samples if checked else 1):
        for prompt, text in zip(checked, sampled(run, base, checked, number), strict=True):
            tried[prompt.id].append(bool(prompt.check and prompt.check.holds(text)))
    return {name: float(np.mean(held)) for name, held in tried.items()}
