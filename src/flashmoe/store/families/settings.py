"""A published config, read so that nothing in it is passed over.

Owns the reader in which every key is used, known to be harmless, or held to the one value that
this engine computes; also the keys that any family's config may carry. What a family's own keys
mean is the family's business.

Invariant: after :meth:`Settings.finish` every key of the config has been accounted for; one that
could change the maths in a way that is not implemented has raised an error that names it.

Source of the keys: transformers 5.23 ``configuration_utils.py`` (PreTrainedConfig, its legacy
arguments, GenerationConfig's defaults) and ``configuration_<family>.py``; for the published files
themselves, what Qwen, Mistral and HuggingFaceTB wrote with transformers 4.x.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from flashmoe.errors import CheckpointError

# Each group with the reason why it does not touch the logits of a given sequence of tokens.
_BOOKKEEPING = """architectures model_type transformers_version dtype torch_dtype _name_or_path
    name_or_path auto_map _commit_hash transformers.js_config tokenizer_class unsloth_version
    unsloth_fixed is_llama_config"""  # names of files, classes and versions
_EXECUTION = """use_cache output_hidden_states output_attentions output_router_logits return_dict
    torchscript chunk_size_feed_forward attn_implementation _attn_implementation
    _attn_implementation_autoset _attn_implementation_internal experts_implementation
    _experts_implementation _experts_implementation_internal tie_last_hidden_states tf_legacy_loss
    use_bfloat16 pretraining_tp mamba_ssm_dtype is_decoder"""  # how, not what, is computed
_TRAINING = """initializer_range attention_dropout router_aux_loss_coef router_jitter_noise
    gradient_checkpointing problem_type id2label label2id num_labels finetuning_task
    task_specific_params"""  # losses, noise and heads of training
_TOKENS = """bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix
    image_token_id video_token_id vision_start_token_id vision_end_token_id"""  # the text layer's
_GENERATION = """max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    epsilon_cutoff eta_cutoff encoder_repetition_penalty num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
    target_lookbehind"""  # sampling defaults of older files; generation_config.json has them now
_OTHER_NETWORKS = """vision_config mtp_num_hidden_layers mtp_use_dedicated_embeddings
    num_nextn_predict_layers language_model_only"""  # their tensors are skipped, by name

HARMLESS = frozenset(
    " ".join((_BOOKKEEPING, _EXECUTION, _TRAINING, _TOKENS, _GENERATION, _OTHER_NETWORKS)).split()
)

_FIXED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "per_layer_config": ({},),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_interleaved": (False,),
}
"""Keys of any family with the values that are computed here; null always counts as absent."""

_ROPE_HARMLESS = ("mrope_section", "mrope_interleaved")
"""They share out the frequencies between three positions, which are equal in text (SPEC 1.3)."""


class Settings:
    """One JSON object of a config; ``origin`` names it in errors. null counts as absent."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self.origin = origin
        self._values = {key: value for key, value in values.items() if value is not None}
        self._unread = dict.fromkeys(self._values)

    def refuse(self, key: str, problem: str) -> CheckpointError:
        """The error to raise about the value of a key."""
        value = reprlib.repr(self._values.get(key))
        return CheckpointError(f"{self.origin}: {key} is {value}; {problem}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value of a key, which now counts as read."""
        self._unread.pop(key, None)
        if key in self._values:
            return self._values[key]
        if default is None:
            raise CheckpointError(
                f"{self.origin} does not say {key}: take the config that was published with "
                "these weights"
            )
        return default

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without a default the key must be there."""
        value = self.get(key, default)
        if type(value) is not int:
            raise self.refuse(key, "it must be a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key, default)
        if type(value) not in (int, float) or abs(value) > 1e15 or not math.isfinite(value):
            raise self.refuse(key, "it must be a number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.refuse(key, "it must be true or false")
        return value

    def section(self, key: str) -> Settings:
        """A nested object; empty where the key is absent."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.refuse(key, "it must be an object")
        return Settings(value, f"{self.origin}: {key}")

    def fixed(self, key: str, *allowed: Any) -> None:
        """A key that may be absent, or have one of these values."""
        if key not in self._values:
            return
        value = self.get(key)
        if not any(value == known and type(value) is type(known) for known in allowed):
            only = " or ".join(repr(known) for known in allowed) or "absent or null"
            raise self.refuse(
                key,
                f"this changes the maths, and only {only} is implemented: convert another model",
            )

    def ignore(self, keys: Iterable[str]) -> None:
        """Keys that cannot change the logits."""
        for key in keys:
            self._unread.pop(key, None)

    def finish(self) -> None:
        """Account for the keys of any config, then refuse the first that is left.

        Raises:
            CheckpointError: a key is not known, or has a value that is not implemented.
        """
        self.ignore(HARMLESS)
        for key, allowed in _FIXED.items():
            if key in self._unread:
                self.fixed(key, *allowed)
        for key in self._unread:
            raise self.refuse(
                key,
                "this key is not known here and may change the maths; if it does not, remove it "
                "from the config, or else use a release that knows it",
            )


def read_quantization(settings: Settings, kind: str) -> None:
    """Account for the keys of quantisation: ``checkpoint`` has read MLX's; others are refused."""
    if kind == "mlx":
        settings.ignore(("quantization", "quantization_config"))
    else:
        settings.fixed("quantization_config")


def read_rope(
    settings: Settings, *, theta: float | None, factor: float, partial: bool
) -> tuple[float, float]:
    """The rotary base and the rotated share of a head, from any of the published forms.

    ``theta`` and ``factor`` are the family's own defaults. Where not ``partial`` the family
    always rotates whole heads.

    Raises:
        CheckpointError: a scaled kind of rotary embedding, or two different statements.
    """
    sections = [settings.section(key) for key in ("rope_parameters", "rope_scaling")]
    for section in sections:
        for key in ("rope_type", "type"):
            section.fixed(key, "default")
        section.ignore(_ROPE_HARMLESS)
    settings.ignore(_ROPE_HARMLESS)
    found_theta = _agreed("rope_theta", [*sections, settings], theta)
    found_factor = _agreed("partial_rotary_factor", [*sections, settings], factor)
    for section in sections:
        section.finish()
    if not partial and found_factor != 1.0:
        raise CheckpointError(
            f"{settings.origin}: partial_rotary_factor is {found_factor}; this family rotates "
            "whole heads, only 1.0 is implemented: convert another model"
        )
    return found_theta, found_factor


def _agreed(key: str, places: list[Settings], default: float | None) -> float:
    found = {place.number(key) for place in places if place.has(key)}
    if len(found) > 1:
        raise CheckpointError(
            f"{places[-1].origin} gives {key} as {' and as '.join(map(str, sorted(found)))}: "
            "leave the right one"
        )
    return found.pop() if found else places[-1].number(key, default)
