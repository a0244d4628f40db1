"""Everything a person can tune of the main job, in one model: the rooms' own recipes, and what ties them together.

Paths and inputs are not in it: the demo knows where each of its rooms reads and writes. `seed` is the seed of every room.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from generators.engines.interface import SamplingRecipe
from generators.problems import TaskShare
from pipelines.curate import CurateRecipe
from pipelines.decontaminate import DecontaminateRecipe
from pipelines.dedup import DedupRecipe
from pipelines.recipe import Recipe
from training.pretrain import PretrainRecipe
from training.rl.train import RlRecipe
from training.sft import SftRecipe

Weight = Annotated[float, Field(ge=0)]


class HeldOut(Recipe):
    """What is set aside to measure with, before any mixture is made."""

    text_fraction: float = Field(0.06, gt=0, lt=1, description="of the deduplicated documents, by a hash of their ids")
    problems_per_task: int = Field(40, gt=0, description="candidates drawn per task; repeated questions leave")
    text_tokens: int = Field(40_000, gt=0, description="held-out tokens scored after each stage")
    max_tokens: int = Field(128, gt=0, description="of an answer")
    draws: int = Field(4, ge=0, description="answers sampled a problem at temperature 1, beside the greedy one")


class Problems(Recipe):
    """The tasks, and how many worked problems of each to train on."""

    tasks: tuple[TaskShare, ...] = Field(min_length=1, description="the tasks, each with its difficulty")
    count: int = Field(30_000, gt=0, description="worked problems to train on, over all tasks")


class Tokenizer(Recipe):
    """Byte-level BPE over the kept text and the problems."""

    vocab_size: int = Field(4096, ge=272)
    max_bytes: int = Field(4_000_000, gt=0, description="read of each dataset")


class MixtureShape(Recipe):
    """A mixture of the run's own datasets, by name."""

    tokens: int = Field(gt=0, description="at most; fewer when the datasets, repeated as allowed, hold less")
    sequence_length: int = Field(256, gt=1)
    batch_size: int = Field(16, gt=0, description="sequences a step")
    weights: dict[str, Weight] = Field(description="share of tokens per dataset: text, problems, generated")
    max_repetition: Annotated[float, Field(gt=0)] = 4.0
    validation: float = Field(0.03, ge=0, lt=1, description="documents kept for the held-out curve, by a hash of their ids")


class Generation(Recipe):
    """How the fine-tuned model writes new solutions."""

    count: int = Field(400, gt=0, description="new problems, over all tasks")
    samples: int = Field(2, gt=0, description="solutions a problem")
    max_accepted: int = Field(1, gt=0, description="kept a problem")
    sampling: SamplingRecipe = SamplingRecipe(temperature=0.8, max_tokens=128)
    problems_per_part: int = Field(128, gt=0)
    slots: int = Field(128, gt=0, description="sequences written at once")


class DemoRecipe(Recipe):
    """The main job."""

    crawl: str = Field("sample", description="`sample`, files, folder, glob, URI, or commoncrawl:...")
    seed: int = Field(0, ge=0, description="of everything random")
    curate: CurateRecipe = CurateRecipe()
    dedup: DedupRecipe = DedupRecipe()
    heldout: HeldOut = HeldOut()
    leaks: DecontaminateRecipe = Field(DecontaminateRecipe(coverage=0.1), description="training text that holds so much of a held-out document leaves")
    problems: Problems
    tokenizer: Tokenizer = Tokenizer()
    mixture: MixtureShape
    pretrain: PretrainRecipe = PretrainRecipe()
    sft: SftRecipe = SftRecipe()
    generate: Generation = Generation()
    continued_mixture: MixtureShape
    continued: PretrainRecipe = PretrainRecipe()
    rl: RlRecipe = RlRecipe()

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, values: Any) -> Any:
        """The rooms' seeds are the run's; a recipe that sets one of them otherwise is a contradiction."""
        if not isinstance(values, dict):
            return values
        seed = values.get("seed", 0)
        for room in ("pretrain", "sft", "continued", "rl"):
            own = values.get(room, {})
            if isinstance(own, dict):
                if own.get("seed", seed) != seed:
                    raise ValueError(f"{room}.seed differs from seed; set `seed` alone")
                values = {**values, room: {**own, "seed": seed}}
        return values
