"""A judge behind an endpoint that speaks OpenAI's API: vLLM, llama.cpp's server, hosted models.

It is asked which of two answers is better, in both orders. Its label is read off the
log-probabilities of "A" and "B"; where it gives neither a chance, there is no label. Whatever else
goes wrong is an error after a few tries, never a label.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from openai import OpenAI, OpenAIError
from pydantic import BaseModel, Field, ValidationError

from ..errors import InputError
from ..prompts import judge_chat
from ..records import Pair

ADDRESS, KEY, MODEL = "CAI_LITE_JUDGE_URL", "CAI_LITE_JUDGE_KEY", "CAI_LITE_JUDGE_MODEL"
_TRIES, _SECONDS, _AT_ONCE = 4, 60.0, 8
_LIKELIEST = 20  # tokens whose log-probabilities are asked for


class _Chance(BaseModel):
    token: str
    logprob: float = Field(le=0.001)


class _Place(BaseModel):
    top_logprobs: list[_Chance] = Field(min_length=1)


class _Logprobs(BaseModel):
    content: list[_Place] = Field(min_length=1)


class _Choice(BaseModel):
    logprobs: _Logprobs


class _Reply(BaseModel):
    """What is read of an answer: the chances of the first token."""

    choices: list[_Choice] = Field(min_length=1)


@dataclass(frozen=True)
class Endpoint:
    """A model at an address."""

    client: OpenAI
    model: str

    def judge(self, pairs: Sequence[Pair]) -> np.ndarray:
        """P(the answer shown first is better), (pairs, 2): A shown first, then B; nan for none.

        Raises InputError where the endpoint cannot be reached, refuses, or gives no
        log-probabilities.
        """
        asked = [
            judge_chat(pair.prompt, *shown)
            for pair in pairs
            for shown in ((pair.a, pair.b), (pair.b, pair.a))
        ]
        with ThreadPoolExecutor(_AT_ONCE) as requests:
            return np.array(list(requests.map(self._p_first, asked))).reshape(-1, 2)

    def _p_first(self, messages: list[dict[str, str]]) -> float:
        likeliest = self._reply(messages).choices[0].logprobs.content[0].top_logprobs
        chances = {letter: 0.0 for letter in "AB"}
        for one in likeliest:
            letter = one.token.strip(" (").rstrip(").")
            if letter in chances:
                chances[letter] += math.exp(one.logprob)
        total = sum(chances.values())
        return chances["A"] / total if total else math.nan

    def _reply(self, messages: list[dict[str, str]]) -> _Reply:
        try:
            raw = self.client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=messages,  # type: ignore[arg-type]
                max_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=_LIKELIEST,
            )
            return _Reply.model_validate_json(raw.text)
        except OpenAIError as error:
            raise self._refused(error) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "its body"
            raise InputError(
                f"the judge at {self.client.base_url} answered without what is read of it: "
                f"{where}: {first['msg']}; choose a server and a model that give "
                "log-probabilities (logprobs, top_logprobs)"
            ) from None

    def _refused(self, error: OpenAIError) -> InputError:
        return InputError(
            f"the judge at {self.client.base_url} failed {_TRIES} times or for good "
            f"({type(error).__name__}: {error}); see that it runs, and that {ADDRESS}, {KEY} and "
            f"{MODEL} are right; what was judged is kept"
        )


def endpoint_from_environment(seconds: float = _SECONDS) -> Endpoint:
    """The judge that three variables name: its address, its key if it wants one, and its model.

    Without a model the first one is taken that the endpoint lists. Raises InputError without an
    address, or where nothing answers there.
    """
    address = os.environ.get(ADDRESS, "")
    if not address:
        raise InputError(
            f"{ADDRESS} is not set; expected the address of an OpenAI-compatible server, such as "
            f"http://127.0.0.1:8000/v1 (and {KEY}, {MODEL})"
        )
    client = OpenAI(
        base_url=address,
        api_key=os.environ.get(KEY) or "none",
        timeout=seconds,
        max_retries=_TRIES - 1,
    )
    named = Endpoint(client, os.environ.get(MODEL, ""))
    return named if named.model else Endpoint(client, _first_model(named))


def _first_model(endpoint: Endpoint) -> str:
    try:
        return next(iter(endpoint.client.models.list().data)).id
    except OpenAIError as error:
        raise endpoint._refused(error) from None
    except (StopIteration, TypeError, AttributeError, ValueError):
        raise InputError(
            f"{endpoint.client.base_url} lists no models; name one in {MODEL}"
        ) from None
