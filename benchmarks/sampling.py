"""Rows a second of critique and revision behind one long prefix, by four engines.

Each row is a greedy critique and a greedy revision, both in the paper's completion layout behind
the same worked dialogues of about 1,000 tokens. The engines hold the embedded model and get the
same tokens: (a) cai_lite.engine.sampling; (b) transformers' `generate`, one prompt at a time;
(c) the same with 16 prompts at a time, padded on the left; (d) llama.cpp's server, as the wheel
xllamacpp has it, with 32 requests at a time and its prompt cache warm with the prefix.

(a), (b) and (c) compute in float32 with the same weights, the GGUF file's, dequantised once; (d)
computes with that file's own Q4_1 blocks, which is what it is made for. Texts of (b) and (c) are
compared with those of (a); (d) rounds differently and writes its own. The slow engines get fewer
rows. The last line on stdout is JSON. Use: python benchmarks/sampling.py [rows]
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import xllamacpp

from cai_lite.constitution import draw, load_constitution
from cai_lite.data import shipped_prompts
from cai_lite.engine.embedded import _gguf
from cai_lite.engine.models import Base, load_base
from cai_lite.engine.sampling import Sampling, generate
from cai_lite.presets import get_preset
from cai_lite.prompts import (
    EXAMPLES,
    chat,
    critique_turns,
    dialogue_prefix,
    first_sentences,
    revision_turns,
)

ROWS, LOOP_ROWS, BATCH, AT_ONCE = 64, 4, 16, 32
RESPONSE_TOKENS, CRITIQUE_TOKENS, REVISION_TOKENS = 32, 40, 56
PREFIX = dialogue_prefix(examples=[*EXAMPLES, *EXAMPLES[:2]])


@dataclass(frozen=True)
class Job:
    """Texts to continue behind the prefix by at most so many tokens each."""

    texts: list[str]
    tokens: int

    def first(self, count: int) -> "Job":
        """The job for the first rows alone."""
        return Job(self.texts[:count], self.tokens)


Engine = Callable[[Job], list[str]]


def ours(base: Base, job: Job) -> list[str]:
    """(a) This package's engine."""
    return generate(base, job.texts, Sampling(job.tokens), range(len(job.texts)), PREFIX)


def one_at_a_time(base: Base, job: Job) -> list[str]:
    """(b) transformers, prompt by prompt."""
    return [text for i in range(len(job.texts)) for text in _transformers(base, job, [i])]


def padded_batches(base: Base, job: Job) -> list[str]:
    """(c) transformers, `BATCH` prompts at a time."""
    places = range(len(job.texts))
    groups = [places[i : i + BATCH] for i in range(0, len(places), BATCH)]
    return [text for group in groups for text in _transformers(base, job, group)]


def _transformers(base: Base, job: Job, rows: Sequence[int]) -> list[str]:
    """Left-padded prompts with their mask, from which `generate` takes the positions."""
    ids = [prompt_ids(base, job.texts[i]) for i in rows]
    width, pad = max(map(len, ids)), base.tokenizer.pad_token_id
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    found = base.model.generate(
        tokens.to(base.device),
        attention_mask=mask.to(base.device),
        do_sample=False,
        max_new_tokens=job.tokens,
        pad_token_id=pad,
    )
    return base.tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)


def prompt_ids(base: Base, text: str) -> list[int]:
    """What every engine reads: the prefix's tokens, then the text's."""
    return base.token_ids(PREFIX) + base.token_ids(text)


def start_llamacpp(path: Path, longest: int) -> "xllamacpp.Server":
    """(d) The server with a slot for each request, all cores, and room for the longest row."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = AT_ONCE
    params.n_ctx = AT_ONCE * longest
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.cache_prompt = True
    params.verbosity = 0
    return xllamacpp.Server(params)


def llamacpp(server: "xllamacpp.Server", base: Base, job: Job) -> list[str]:
    """(d) All of a job's rows, `AT_ONCE` requests at a time."""

    def ask(text: str) -> str:
        answer = server.handle_completions(
            {
                "prompt": prompt_ids(base, text),
                "n_predict": job.tokens,
                "max_tokens": job.tokens,
                "temperature": 0,
                "cache_prompt": True,
            }
        )
        return answer["choices"][0]["text"]

    with ThreadPoolExecutor(AT_ONCE) as requests:
        return list(requests.map(ask, job.texts))


def make_jobs(base: Base, rows: int) -> list[Job]:
    """The critiques to write, and the revisions, which hold the critiques of engine (a)."""
    prompts = [p.prompt for p in shipped_prompts("red_team", limit=rows)]
    pairs = draw(load_constitution("harmlessness").critique_revision, rows, 0)
    asked = [base.render(chat(prompt)) for prompt in prompts]
    answers = generate(base, asked, Sampling(RESPONSE_TOKENS), range(rows))
    parts = list(zip(prompts, answers, pairs, strict=True))
    critiques = Job([critique_turns(p, a, pair) for p, a, pair in parts], CRITIQUE_TOKENS)
    said = [first_sentences(text, 1) for text in ours(base, critiques)]
    texts = [revision_turns(*part, text) for part, text in zip(parts, said, strict=True)]
    return [critiques, Job(texts, REVISION_TOKENS)]


def timed(name: str, engine: Engine, jobs: Sequence[Job]) -> tuple[float, list[list[str]]]:
    """(rows a second, texts of each job); the rate is printed."""
    start = time.perf_counter()
    texts = [engine(job) for job in jobs]
    seconds = time.perf_counter() - start
    rows = len(jobs[0].texts)
    print(f"{name:<44}{rows:>4} rows {seconds:>7.1f} s {rows / seconds:>8.3f} rows/s", flush=True)
    return rows / seconds, texts


def main(rows: int = ROWS) -> None:
    """Time the four engines one after another and print how many times faster ours is."""
    torch.set_num_threads(os.cpu_count() or 1)
    base = load_base(get_preset("cpu", quantization="none"))
    jobs = make_jobs(base, rows)
    lengths = [len(prompt_ids(base, text)) for job in jobs for text in job.texts]
    print(f"prefix {len(base.token_ids(PREFIX))} tokens, prompts {min(lengths)} to {max(lengths)}")
    few = [job.first(LOOP_ROWS) for job in jobs]
    some = [job.first(BATCH) for job in jobs]
    speed, texts = timed("(a) cai_lite", lambda job: ours(base, job), jobs)
    loop, alone = timed("(b) one at a time", lambda job: one_at_a_time(base, job), few)
    batch, padded = timed("(c) batches of 16", lambda job: padded_batches(base, job), some)
    with _gguf() as path:
        server = start_llamacpp(path, max(lengths) + REVISION_TOKENS)
    warm = Job([""] * AT_ONCE, 1)
    timed(
        "    llama.cpp reads the prefix, not counted", lambda j: llamacpp(server, base, j), [warm]
    )
    other, _ = timed(
        "(d) llama.cpp's server, 32 at a time", lambda j: llamacpp(server, base, j), jobs
    )
    equal = [
        found[: len(t)] == t for few in (alone, padded) for found, t in zip(texts, few, strict=True)
    ]
    ratios = {"vs_loop": speed / loop, "vs_batch": speed / batch, "vs_llamacpp": speed / other}
    print(json.dumps({k: round(v, 2) for k, v in ratios.items()} | {"equal_texts": all(equal)}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
