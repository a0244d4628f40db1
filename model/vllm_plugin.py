"""Our checkpoints in vLLM, on machines without a GPU too.

vLLM has the NemotronH architecture, and reads our folders as they are. On CPU it refuses one part of it: its fused expert layer wants gated experts there,
and Nemotron's are ungated (relu²). This plugin, which vLLM finds by its entry point (`vllm.general_plugins`), supplies that layer from our own kernels; on
other devices it changes nothing. Nothing here is imported unless vLLM asks for it.

Written for vLLM 0.32. Shapes: T tokens, E experts, K choices a token, M inner width, L width experts read and write (the latent, if there is one).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kernels.experts import experts

_NAME = re.compile(r"^(\d+)\.(up_proj|down_proj)\.weight$")


def register() -> None:
    """vLLM calls this in each of its processes before it builds a model."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.model_executor.models import nemotron_h

        nemotron_h.FusedMoEFactory = UngatedExperts
        _let_modules_be_searched()


def _let_modules_be_searched() -> None:
    """vLLM looks through the `__dict__` of everything in every module; numba's llvmlite answers for any attribute, that one too, with a C function."""
    from llvmlite.binding import ffi

    answer = type(ffi.lib).__getattr__

    def guarded(self: object, name: str) -> object:
        if name == "__dict__":
            raise AttributeError(name)
        return answer(self, name)

    type(ffi.lib).__getattr__ = guarded


class UngatedExperts(nn.Module):
    """Stands where vLLM's `FusedMoEFactory(...)` does in its NemotronH: routed experts, latent projections and the shared expert.

    Raises ValueError for what it has no code for: tensor parallelism, quantization, expert groups, other activations."""

    def __init__(self, *, shared_experts: nn.Module | None, num_experts: int, top_k: int, hidden_size: int, intermediate_size: int, renormalize: bool,
                 e_score_correction_bias: Tensor, routed_scaling_factor: float, routed_input_transform: nn.Module | None,
                 routed_output_transform: nn.Module | None, activation: str, scoring_func: str, num_expert_group: int, topk_group: int,
                 quant_config: object = None, enable_eplb: bool = False, is_sequence_parallel: bool = False, **layout: object) -> None:
        from vllm.distributed import get_tensor_model_parallel_world_size

        super().__init__()
        wrong = [f"{name}={value!r}" for name, value, wanted in (
            ("tensor_parallel_size", get_tensor_model_parallel_world_size(), 1), ("quantization", quant_config, None), ("enable_eplb", enable_eplb, False),
            ("is_sequence_parallel", is_sequence_parallel, False), ("scoring_func", scoring_func, "sigmoid"), ("num_expert_group", num_expert_group, 1),
            ("topk_group", topk_group, 1)) if value != wanted]
        if not activation.startswith("relu2"):
            wrong.append(f"activation={activation!r}")
        if wrong:
            raise ValueError(f"ungated experts on CPU do not support {', '.join(wrong)}")
        self.top_k, self.renormalize, self.scale = top_k, renormalize, routed_scaling_factor
        self.up_proj = nn.Parameter(torch.empty(num_experts, intermediate_size, hidden_size), requires_grad=False)
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size), requires_grad=False)
        # the parent owns these modules and loads their weights; a tuple keeps them from being registered twice
        self._parents = (shared_experts, routed_input_transform, routed_output_transform, e_score_correction_bias)

    def forward(self, hidden_states: Tensor, router_logits: Tensor) -> Tensor:
        shared, narrow, widen, bias_E = self._parents
        scores_TE = torch.sigmoid(router_logits.float())
        index_TK = torch.topk(scores_TE + bias_E, self.top_k, dim=-1, sorted=False)[1]
        weight_TK = scores_TE.gather(1, index_TK)
        if self.renormalize:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        x_TL = hidden_states if narrow is None else narrow(hidden_states)[0]
        y_TL = torch.ops.gristmill.ungated_experts(x_TL, self.up_proj, self.down_proj, index_TK, weight_TK * self.scale)
        y = y_TL if widen is None else widen(y_TL)[0]
        return y if shared is None else y + shared(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Put each expert's matrices (`3.up_proj.weight`) into its row. Returns the parameters filled, as vLLM's loader wants."""
        filled = set()
        for name, tensor in weights:
            found = _NAME.match(name)
            if not found:
                raise ValueError(f"{name} is no expert's weight")
            self.get_parameter(found[2]).data[int(found[1])].copy_(tensor)
            filled.add(found[2])
        return filled


@torch.library.custom_op("gristmill::ungated_experts", mutates_args=())
def _ungated_experts(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """One opaque step to torch.compile, whose graphs cannot hold a loop over the experts that were chosen."""
    return experts(x_TL, up_EML, down_ELM, index_TK, weight_TK)


@_ungated_experts.register_fake
def _(x_TL: Tensor, up_EML: Tensor, down_ELM: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    return torch.empty_like(x_TL)
