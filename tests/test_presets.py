"""Presets: valid, frozen, overridden with care, and chosen with a reason."""

import types

import pytest

from cai_lite.engine.models import choose_device
from cai_lite.errors import InputError
from cai_lite.presets import PRESETS, Preset, choose_preset, get_preset


def test_every_preset_is_valid_and_named_after_its_key() -> None:
    assert list(PRESETS) == ["ci", "cpu", "t4", "gpu"]
    for name, preset in PRESETS.items():
        assert preset.name == name and preset.quantization == "nf4"
        assert Preset.model_validate(preset.model_dump()) == preset
        assert preset.red_team_prompts <= 252  # what is shipped
        assert preset.eval_red_team <= 80 and preset.eval_helpful <= 80
        assert preset.eval_borderline <= 60 and preset.contrast_prompts <= 240
    assert not PRESETS["ci"].needs_cuda and not PRESETS["cpu"].needs_cuda
    assert PRESETS["t4"].needs_cuda and PRESETS["gpu"].needs_cuda


def test_every_preset_mixes_helpful_answers_in_and_tries_all_principles() -> None:
    for preset in PRESETS.values():
        assert 0.4 <= preset.helpful_share < 1 and preset.principles == 0
        assert preset.critique and not preset.few_shots


def test_beta_is_never_left_at_a_trainers_default_of_no_kl() -> None:
    assert all(preset.rl_beta > 0 for preset in PRESETS.values())


def test_the_rl_prompts_of_every_preset_exist() -> None:
    for preset in PRESETS.values():
        assert preset.rl_steps * preset.rl_prompts <= 480


def test_an_unknown_preset_is_told_the_known_ones() -> None:
    with pytest.raises(
        InputError, match="preset 'tpu' is unknown; expected auto, ci, cpu, t4, gpu"
    ):
        get_preset("tpu")


@pytest.mark.parametrize("field", ["rl_step", "name", "needs_Cuda"])
def test_an_unknown_field_is_told_the_known_ones(field: str) -> None:
    with pytest.raises(InputError) as error:
        get_preset("ci", **{field: 1})
    assert f"preset field {field!r} is unknown" in str(error.value)
    for known in ("rl_steps", "quantization", "eval_temperature"):
        assert known in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("quantization", "int8", "'nf4' or 'none'"),
        ("rl_steps", "0", "greater than or equal to 1"),
        ("rl_steps", "many", "valid integer"),
        ("rl_steps", "2.5", "valid integer"),
        ("rl_generations", 1, "greater than or equal to 2"),
        ("pm_eval_share", "1.0", "less than 1"),
        ("seed", "-1", "greater than or equal to 0"),
        ("labeller", "people", "'chain_of_thought' or 'mixed'"),
        ("sl_epochs", "nan", "finite"),
        ("helpful_share", "1", "less than 1"),
        ("helpful_share", "-0.1", "greater than or equal to 0"),
        ("principles", "-1", "greater than or equal to 0"),
        ("revision_layout", "chat", "'guided', 'dialogue' or 'completion'"),
        ("sl_rounds", "first", "'all' or 'last'"),
        ("rl_beta", "inf", "finite"),
    ],
)
def test_a_value_the_field_does_not_take_is_named(field: str, value: object, told: str) -> None:
    with pytest.raises(InputError) as error:
        get_preset("ci", **{field: value})
    assert f"preset field {field!r} is {value!r}" in str(error.value) and told in str(error.value)


def test_strings_from_the_command_line_become_the_fields_type() -> None:
    preset = get_preset(
        "ci", rl_steps="5", rl_beta="0.1", needs_cuda="true", quantization="none", seed="9"
    )
    assert (preset.rl_steps, preset.rl_beta, preset.needs_cuda) == (5, 0.1, True)
    assert preset.quantization == "none" and preset.seed == 9
    assert get_preset("ci", critique="false", principles="4").critique is False
    assert preset.rounds == PRESETS["ci"].rounds and PRESETS["ci"].rl_steps != 5


def test_a_preset_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        get_preset("ci").rl_steps = 5  # type: ignore[misc]


def gpu(monkeypatch: pytest.MonkeyPatch, gigabytes: float | None) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gigabytes is not None)
    found = types.SimpleNamespace(name="Card X", total_memory=int((gigabytes or 0) * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card X")


@pytest.mark.parametrize(
    ("gigabytes", "name", "told"),
    [
        (None, "cpu", "no CUDA device"),
        (8, "cpu", "too small"),
        (14.6, "t4", "Card X with 15 GB"),
        (23.7, "gpu", "Card X with 24 GB"),
        (80, "gpu", "7B"),
    ],
)
def test_auto_says_what_it_found_and_why(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float | None, name: str, told: str
) -> None:
    gpu(monkeypatch, gigabytes)
    chosen, why = choose_preset()
    assert chosen == name and told in why
    assert get_preset().name == name and get_preset("auto", seed=4).seed == 4


@pytest.mark.parametrize("name", ["t4", "gpu"])
def test_a_cuda_preset_without_cuda_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gpu(monkeypatch, None)
    with pytest.raises(InputError, match=f"preset '{name}' needs a CUDA device"):
        choose_device(get_preset(name))
    assert choose_device(get_preset("cpu"))[0].type == "cpu"


@pytest.mark.parametrize(("has", "dtype"), [(True, "torch.bfloat16"), (False, "torch.float16")])
def test_a_card_without_bfloat16_gets_float16(
    monkeypatch: pytest.MonkeyPatch, has: bool, dtype: str
) -> None:
    import torch

    gpu(monkeypatch, 16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    device, found, why = choose_device(get_preset("t4"))
    assert device.type == "cuda" and str(found) == dtype and "Card X" in why
