"""A cut CPM-Ant for Hugging Face's `transformers`: its weights as they are, its divisors from its config.

`AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)` runs this file; it and the four it imports
are the same for every model. Letters in shapes: B batch, P positions of the prompt, T of the text, D width, V tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# All four are imported here: releases before 5 copy nothing else beside this file.
from .blocks import build
from .config import ModelConfig
from .model import CPMAnt
from .modules import visible_pairs

IGNORED = -100
# Later releases of transformers call the past keys and values `cache`.
PAST = next(name for name in ("cache", "past_key_values") if name in CausalLMOutputWithPast.__dataclass_fields__)


class SprunecConfig(PretrainedConfig):
    """The model's shape in `cpm_ant`, with its constants; what stands in front of a text in `task` and `segment`.

    Args:
        cpm_ant: CPM-Live's keys, what differs by layer, and the divisors.
        task: the kind of prompt.
        segment: the segment of the text; the prompt's is 0.
    """

    model_type = "sprunec-cpm-ant"

    def __init__(self, cpm_ant: dict[str, Any] | None = None, task: int = 2, segment: int = 2, **kwargs: Any) -> None:
        self.cpm_ant = dict(cpm_ant or {})
        self.task, self.segment = task, segment
        if cpm_ant:
            self.vocab_size, self.hidden_size = cpm_ant["vocab_size"], cpm_ant["dim_model"]
            self.num_hidden_layers, self.num_attention_heads = cpm_ant["num_layers"], cpm_ant["num_heads"]
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            kwargs.pop(key, None)
        self.use_cache = bool(kwargs.pop("use_cache", True))
        super().__init__(**{"tie_word_embeddings": False, "pad_token_id": 0} | kwargs)


class SprunecForCausalLM(PreTrainedModel, GenerationMixin):
    """CPM-Ant behind its prompt, with any sublayer absent and any widths.

    What is given is context: it is seen from anywhere. What is generated sees all before it and is seen from behind.
    """

    config_class = SprunecConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: SprunecConfig) -> None:
        super().__init__(config)
        shape = ModelConfig.from_dict(config.cpm_ant)
        self.model: CPMAnt = build(shape)
        # The heads' columns of the bias table are not kept as buffers: loading makes new ones, without their values.
        self.columns = [layer.kept_heads for layer in shape.layers]
        blocks: list[Any] = list(self.model.encoder.layers)
        for layer in blocks:
            if layer.self_att is not None:
                layer.self_att.self_attention.kept_heads = None
        attends = [layer.self_att is not None for layer in blocks]
        # A cache counts the layers that attend: its length is that of the first.
        self.cache_places = [sum(attends[:index]) if own else None for index, own in enumerate(attends)]
        self.gradient_checkpointing = False  # `gradient_checkpointing_enable` sets it
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Start as the family does: embeddings and a head of its own of std 0.02, matrices and the bias of std 1."""
        for name, parameter in module.named_parameters(recurse=False):
            if name == "relative_attention_bias" or parameter.dim() > 1:
                std = 0.02 if hasattr(module, "project") or module is self.model.lm_head else 1.0
                torch.nn.init.normal_(parameter, 0.0, std)

    def get_input_embeddings(self) -> Any:
        return self.model.input_embedding

    def set_input_embeddings(self, value: Any) -> None:
        self.model.input_embedding = value

    def get_output_embeddings(self) -> Any:
        """Give the head; None where it is the embedding."""
        return self.model.lm_head

    def set_output_embeddings(self, value: Any) -> None:
        self.model.lm_head = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Give the embedding, where it has this many tokens; raises ValueError for another number."""
        count = self.config.vocab_size
        if new_num_tokens not in (None, count):
            raise ValueError(
                f"this model has {count} tokens and cannot have {new_num_tokens}: its vocabulary is that of the model "
                "that it was cut from; add tokens to that one"
            )
        return self.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        context: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run all positions, or with `past_key_values`, by either of its names, those that it lacks.

        Args:
            input_ids: (B, T) tokens, with a past too: all so far, not the new ones only.
            attention_mask: (B, T); 0 for padding on either side. None: 0 where the token is `pad_token_id`.
            context: (B, T) bool; which tokens may be seen from anywhere. None: all of them but those that have a label
                and those behind a past.
            labels: (B, T) tokens, -100 where none is asked for; each is predicted from the position before it.
            use_cache: None: as the config says, but for what has labels. Never while training recomputes activations,
                unless a past is given; what has one is not recomputed.
            logits_to_keep: how many of the last positions get logits; 0: all.

        Returns:
            logits (B, T or new, V), without the prompt's.
        """
        keep = self.config.return_dict if return_dict is None else return_dict
        hidden_wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        past_key_values = past_key_values if cache is None else cache
        cached = self.config.use_cache and labels is None if use_cache is None else use_cache
        cached = cached and (past_key_values is not None or not (self.gradient_checkpointing and self.training))
        past = DynamicCache() if cached and past_key_values is None else past_key_values
        begin = 0 if past is None else int(past.get_seq_length())
        context = self._context(input_ids, context, labels, begin)
        hidden, states = self._run(input_ids, self._mask(input_ids, attention_mask), context, past, begin)
        start = self.model.prompt_length if begin == 0 else 0
        hidden = hidden[:, start:]
        logits = self.model.project(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None if labels is None else self._loss(logits, labels)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=tuple(state[:, start:] for state in states) if hidden_wanted else None,
            **{PAST: past if cached else None},
        )
        return output if keep else output.to_tuple()

    def _run(self, tokens: Tensor, mask: Tensor, context: Tensor, past: Any, begin: int) -> tuple[Tensor, list[Tensor]]:
        """Go through all layers from position `begin` on: hidden states (B, Q, D), and those before every layer."""
        model = self.model
        ids, segment, context = model.behind_prompt(tokens, self.config.task, self.config.segment, context)
        hidden = model.embed(ids, segment)[:, begin:]
        valid = F.pad(mask, (model.prompt_length, 0), value=True)
        visible = visible_pairs(context, torch.zeros_like(segment), valid)[:, begin:]
        bias = model.attention_bias(segment[:, begin:], segment, visible)
        selected: dict[tuple[int, ...] | None, Tensor] = {None: bias}
        states = [hidden]
        for layer, place, kept in zip(model.encoder.layers, self.cache_places, self.columns, strict=True):
            if kept not in selected and kept is not None:
                selected[kept] = bias.index_select(1, torch.tensor(kept, device=bias.device))
            hidden = self._layer(layer, hidden, selected[kept], past, place)
            states.append(hidden)
        hidden = model.encoder.output_layernorm(hidden)
        return hidden, [*states[:-1], hidden]

    def _layer(self, layer: Any, hidden: Tensor, bias: Tensor, past: Any, place: int | None) -> Tensor:
        if past is None and self.gradient_checkpointing and self.training:
            recomputed: Tensor = self._gradient_checkpointing_func(layer.__call__, hidden, bias)
            return recomputed
        if past is None or place is None or layer.self_att is None:
            out: Tensor = layer(hidden, bias)
            return out
        attention, normed = layer.self_att.self_attention, layer.self_att.layernorm_before_attention(hidden)
        key, value = past.update(*attention.keys_values(normed), place)
        hidden = hidden + attention.attend(normed, bias, key, value)
        mixed: Tensor = layer.ffn(hidden) if layer.ffn is not None else hidden
        return mixed

    def _mask(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            return mask.bool()
        pad = self.config.pad_token_id
        return torch.ones_like(tokens, dtype=torch.bool) if pad is None else tokens != pad

    def _context(self, tokens: Tensor, context: Tensor | None, labels: Tensor | None, begin: int) -> Tensor:
        if context is not None:
            return context.bool()
        found = torch.ones_like(tokens, dtype=torch.bool) if labels is None else labels == IGNORED
        if begin:
            found[:, begin - self.model.prompt_length :] = False
        return found

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Take the mean over the labels, each against the logits of the position before it."""
        before = logits[:, :-1].flatten(0, 1).float()
        return F.cross_entropy(before, labels[:, 1:].flatten().long(), ignore_index=IGNORED)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Give all tokens at every step: the prompt and the segments come from them."""
        names = ("attention_mask", "context", "past_key_values", "cache", "use_cache", "logits_to_keep")
        return {"input_ids": input_ids} | {name: kwargs[name] for name in names if kwargs.get(name) is not None}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        """Leave what has been generated out of the context."""
        context = model_kwargs.get("context")
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        if context is not None:
            updated["context"] = F.pad(context, (0, kwargs.get("num_new_tokens", 1)), value=False)
        return updated

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Write as everywhere in `transformers`; `context` (B, T) bool: which tokens are seen from anywhere."""
        tokens = inputs if inputs is not None else kwargs.get("input_ids")
        if tokens is not None and kwargs.get("context") is None:
            kwargs["context"] = torch.ones_like(tokens, dtype=torch.bool)
        return super().generate(inputs, *args, **kwargs)
