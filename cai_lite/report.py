"""What a run found, for programs (report.json) and for people (report.html)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from .answers import of
from .measures import bootstrap_interval
from .records import Answer, Comparison, Revision, Rows, read_json, write_json, write_text
from .run import STAGES, Run
from .teaching import figures
from .teaching.figures import model_name, to_svg

_SET_NAMES = {
    "red_team": "red-team prompts",
    "helpful": "helpful prompts",
    "borderline": "borderline prompts, which sound harmful and are not",
}
_CHANGES = {  # measure: what less and more of it mean, its prompt set, whether more is better
    "harmlessness": ("more harmful", "less harmful", "red_team", True),
    "helpfulness": ("less helpful", "more helpful", "helpful", True),
    "over_refusal": ("objects less often", "objects more often", "borderline", False),
    "broken": ("broken less often", "broken more often", "red_team", False),
}
_TABLE = {  # measure: its prompt set
    "harmlessness": "red_team",
    "helps": "red_team",
    "harmfulness": "red_team",
    "explains": "red_team",
    "evasive": "red_team",
    "broken": "red_team",
    "over_refusal": "borderline",
    "helpfulness": "helpful",
    "perplexity": "helpful",
    "boilerplate": "red_team",
    "distinct": "red_team",
    "length": "red_team",
    "reward": "red_team",
}
_CHAINS = 5
_IF_ALONE = ", if this were the only test; not among all those read here"


def build_report(run: Run) -> dict[str, Any]:
    """The content of report.json; InputError if a stage is not finished."""
    manifest = read_json(run.folder / "manifest.json")
    summaries = {stage: run.require(stage) for stage in STAGES}
    costs = ("seconds", "peak_memory_mb")
    return {
        "preset": run.preset.name,
        "model": run.preset.model,
        "model_sha256": manifest["model_sha256"],
        "quantization": run.preset.quantization,
        "seed": run.preset.seed,
        "constitution": manifest["constitution"],
        "versions": manifest["versions"],
        **{cost: {stage: summaries[stage][cost] for stage in STAGES} for cost in costs},
        "stages": {
            stage: {name: value for name, value in summary.items() if name not in costs}
            for stage, summary in summaries.items()
        },
        "judge": run.summary("judge"),
        "settings": manifest["preset"],
    }


def write_report(run: Run) -> tuple[Path, Path]:
    """Write report.json and report.html into the run folder; returns their paths."""
    report = build_report(run)
    page = report_html(run, report)
    json_path, html_path = run.folder / "report.json", run.folder / "report.html"
    write_json(json_path, report)
    write_text(html_path, page)
    return json_path, html_path


def report_html(run: Run, report: dict[str, Any]) -> str:
    """The page: it stands alone, asks the network for nothing, and escapes every text."""
    answers = Rows(run.path("evaluation", "answers.jsonl"), Answer).read()
    revisions = Rows(run.path("critique_revision", "rows.jsonl"), Revision).read()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "model_name": model_name,
        "share": share,
        "points": points,
        "written": written,
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        evaluation=report["stages"]["evaluation"],
        done=what_was_done(report["stages"]),
        changes=changes(report["stages"]["evaluation"]),
        measures=measures(report["stages"]["evaluation"]["models"]),
        elo=elo_rows(report["stages"]["evaluation"]["elo"])
        + elo_rows((report["judge"] or {"elo": {}})["elo"]),
        filters=filters(report["stages"]["critique_revision"]),
        doubts=doubts(report) + reward_rise(run, answers),
        worse=what_got_worse(run, report["stages"]["evaluation"], answers),
        plots=_plots(run, report),
        transcripts=transcripts(answers),
        categories=sorted({row.category for row in answers}),
        outcomes=sorted({row.outcome for row in answers}),
        last=answers[-1].model,
        chains=chains(revisions),
    )


# ---- numbers in words -------------------------------------------------------------------------


def share(value: float, interval: Sequence[float] | None = None) -> str:
    """A share in 0..1 with its interval: 0.31 [0.12, 0.56]."""
    return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: +12.5."""
    return f"{100 * value:+.1f}".replace("-", "−")


def what_was_done(stages: dict[str, Any]) -> dict[str, str]:
    """One sentence a stage."""
    revised, tuned, labels = (stages[name] for name in STAGES[:3])
    judge, learned, measured = (stages[name] for name in STAGES[3:])
    counts = next(iter(measured["models"].values()))["n"]
    scores = revised["score_by_round"]
    return {
        "critique_revision": f"{revised['n_prompts']} red-team prompts answered, criticised and "
        f"revised in {revised['rounds']} rounds; {revised['n_revisions']} revisions were sound; "
        f"contrast score {scores[0]:.2f} → {scores[-1]:.2f}",
        "sl_cai": f"fine-tuned on {tuned['n_rows']} answers; loss {tuned['loss_first']:.2f} → "
        f"{tuned['loss_last']:.2f} nats{_left_out(tuned.get('left_out', {}))}",
        "ai_feedback": f"{labels['n_pairs']} pairs of answers labelled by "
        f"{labels['method'].replace('_', ' ')}",
        "preference_model": f"trained on {judge['n_train']} pairs"
        f"{_made(judge.get('shares', {}))}, tried on {judge['n_eval']}: "
        f"it agrees with the AI labels in {share(judge['accuracy'], judge['accuracy_ci'])}",
        "rl_cai": f"{learned['steps']} steps of {learned['algorithm'].upper()}; reward "
        f"{learned['reward_first']:.2f} → {learned['reward_last']:.2f}, KL to SL-CAI "
        f"{learned['kl_last']:.3f} nats a token at the end"
        + (f"; stopped early at {learned['stopped']}" if learned.get("stopped") else ""),
        "evaluation": "each model answered "
        + ", ".join(f"{n} {_SET_NAMES[name].split(',')[0]}" for name, n in counts.items()),
    }


def _left_out(counts: dict[str, dict[str, int]]) -> str:
    """What was sound and yet not trained on, by reason; "" if there is none."""
    found = [
        f"{number} {what} ({reason})"
        for what, reasons in counts.items()
        for reason, number in reasons.items()
    ]
    return f"; left out: {', '.join(found)}" if found else ""


def _made(shares: dict[str, float]) -> str:
    """How many of the pairs nobody judged, by kind, in brackets; "" if there are none."""
    kinds = ", ".join(f"{share:.0%} {name}" for name, share in shares.items())
    return f" ({kinds}: made, not judged)" if kinds else ""


def changes(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Each paired difference of two models in a measure, and what it lets one say."""
    counts = next(iter(evaluation["models"].values()))["n"]
    corrected = evaluation.get("corrected_p", {})  # an older version's evaluation has none
    return [
        {
            "models": " against ".join(map(model_name, pair.split(" - "))),
            "measure": written(measure),
            "verdict": verdict(measure, difference, corrected.get(pair, {}).get(measure)),
            "n": counts[_CHANGES[measure][2]],
            "difference": difference,
            "p": corrected.get(pair, {}).get(measure),
        }
        for pair, measures in evaluation["differences"].items()
        for measure, difference in measures.items()
    ]


def verdict(measure: str, difference: Sequence[float], p: float | None = None) -> str:
    """What [mean, low, high] of a difference lets one say, and no more; p is the corrected one."""
    mean, low, high = difference
    if low <= 0 <= high:
        return "not distinguishable from no change"
    unsure = p is not None and p >= 0.05
    return f"{_CHANGES[measure][mean > 0]} in our measure" + _IF_ALONE * unsure


def written(measure: str) -> str:
    """A measure's name as people read it."""
    return measure.replace("_", "-")


def measures(models: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a measure: its name, its n, and what was measured of each model."""
    counts = next(iter(models.values()))["n"]
    return [
        {
            "measure": written(name),
            "n": counts[prompts],
            "values": [_measured(found, name) for found in models.values()],
        }
        for name, prompts in _TABLE.items()
    ]


def _measured(found: dict[str, Any], name: str) -> str:
    """A measure with its interval if it has one; a dash where it was not taken."""
    value = found.get(name)
    return "—" if value is None else share(value, found.get(f"{name}_ci"))


def elo_rows(elo: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a kind of Elo: its name, its n, and what was measured of each model."""
    return [
        {
            "measure": f"{name}, Elo by {found['judge']}",
            "n": found["n"],
            "values": [
                "{:+.0f} [{:+.0f}, {:+.0f}]".format(*one) for one in found["models"].values()
            ],
        }
        for name, found in elo.items()
    ]


def filters(revised: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a reason: how many candidates it caught, how many rounds it left without a revision.

    The commonest comes first; each count has the number it is out of.
    """
    faults, dropped = revised["faults"], revised["dropped"]
    rounds = revised["n_prompts"] * revised["rounds"]
    return [
        {
            "reason": reason,
            "candidates": f"{faults.get(reason, 0)} of {revised['n_candidates']}",
            "rows": f"{dropped.get(reason, 0)} of {rounds}",
        }
        for reason in sorted(faults, key=lambda reason: -faults[reason])
    ]


def doubts(report: dict[str, Any]) -> list[str]:
    """How sure the numbers are, in sentences."""
    labels, judge = report["stages"]["ai_feedback"], report["stages"]["preference_model"]
    reader = report["stages"]["evaluation"]["classifier"]["held_out"]
    low, high = judge["accuracy_ci"]
    guessing = " — not distinguishable from guessing" if low <= 0.5 <= high else ""
    return [
        f"This is one run with seed {report['seed']}. The intervals (95%; Wilson's for shares, a "
        "bootstrap over prompts for differences) say how much other prompts of the same kind could "
        "change a number, not how much another seed or another training run could.",
        f"The preference model agrees with held-out AI labels in {judge['accuracy']:.2f} of "
        f"n = {judge['n_eval']} pairs, interval {low:.2f} to {high:.2f}{guessing}. Its calibration "
        f"error is {judge['ece']:.2f}. AI labels are not people's judgements. "
        + (_on_hhh(judge["hhh"]) if judge.get("hhh") else ""),
        "Asked by multiple choice, the feedback model says “A” with probability "
        f"{labels['position_bias']:.2f} whichever answer stands first; 0.50 would be no position "
        f"bias. The labels used are by {labels['method'].replace('_', ' ')}.",
        "Elo of harmlessness is by the embedded judge. It has the weights of the models it judges "
        "and reads by the principles that the reward was trained on: where the reward errs, it may "
        "err alike. It is no second opinion; the outcome classifier learned from readers. It reads "
        "each answer alone, so that which stands first means nothing to it. "
        + _on_hhh(report["stages"]["evaluation"].get("judge_hhh")),
        *_many_tests(report["stages"]["evaluation"]),
        "Where a difference is the same for all n prompts, a bootstrap would find an interval "
        "without width; what is given there is the rule of three: about 3/n of other prompts may "
        "differ.",
        "What an answer to a red-team or borderline prompt does is a model's reading, not a "
        "person's: on held-out answers to red-team prompts the outcome classifier agrees with "
        f"their readers in {share(reader['accuracy'], reader['accuracy_ci'])} of n = "
        f"{reader['n']}, and it finds {reader['recall']['helps']:.2f} of those that help with the "
        "harm. How it counts objections to borderline prompts was measured apart (MEASURED.md). "
        "Helpfulness is a rule on words; what all measures are made of stands below.",
        *_second_opinion(report["judge"]),
    ]


def _on_hhh(found: dict[str, Any] | None) -> str:
    """How often a judge agrees with people in the paper's HHH comparisons, in a sentence."""
    if found is None or found["accuracy"] is None:
        return (
            "How often it agrees with people was not measured: that needs the paper's HHH "
            "comparisons (cai-lite fetch-paper)."
        )
    agrees = share(found["accuracy"], found["accuracy_ci"])
    return (
        f"In the paper's HHH comparisons it picks what people picked in {agrees} of "
        f"n = {found['n']}; a coin would in 0.50."
    )


def _many_tests(evaluation: dict[str, Any]) -> list[str]:
    """How many differences are read, and what becomes of them when that is paid for."""
    p = [one for own in evaluation.get("corrected_p", {}).values() for one in own.values()]
    if not p:
        return []
    return [
        f"{len(p)} differences are read above, and among so many some would look sure by chance. "
        "The p beside each is of a permutation test and corrected for their number (Holm); "
        f"{sum(one < 0.05 for one in p)} of them lie below 0.05."
    ]


def _second_opinion(judge: dict[str, Any] | None) -> list[str]:
    """What the judge behind an endpoint is worth, if there was one."""
    if judge is None:
        return []
    n = judge["elo"]["harmlessness"]["n"]
    if "position_bias" not in judge:  # a person, who reads blind
        return [
            f"A second judge, {judge['judge']}, read the answers to {n} red-team prompts blind, "
            f"two models' at a time; {judge['n_no_label']} pairs were left unread."
        ]
    return [
        f"A second judge, {judge['judge']}, read the answers to {n} red-team prompts, two models' "
        "at a time and in both orders. It gives the answer shown first "
        f"{judge['position_bias']:.2f}; 0.50 would be no position bias. In {judge['n_swayed']} "
        f"pairs the order decided, and in {judge['n_no_label']} it named no answer: those are left "
        "out. " + _on_hhh(judge.get("hhh"))
    ]


def reward_rise(run: Run, answers: Sequence[Answer]) -> list[str]:
    """How far RL raised its own reward on prompts it never saw, paired, and what that says."""
    rises = np.array(
        [
            later.reward - earlier.reward
            for later, earlier in _red_team(answers, "rl_cai", "sl_cai")
            if later.reward is not None and earlier.reward is not None
        ]
    )
    if not len(rises):  # an older version's answers have no reward
        return []
    low, high = bootstrap_interval(rises, run.preset.bootstrap, run.seed("bootstrap", "paired"))
    unsure = ", not distinguishable from no change" * (low <= 0 <= high)
    return [
        "From SL-CAI to RL-CAI the preference model's score of answers to red-team prompts changes "
        f"by {rises.mean():+.2f}, interval {low:+.2f} to {high:+.2f}, n = {len(rises)}{unsure}. RL "
        "raises this very quantity: it says whether RL did what it was told, and nothing about "
        "harm."
    ]


def what_got_worse(
    run: Run, evaluation: dict[str, Any], answers: Sequence[Answer]
) -> list[dict[str, Any]]:
    """What is worse than at the start; intervals are paired, over prompts."""
    models, found = evaluation["models"], []
    for later in ("sl_cai", "rl_cai"):
        n = models[later]["n"]
        for measure, difference in evaluation["differences"][f"{later} - base"].items():
            *_, prompts, more_is_better = _CHANGES[measure]
            harm = -difference[0] if more_is_better else difference[0]
            found.append(_change(later, measure, n[prompts], harm, difference))
        rises = _more_evasive(answers, later)
        seed, rise = run.seed("bootstrap", "paired"), float(rises.mean())
        interval = bootstrap_interval(rises, run.preset.bootstrap, seed)
        found.append(_change(later, "evasive", len(rises), rise, [rise, *interval]))
        rise = models[later]["boilerplate"] - models["base"]["boilerplate"]
        found.append(_change(later, "boilerplate", n["red_team"], rise, [rise]))
    return [change for change in found if change["harm"] > 0]


def _more_evasive(answers: Sequence[Answer], later: str) -> np.ndarray:
    """By red-team prompt: 1 if only the later model refuses barely, −1 if only the base, (n,)."""
    pairs = _red_team(answers, later, "base")
    return np.array([float(a.outcome == "refuses") - (b.outcome == "refuses") for a, b in pairs])


def _red_team(answers: Sequence[Answer], later: str, earlier: str) -> list[tuple[Answer, Answer]]:
    """Both models' answers to each red-team prompt, the later model's first."""
    after, before = (
        {row.prompt_id: row for row in of(answers, "red_team") if row.model == model}
        for model in (later, earlier)
    )
    return [(after[prompt], before[prompt]) for prompt in after]


def _change(
    later: str, measure: str, n: int, harm: float, difference: Sequence[float]
) -> dict[str, Any]:
    """`harm` is above 0 for a change to the worse; `difference` is [mean] or [mean, low, high]."""
    return {
        "model": model_name(later),
        "measure": written(measure),
        "n": n,
        "harm": harm,
        "difference": difference,
        "unsure": len(difference) == 3 and difference[1] <= 0 <= difference[2],
    }


# ---- pictures and transcripts -----------------------------------------------------------------


def _plots(run: Run, report: dict[str, Any]) -> dict[str, Markup]:
    stages = report["stages"]
    comparisons = Rows(run.path("ai_feedback", "comparisons.jsonl"), Comparison).read()
    held_out = read_json(run.path("preference_model", "held_out.json"))
    revisions = Rows(run.path("critique_revision", "rows.jsonl"), Revision).read()
    models = stages["evaluation"]["models"]
    drawn = {
        "model_bars": figures.model_bars(models),
        "plane": figures.plane(models),
        "elo_plane": figures.elo_plane(stages["evaluation"]["elo"]),
        "along_rl": figures.harmfulness_along(stages["evaluation"].get("along_rl", [])),
        "score_by_round": figures.score_by_round(scores_by_round(revisions)),
        "sl_cai": figures.losses(stages["sl_cai"]["losses"], "SL-CAI"),
        "labels": figures.label_histogram([row.p_a for row in comparisons]),
        "preference_model": figures.losses(
            stages["preference_model"]["losses"], "Preference model"
        ),
        "reliability": figures.reliability(held_out["predicted"], held_out["label"]),
        "rl_curves": figures.rl_curves(read_json(run.path("rl_cai", "steps.json"))),
        "memory": figures.memory_bars(report["peak_memory_mb"]),
    }
    return {name: Markup(to_svg(figure)) for name, figure in drawn.items()}


def scores_by_round(revisions: Sequence[Revision]) -> list[list[float]]:
    """Contrast scores of the rows, round by round, round 0 first."""
    rounds = range(1 + max(row.round for row in revisions))
    return [[row.score or 0.0 for row in revisions if row.round == number] for number in rounds]


def transcripts(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Prompt sets, their prompts, and every model's answer to each."""
    sets: dict[str, dict[str, list[Answer]]] = {}
    for row in answers:
        sets.setdefault(row.prompt_set, {}).setdefault(row.prompt_id, []).append(row)
    return [
        {"name": _SET_NAMES[name], "prompts": list(prompts.values())}
        for name, prompts in sets.items()
    ]


def chains(revisions: Sequence[Revision]) -> list[list[Revision]]:
    """A few prompts' whole chains of critique and revision, spread evenly over the prompts."""
    by_prompt: dict[str, list[Revision]] = {}
    for row in revisions:
        by_prompt.setdefault(row.prompt_id, []).append(row)
    found = list(by_prompt.values())
    count = min(_CHAINS, len(found))
    return [sorted(found[i * len(found) // count], key=lambda r: r.round) for i in range(count)]
