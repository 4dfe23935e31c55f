"""SL-CAI: what is trained on, and that only the answers are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_SIZES

from cai_lite.engine.models import Base, add_adapter, load_base, new_adapter, role
from cai_lite.presets import get_preset
from cai_lite.prompts import chat
from cai_lite.records import HelpfulAnswer, Revision
from cai_lite.run import Run, begin_run
from cai_lite.stages import sl_cai
from cai_lite.stages.sl_cai import fine_tune, training_rows

ANSWERS = [
    "I won't: it is hers.",
    "Paris.",
    "Bread, butter and a long walk by the sea",
    "Two\nlines",
]


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Run:
    sizes = TINY_SIZES | {"sl_batch": 2, "sl_epochs": 4, "sl_learning_rate": 1e-2}
    preset = get_preset("ci", model=str(tiny_model), quantization="none", **sizes)
    return begin_run(tmp_path / "run", preset)


def rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": chat(f"Question {i}?"),
            "completion": [{"role": "assistant", "content": answer}],
        }
        for i, answer in enumerate(ANSWERS)
    ]


def test_the_loss_is_on_the_answers_tokens_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def keep(run: Run, trainer: Any, *_: object) -> list[dict[str, float]]:
        found.append(trainer)
        return []

    monkeypatch.setattr(sl_cai, "train", keep)
    base = load_base(run.preset)
    new_adapter(base, run.preset)
    fine_tune(run, base, rows())
    end = base.tokenizer.eos_token_id
    seen = {}
    for batch in found[0].get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            taught = labels != -100
            assert torch.equal(ids[taught], labels[taught])
            start = int(taught.nonzero()[0])
            prompt = base.tokenizer.decode(ids[:start])
            answer = ids[taught].tolist()
            assert end in answer  # the model learns where to stop
            seen[prompt] = base.tokenizer.decode(answer[: answer.index(end)])
            assert not base.tokenizer.decode(answer[answer.index(end) + 1 :]).strip()
            assert bool(taught[start : start + len(answer)].all())  # one stretch, to its end
    assert seen == {base.render(chat(f"Question {i}?")): text for i, text in enumerate(ANSWERS)}


def test_training_lowers_the_loss_and_moves_the_answers(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base(run.preset)
    new_adapter(base, run.preset)
    losses = fine_tune(run, base, rows())
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.5
    assert capsys.readouterr().out == ""  # standard output is for --json
    folder = run.path("sl_cai", "adapter")
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert not list(run.folder.rglob("checkpoint-*"))
    fresh = load_base(run.preset)
    add_adapter(fresh, folder, "sl_cai")
    assert answer_loss(fresh, "sl_cai") < answer_loss(fresh, None) - 0.5


def answer_loss(base: Base, name: str | None) -> float:
    """Mean cross-entropy of the answers under a role, in nats a token."""
    total, tokens = 0.0, 0
    for row in rows():
        prompt = base.token_ids(base.render(row["prompt"]))
        answer = base.token_ids(row["completion"][0]["content"] + "<|im_end|>")
        with torch.no_grad(), role(base, name):
            logits = base.model(torch.tensor([prompt + answer])).logits[0]
        logs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        total -= float(logs[torch.arange(len(answer)), answer].sum())
        tokens += len(answer)
    return total / tokens


def revision(prompt_id: str, number: int, text: str, **more: object) -> Revision:
    return Revision(
        id=f"{prompt_id}/{number}", prompt_id=prompt_id, prompt=f"about {prompt_id}",
        round=number, response=text, **more,
    )  # fmt: skip


def test_all_rounds_are_trained_on_but_not_the_first_answers_nor_dropped_rows() -> None:
    revisions = [
        revision("a", 0, "harm"), revision("a", 1, "better"), revision("a", 2, "best"),
        revision("b", 0, "bad"), revision("b", 1, "bad", dropped="loop", kept_previous=True),
        revision("b", 2, "good"),
        revision("c", 1, "same"), revision("c", 2, "same"),
    ]  # fmt: skip
    answers = [
        HelpfulAnswer(id="h1", prompt="capital?", response="Paris."),
        HelpfulAnswer(id="h2", prompt="river?", response="", dropped="empty"),
        HelpfulAnswer(id="h3", prompt="capital?", response="Paris."),
    ]
    found = training_rows(revisions, answers)
    pairs = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in found]
    assert pairs == [
        ("about a", "better"), ("about a", "best"), ("about b", "good"), ("about c", "same"),
        ("capital?", "Paris."),
    ]  # fmt: skip
    assert all(row["prompt"][-1]["role"] == "user" for row in found)
    json.dumps(found)
