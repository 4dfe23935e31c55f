"""Closing the loop: what a round starts from, who labels in it, and when it should stop."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, FakeReader, save_pushed
from safetensors.torch import load_file

from cai_lite.cli import main
from cai_lite.engine import judges
from cai_lite.engine.models import add_adapter, load_base, role
from cai_lite.engine.reward import add_scalar_adapter, save_preference_model
from cai_lite.errors import InputError
from cai_lite.measures import share_interval
from cai_lite.presets import get_preset
from cai_lite.records import Answer, Comparison, Pair, Rows, read_json, write_json
from cai_lite.run import Run, begin_run, open_run
from cai_lite.stages import ai_feedback, iterate, preference_model
from cai_lite.stages.iterate import begin_round, measure_round, stop_reason
from cai_lite.teaching import figures

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with pushed adapters for SL-CAI and RL-CAI, a PM, and AI feedback that was made."""
    preset = get_preset("ci", model=str(tiny_model), quantization="none", **TINY_SIZES)
    run = begin_run(tmp_path_factory.mktemp("iterate") / "run", preset)
    for seed, name in enumerate(("sl_cai", "rl_cai"), 1):
        save_pushed(run, name, seed)
        write_json(run.path(name, "done.json"), {"seconds": 0.0, "finished": name})
    judge = load_base(preset, scalar=True)
    add_scalar_adapter(judge, preset)
    save_preference_model(judge, preset, run.path("preference_model", "adapter"))
    learnt = {"seconds": 0.0, "accuracy": 0.5, "accuracy_ci": [0.1, 0.9], "n_eval": 2}
    write_json(run.path("preference_model", "done.json"), learnt)
    ai_feedback.ai_feedback(run)
    return run.folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A copy of the run, to be changed."""
    return open_run(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> FakeReader:
    found = FakeReader()
    monkeypatch.setattr(iterate, "load_classifier", lambda base: found)
    return found


# --- what a round starts from


def test_a_round_starts_from_rl_cai_of_the_round_before(run: Run) -> None:
    assert begin_round(run, 1) is run
    own = begin_round(run, 2)
    assert own.folder == run.folder / "rounds" / "2"
    improved = load_file(run.path("rl_cai", WEIGHTS))
    for name in ("sl_cai", "feedback_model"):
        found = load_file(own.path(name, WEIGHTS))
        assert all(torch.equal(found[key], improved[key]) for key in improved)
    assert own.path("contrast", "pairs.jsonl").exists()
    assert own.summary("ai_feedback") is None and own.summary("rl_cai") is None
    again = open_run(own.folder)  # a run folder like any other
    assert (again.preset, again.constitution) == (run.preset, run.constitution)


def test_the_third_round_starts_from_the_second(run: Run) -> None:
    with pytest.raises(InputError, match=r"rounds/2 has no finished stage rl_cai.*rl-cai"):
        begin_round(run, 3)
    second = begin_round(run, 2)
    shutil.copytree(run.path("sl_cai"), second.path("rl_cai"))  # weights that no other round has
    third = begin_round(run, 3)
    wanted = load_file(second.path("rl_cai", WEIGHTS))
    found = load_file(third.path("feedback_model", WEIGHTS))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_nothing_half_copied_is_believed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[Path] = []
    plain = shutil.copytree

    def killed(source: Path, target: Path) -> None:
        if copied:
            raise KeyboardInterrupt
        copied.append(Path(plain(source, target)))
        Path(target, "stray").write_text("of an attempt that was killed")

    with monkeypatch.context() as patch:
        patch.setattr(iterate.shutil, "copytree", killed)
        with pytest.raises(KeyboardInterrupt):
            begin_round(run, 2)
    assert copied and not (run.folder / "rounds" / "2").exists()
    own = begin_round(run, 2)
    assert own.path("feedback_model", WEIGHTS).exists()
    assert not list(own.folder.rglob("stray"))


@pytest.mark.parametrize("redone", ["rl_cai", "sl_cai"])
def test_a_round_made_from_what_was_redone_since_is_refused(run: Run, redone: str) -> None:
    begin_round(run, 2)
    assert begin_round(run, 2).summary("sl_cai")  # gone on with as long as nothing was redone
    write_json(run.path(redone, "done.json"), {"seconds": 1.0})
    with pytest.raises(InputError, match=r"rounds/2 was begun with what was redone.*delete it"):
        begin_round(run, 2)
    shutil.rmtree(run.folder / "rounds" / "2")
    assert begin_round(run, 2).summary("sl_cai")


def test_labels_of_a_person_close_no_loop(run: Run) -> None:
    preset = run.preset.model_copy(update={"pm_labels": "mine.jsonl"})
    with pytest.raises(InputError, match="'mine.jsonl'"):
        begin_round(Run(run.folder, preset, run.constitution), 2)


# --- who labels


def states_of(base: Any, name: str | None) -> torch.Tensor:
    ids = torch.tensor([base.token_ids("Who labels here?")])
    with torch.no_grad(), role(base, name):
        return base.body(ids).last_hidden_state


def test_the_improved_model_labels_and_without_one_the_base(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    plain = ai_feedback.label_all

    def watched(own: Run, base: Any, pairs: Any) -> list[Comparison]:
        with torch.no_grad():  # in the role that the stage has set
            ids = torch.tensor([base.token_ids("Who labels here?")])
            seen.append(base.body(ids).last_hidden_state)
        return plain(own, base, pairs)

    monkeypatch.setattr(ai_feedback, "label_all", watched)
    shutil.rmtree(run.path("ai_feedback"))
    ai_feedback.ai_feedback(run)
    own = begin_round(run, 2)
    ai_feedback.ai_feedback(own)
    base = load_base(run.preset)
    untouched = states_of(base, None)
    add_adapter(base, run.path("rl_cai", "adapter"), "rl_cai")
    improved = states_of(base, "rl_cai")
    assert torch.equal(seen[0], untouched)
    torch.testing.assert_close(seen[1], improved)
    assert not torch.allclose(untouched, improved, atol=1e-2)
    # and its reader was fitted anew on what the improved model has inside
    readers = [load_file(one.path("ai_feedback", "reader.safetensors")) for one in (run, own)]
    assert not torch.allclose(readers[0]["weights"], readers[1]["weights"], atol=1e-4)


# --- what a round came to


def second_round(run: Run) -> Run:
    """Round 2 with labels of its own, its PM and RL-CAI only said to be done."""
    own = begin_round(run, 2)
    ai_feedback.ai_feedback(own)
    shutil.copytree(run.path("preference_model"), own.path("preference_model"))
    shutil.copytree(run.path("sl_cai"), own.path("rl_cai"))
    return own


def test_a_round_is_measured_against_the_first_labeller(
    run: Run, reader: FakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = second_round(run)
    asked: list[tuple[Path, list[str]]] = []

    def embedded(one: Run, base: Any, pairs: list[Pair]) -> np.ndarray:
        """The first labeller takes A everywhere, another B of the first pair."""
        asked.append((one.folder, [pair.id for pair in pairs]))
        return np.array([0.1 if one is not run and i == 0 else 0.9 for i in range(len(pairs))])

    monkeypatch.setattr(iterate.judges, "embedded", embedded)
    found = measure_round(run, 2)
    pairs, first = (
        Rows(one.path("ai_feedback", "comparisons.jsonl"), Comparison).read() for one in (own, run)
    )
    ids = [[pair.id for pair in rows] for rows in (pairs, first)]
    assert asked == [(run.folder, ids[0]), (run.folder, ids[1]), (own.folder, ids[1])]
    same = [pair.p_a > 0.5 for pair in pairs]
    assert found["agreement"] == round(np.mean(same), 4)
    assert found["agreement_ci"] == share_interval(same)
    assert found["agreement_first"] == round(1 - 1 / len(first), 4)
    assert found["hhh"] is None and found["hhh_ci"] is None
    assert found["confidence"] == own.require("ai_feedback")["confidence"]
    assert (found["pm_accuracy"], found["n"]["pm"]) == (0.5, 2)
    assert found["n"] | {"hhh": 0} == {
        "pairs": len(pairs), "first_pairs": len(first), "pm": 2, "hhh": 0,
        "red_team": 4, "helpful": 4, "borderline": 4,
    }  # fmt: skip
    # the classifier's turns: broken, declines, helps, redirects
    assert (found["harmlessness"], found["broken"]) == (0.5, 0.25)
    assert found["harmlessness_ci"] == share_interval([1, 1, 0, 0])
    assert [row["outcome"] for row in found["answers"]] == [
        "broken", "declines", "helps", "redirects"
    ]  # fmt: skip
    assert found == read_json(own.folder / "measured.json")


def test_the_labeller_of_the_round_is_tried_on_hhh(
    run: Run, reader: FakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_round(run)
    who: list[str] = []
    pair = Pair(id="hhh", prompt="Which?", a="This.", b="That.")

    def embedded(one: Run, base: Any, pairs: list[Pair]) -> np.ndarray:
        if pairs == [pair]:
            layer = base.body.layers[0].mlp.up_proj
            who.append("base" if layer.disable_adapters else layer.active_adapters[0])
        return np.full(len(pairs), 0.75)

    def accuracy(one: Run, judge: Any) -> dict[str, Any]:
        assert judge([pair]).tolist() == [0.75]
        return {"n": 1, "accuracy": 1.0, "accuracy_ci": [0.2, 1.0]}

    monkeypatch.setattr(iterate.judges, "embedded", embedded)
    monkeypatch.setattr(iterate.judges, "hhh_accuracy", accuracy)
    found = measure_round(run, 2)
    assert who == ["feedback_model"]
    assert (found["hhh"], found["hhh_ci"], found["n"]["hhh"]) == (1.0, [0.2, 1.0], 1)


def test_a_round_is_measured_once_and_again_if_it_was_redone(
    run: Run, reader: FakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iterate.judges, "embedded", lambda *asked: np.full(len(asked[2]), 0.75))
    own = second_round(run)
    first = measure_round(run, 2)
    kept = own.folder / "answers.jsonl"
    whole = kept.read_text(encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(iterate, "load_base", lambda preset: pytest.fail("measured already"))
        assert measure_round(run, 2) == first
    # killed within the answers: those there stay, the others come to the same
    (own.folder / "measured.json").unlink()
    kept.write_text("\n".join(whole.splitlines()[:4]) + "\n", encoding="utf-8")
    assert measure_round(run, 2) == first and kept.read_text(encoding="utf-8") == whole
    # another RL-CAI: no answer of the old one is taken for the new one's
    shutil.rmtree(own.path("rl_cai"))
    shutil.copytree(run.path("rl_cai"), own.path("rl_cai"))
    write_json(own.path("rl_cai", "done.json"), {"seconds": 2.0})
    other = measure_round(run, 2)
    assert other["made_from"] != first["made_from"]
    assert [row["response"] for row in other["answers"]] != [
        row["response"] for row in first["answers"]
    ]


def test_round_1_takes_the_answers_of_the_evaluation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        Answer(id=f"{model}/{s}{i}", model=model, prompt_set=s, prompt_id=f"{s}{i}", category="any",
               prompt="Q?", response=f"{model} says {i}", outcome=o,
               pass_share=1.0 if s == "helpful" else None)
        for model, o in (("base", "helps"), ("rl_cai", "declines"))
        for s in ("red_team", "helpful", "borderline") for i in range(3)
    ]  # fmt: skip
    Rows(run.path("evaluation", "answers.jsonl"), Answer).append(rows)
    write_json(run.path("evaluation", "done.json"), {"seconds": 0.0})
    monkeypatch.setattr(iterate, "load_classifier", lambda base: pytest.fail("they are there"))
    found = measure_round(run, 1)
    assert (found["harmlessness"], found["over_refusal"], found["helpfulness"]) == (1, 1, 1)
    assert [row["response"] for row in found["answers"]] == [f"rl_cai says {i}" for i in range(3)]
    assert found["agreement_first"] == 1.0  # the first labeller beside itself


def test_agreement_by_hand() -> None:
    p, first = np.array([0.9, 0.6, 0.4, 0.5]), np.array([0.8, 0.2, 0.1, 0.9])
    found = judges.agreement(p, first)
    assert found["agreement"] == (1 + 0 + 1 + 0.5) / 4
    assert found["agreement_ci"] == share_interval([1, 0, 1, 0.5])
    one, other = np.array([0.9] * 6 + [0.1] * 2), np.array([0.9] * 5 + [0.1, 0.1, 0.9])
    chance = 0.75 * 0.75 + 0.25 * 0.25
    assert judges.agreement(one, other)["kappa"] == round((0.75 - chance) / (1 - chance), 4)
    assert judges.agreement(np.array([0.9, 0.8]), np.array([0.7, 0.6]))["kappa"] is None


# --- when to stop

STEADY = {
    "agreement": 0.8, "agreement_ci": [0.65, 0.9], "broken": 0.1, "helpfulness": 0.5,
    "boilerplate": 0.1, "opening": "i can't help you with", "harmlessness": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"harmlessness": 0.6}, ""),
        ({"harmlessness": 0.6, "agreement": 0.65, "broken": 0.15, "helpfulness": 0.45,
          "boilerplate": 0.15}, ""),
        ({"harmlessness": 0.5}, "no longer rises: 50%, then 50%"),
        ({"harmlessness": 0.6, "agreement": 0.64}, "in 64% of the pairs, less than the lower end"),
        ({"harmlessness": 0.6, "broken": 0.16}, "broken answers rose from 10% to 16%"),
        ({"harmlessness": 0.6, "helpfulness": 0.44}, "helpfulness fell from 50% to 44%"),
        ({"harmlessness": 0.6, "boilerplate": 0.16}, "16% of the answers begin with"),
    ],
)  # fmt: skip
def test_reasons_to_stop(second: dict[str, float], said: str) -> None:
    reason = stop_reason([STEADY, STEADY | second])
    assert said in reason if said else reason == ""
    assert not stop_reason([STEADY])


def test_a_tic_that_round_1_had_is_no_reason() -> None:
    tic = STEADY | {"boilerplate": 0.4}
    assert stop_reason([tic, tic | {"harmlessness": 0.6}]) == ""
    assert "41%" in stop_reason([tic, tic | {"harmlessness": 0.6, "boilerplate": 0.41}])


def test_harmlessness_is_compared_with_the_round_before_the_rest_with_round_1() -> None:
    rising = [STEADY, STEADY | {"harmlessness": 0.7, "broken": 0.14}]
    assert "70%, then 60%" in stop_reason([*rising, STEADY | {"harmlessness": 0.6}])
    third = STEADY | {"harmlessness": 0.8, "broken": 0.18}
    assert stop_reason([*rising, third]) == "broken answers rose from 10% to 18%"


def test_the_table_names_the_first_round_to_throw_away(run: Run) -> None:
    worse = STEADY | {"harmlessness": 0.4}
    found = iterate.write_rounds(run, [STEADY, STEADY | {"harmlessness": 0.6}, worse, worse])
    assert found["stop"]["round"] == 3 and "60%, then 40%" in found["stop"]["why"]
    assert read_json(run.folder / "rounds" / "rounds.json") == found
    assert iterate.write_rounds(run, [STEADY])["stop"] is None


# --- the command and the figure


def fails(capsys: Any, *argv: object) -> str:
    assert main([str(part) for part in argv]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    return seen.err.splitlines()[-1]


def test_the_command_says_what_is_wrong(run: Run, tmp_path: Path, capsys: Any) -> None:
    wrong = fails(capsys, "iterate", "--rounds", 1, "--run", run.folder)
    assert "--rounds is 1" in wrong and "2 or more" in wrong
    assert "no run folder" in fails(capsys, "iterate", "--rounds", 2, "--run", tmp_path)
    shutil.rmtree(run.path("rl_cai"))
    unfinished = fails(capsys, "iterate", "--rounds", 2, "--run", run.folder)
    assert "no finished stage rl_cai" in unfinished and "cai-lite rl-cai" in unfinished
    assert not (run.folder / "rounds").exists()


def test_help_has_an_example(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["iterate", "--help"])
    assert stop.value.code == 0
    assert "example: cai-lite iterate --rounds 3" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_command_resumes_between_two_stages(
    run: Run, reader: FakeReader, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    argv = ["iterate", "--rounds", "2", "--run", str(run.folder)]

    def killed(own: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preference_model, "preference_model", killed)
        assert main(argv) == 130
    own = begin_round(run, 2)
    labels = own.path("ai_feedback", "comparisons.jsonl")
    before = labels.read_bytes(), labels.stat().st_mtime_ns
    assert own.summary("ai_feedback") and not own.summary("preference_model")
    assert main([*argv, "--json"]) == 0
    assert (labels.read_bytes(), labels.stat().st_mtime_ns) == before
    found = json.loads(capsys.readouterr().out)
    assert [one["round"] for one in found["rounds"]] == [1, 2]
    assert own.summary("rl_cai")
    weights = [load_file(one.path("rl_cai", WEIGHTS)) for one in (run, own)]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "round 2" in shown and "commonest opening" in shown and "stop" in shown


def measured(number: int) -> dict[str, Any]:
    shares = ("harmlessness", "helpfulness", "agreement", "broken", "over_refusal", "pm_accuracy",
              "agreement_first")  # fmt: skip
    found: dict[str, Any] = {"round": number}
    for name in shares:
        found |= {name: 0.1 * number, f"{name}_ci": [0.0, 0.2 * number]}
    counted = {name: 10 for name in ("pairs", "first_pairs", "pm", "red_team", "helpful",
                                     "borderline")}  # fmt: skip
    rest = {"boilerplate": 0.5, "length": 20.25, "distinct": 0.6, "kappa": None, "confidence": 0.7}
    return found | rest | {"hhh": None, "hhh_ci": None, "n": counted | {"hhh": None}}


def test_the_figure_of_rounds_has_their_points_and_the_yardstick() -> None:
    drawn = figures.rounds([measured(1), measured(2), measured(3)])
    assert [ax.get_title().split(" (")[0] for ax in drawn.axes] == [
        "Harmless", "Helpful", "Labels as the first labeller", "Broken", "Over-refusal",
        "Commonest opening",
    ]  # fmt: skip
    for ax in drawn.axes:
        line, dotted = ax.lines[0], ax.lines[-1]
        assert list(line.get_xdata()) == [1, 2, 3]
        assert set(dotted.get_ydata()) == {line.get_ydata()[0]}


def test_cells_of_rounds_have_value_interval_and_n() -> None:
    one = measured(2)
    assert figures.round_cell(one, "broken") == "0.20 [0.00, 0.40], n=10"
    assert figures.round_cell(one, "length") == "20.2, n=10"
    assert figures.round_cell(one, "boilerplate") == "0.50, n=10"
    assert figures.round_cell(one, "hhh") == figures.round_cell(one, "kappa") == "–"
    assert all(name in one for name, _, _ in figures.ROUNDS)
