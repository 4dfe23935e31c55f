"""Pairs a second that the feedback model labels by 16 principles, against one prompt at a time.

    python benchmarks/scoring.py [pairs]

Every pair is labelled pointwise: each of its two answers is asked about once a principle, 32
prompts in all. The slow way reads each prompt whole, by itself, through the model with its head; it
gets fewer pairs. Both compute in float32. The last line on stdout is JSON: how many times faster,
and the largest difference between the labels of the pairs that both did.
"""

import json
import os
import sys
import time

import numpy as np
import torch

from cai_lite.constitution import load_constitution
from cai_lite.engine import labellers
from cai_lite.engine.labellers import Work
from cai_lite.engine.models import Base, load_base
from cai_lite.files import shipped
from cai_lite.presets import get_preset
from cai_lite.prompts import pointwise_chat
from cai_lite.records import Answer, Pair, Rows

PAIRS, LOOP_PAIRS, BATCH = 200, 6, 32


def sample_pairs() -> list[Pair]:
    """Pairs of different sound answers in the shipped sample: SL-CAI's, and base beside SL-CAI."""
    sample = shipped("data", "samples")
    pairs = Rows(sample / "ai_feedback" / "pairs.jsonl", Pair).read()
    answers = Rows(sample / "evaluation" / "answers.jsonl", Answer).read()
    later = {row.prompt_id: row.response for row in answers if row.model == "sl_cai"}
    pairs += [
        Pair(id=row.prompt_id, prompt=row.prompt, a=row.response, b=later[row.prompt_id])
        for row in answers
        if row.model == "base"
    ]
    return [
        pair
        for pair in pairs
        if pair.a != pair.b
        and not any(labellers.no_answer(pair.prompt, text) for text in (pair.a, pair.b))
    ]


def one_at_a_time(base: Base, work: list[Work]) -> np.ndarray:
    """P(A) of each pair, (pairs,), by one forward of the whole model a prompt."""
    yes, no = (base.token_ids(word)[0] for word in ("Yes", "No"))

    def margin(pair: Pair, answer: str, question: str) -> float:
        text = base.render(pointwise_chat(pair.prompt, answer, question))
        with torch.inference_mode():
            logits = base.model(torch.tensor([base.token_ids(text)])).logits[0, -1]
        return float(logits[yes] - logits[no])

    found = [
        np.mean(
            [margin(pair, pair.a, p.question) - margin(pair, pair.b, p.question) for p in drawn]
        )
        for pair, drawn in work
    ]
    return 1 / (1 + np.exp(-np.array(found)))


def main(pairs: int = PAIRS) -> None:
    """Time both ways and print how many times faster ours is."""
    torch.set_num_threads(os.cpu_count() or 1)
    base = load_base(get_preset("cpu", quantization="none"))
    principles = [p for p in load_constitution("harmlessness").comparison if p.question][:16]
    work = [(pair, principles) for pair in sample_pairs()[:pairs]]
    start = time.perf_counter()
    ours = labellers.pointwise(base, work, BATCH).p_a
    middle = time.perf_counter()
    alone = one_at_a_time(base, work[:LOOP_PAIRS])
    end = time.perf_counter()
    speed, loop = len(work) / (middle - start), LOOP_PAIRS / (end - middle)
    print(f"{len(work)} pairs, {len(principles)} principles: {speed:.3f} pairs/s")
    print(f"one prompt at a time: {loop:.3f} pairs/s")
    gap = float(np.abs(ours[:LOOP_PAIRS] - alone).max())
    print(json.dumps({"vs_loop": round(speed / loop, 2), "max_abs_dp": round(gap, 6)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
