"""Steps over problems, tokens and models, shared by the jobs that have them. Each is a call of one room with its paths."""

from collections.abc import Mapping
from typing import Any

from flows.data_steps import dataset_step, file_step
from flows.demo_recipe import MixtureShape
from flows.fitting import fit_weights
from flows.steps import Run, Step, write_json
from generators.engines.interface import EngineRecipe
from generators.problems import PROBLEMS, ProblemsRecipe
from generators.run import GENERATE, GenerateRecipe
from model.chat import SPECIAL_TOKENS
from pipelines.dataset import Dataset
from pipelines.errors import UserError
from pipelines.mixture import Mixture, load_mixture, save_mixture
from pipelines.shards import estimate, tokenize
from pipelines.stage import run_stage
from pipelines.tokenizer import load_tokenizer, tokenizer_digest, train_tokenizer

# Streams of problems, kept apart by their seeds: to measure with, to train on, to write new solutions for.
HELD_OUT, TRAINED_ON, NEW = 1, 2, 3
STREAMS = 10


def problem_set(run: Run, stream: int, place: str, count: int, exclude: str | None) -> Dataset:
    """Draw a stream of problems into RUN/<place>, none of them a question of the dataset `exclude`."""
    recipe = ProblemsRecipe(tasks=run.recipe.problems.tasks, count=count, seed=STREAMS * run.recipe.seed + stream, exclude_ids_from=exclude)
    return run_stage(PROBLEMS, [exclude] if exclude else [], recipe, run.uri(place), cluster=run.cluster, progress=run.progress, name=place)


def problems(run: Run) -> dict[str, Any]:
    """The held-out problems first, then those to train on, then the questions for generation: disjoint by question."""
    tasks = len(run.recipe.problems.tasks)
    held = problem_set(run, HELD_OUT, "heldout/problems", run.recipe.heldout.problems_per_task * tasks, None)
    fresh = problem_set(run, NEW, "questions", run.recipe.generate.count, held.uri)
    made = problem_set(run, TRAINED_ON, "problems", run.recipe.problems.count, held.uri)
    return {"held out": held.rows, "to train on": made.rows, "new questions": fresh.rows}


def tokenizer(run: Run) -> dict[str, Any]:
    """Byte-level BPE over kept text and problems."""
    shape = run.recipe.tokenizer
    path = train_tokenizer(
        [run.uri("text"), run.uri("problems")],
        shape.vocab_size,
        run.path("tokenizer"),
        special_tokens=SPECIAL_TOKENS,
        max_bytes=shape.max_bytes,
        progress=run.progress,
    )
    made = load_tokenizer(path)
    figures = {"tokens": made.get_vocab_size(), "digest": tokenizer_digest(made)}
    write_json(run.path("tokenizer", "done.json"), figures)
    return {**figures, "digest": figures["digest"][:12]}


def mixture(run: Run, shape: MixtureShape, number: int, formats: Mapping[str, str]) -> dict[str, Any]:
    """Write mixture-<number>.yaml, its weights fitted to what there is, and its shards."""
    words = load_tokenizer(run.path("tokenizer"))
    held = {name: Dataset.open(run.uri(name)).rows for name, weight in shape.weights.items() if weight > 0}

    def written(weights: Mapping[str, float], tokens: int | str) -> Mixture:
        sources = [
            {"name": name, "dataset": run.uri(name), "weight": weight, "format": formats[name], "max_repetition": shape.max_repetition}
            for name, weight in weights.items()
        ]
        keys = {"sequence_length": shape.sequence_length, "batch_size": shape.batch_size, "validation": {"fraction": shape.validation}}
        return Mixture(name=f"mixture-{number}", tokens=tokens, seed=run.recipe.seed, sources=sources, **keys)

    supply = estimate(written({name: shape.weights[name] for name, rows in held.items() if rows}, "all"), words)
    most = {name: shape.max_repetition * entry.tokens for name, entry in supply.items()}
    fitted = fit_weights({name: shape.weights[name] for name in most}, most, shape.tokens, shape.sequence_length)
    if not fitted:
        raise UserError(f"mixture {number}: {', '.join(held)} hold too little to train on ({sum(most.values()):,.0f} tokens with repetitions)")
    path = save_mixture(written(fitted, sum(fitted.values())), run.path(f"mixture-{number}.yaml"))
    shards = tokenize(load_mixture(path), run.path("tokenizer"), run.uri(f"shards-{number}"), cluster=run.cluster, progress=run.progress)
    write_json(run.path(f"shards-{number}", "asked.json"), {"weights": shape.weights, "tokens": shape.tokens, "fitted": fitted})
    return {"tokens planned": shards.plan.tokens, "steps": shards.plan.steps, "digest": shards.manifest["dataset_digest"][:12]}


def trained(result: Any) -> dict[str, Any]:
    """A training run's figures for the run's record."""
    return {"steps": result.steps, "tokens": result.tokens}


def pretrain(run: Run) -> dict[str, Any]:
    """The first mixture under the recipe's precision."""
    from training.pretrain import pretrain as work

    return trained(work(run.recipe.pretrain.model_copy(update={"shards": run.uri("shards-1")}), run.uri("pretrain"), run.progress))


def sft(run: Run) -> dict[str, Any]:
    """Fine-tune the pretrained model on worked problems as conversations."""
    from training.sft import sft as work

    chosen = run.recipe.sft.model_copy(update={"init_from": run.uri("pretrain", "model"), "datasets": [run.uri("problems")]})
    return trained(work(chosen, run.uri("sft"), run.progress))


def generate(run: Run) -> dict[str, Any]:
    """The fine-tuned model solves new questions; what its checker accepts is kept.

    It runs in this process (all cores on one model) and not on the cluster, whose workers would each load the model.
    """
    shape = run.recipe.generate
    engine = EngineRecipe(kind="local", model=run.uri("sft", "model"), name="sft", slots=shape.slots)
    recipe = GenerateRecipe(
        engine=engine,
        sampling=shape.sampling,
        samples=shape.samples,
        max_accepted=shape.max_accepted,
        problems_per_part=shape.problems_per_part,
        seed=run.recipe.seed,
    )
    dataset = run_stage(GENERATE, [run.uri("questions")], recipe, run.uri("generated"), progress=run.progress, name="generated")
    return {"written": dataset.rows_in, "accepted": dataset.rows, "share": round(dataset.rows / max(1, dataset.rows_in), 4), "digest": dataset.digest[:12]}


def continued(run: Run) -> dict[str, Any]:
    """Train the fine-tuned model on, from the second mixture."""
    from training.pretrain import pretrain as work

    chosen = run.recipe.continued.model_copy(update={"shards": run.uri("shards-2"), "init_from": run.uri("sft", "model")})
    return trained(work(chosen, run.uri("continued"), run.progress))


def rl(run: Run) -> dict[str, Any]:
    """GRPO on verifiable tasks, from the continued model."""
    from training.rl.train import rl as work

    return trained(
        work(
            run.recipe.rl.model_copy(update={"init_from": run.uri("continued", "model"), "exclude_ids_from": run.uri("heldout/problems")}),
            run.uri("rl"),
            run.progress,
        )
    )


def evaluation(stage: str, problems: bool = True) -> Step:
    """The step that measures RUN/<stage>/model on held-out text and problems and writes eval/<stage>.json."""

    def measure(run: Run) -> dict[str, Any]:
        from training.evaluate import ProblemSuite, TextSuite, evaluate

        held, seq = run.recipe.heldout, run.recipe.mixture.sequence_length
        suites: list[Any] = [TextSuite(name="text", documents=run.uri("heldout/text"), sequence_length=seq, max_tokens=held.text_tokens)]
        if problems:
            suites.append(ProblemSuite(name="problems", problems=run.uri("heldout/problems"), max_tokens=held.max_tokens, samples=4, draws=held.draws))
        figures = evaluate(run.uri(stage, "model"), suites, progress=run.progress)
        write_json(run.path("eval", f"{stage}.json"), figures)
        shown = {"held-out nats a token": round(figures["text"]["nats_per_token"], 4)}
        return shown | ({key: round(figures["problems"][key], 4) for key in ("accuracy", "sampled_accuracy") if key in figures["problems"]} if problems else {})

    return file_step(f"evaluate {stage}", measure, "eval", f"{stage}.json")


def untrained(run: Run) -> dict[str, Any]:
    """The model as it is drawn from the seed: what all that follows is compared with."""
    from training.pretrain import PretrainRecipe
    from training.setup import fresh_model, save_model_folder

    recipe: PretrainRecipe = run.recipe.pretrain
    words = load_tokenizer(run.path("tokenizer"))
    lm = fresh_model(recipe.model, words.get_vocab_size(), recipe.seed)
    save_model_folder(lm, words, run.path("untrained", "model"))
    count = sum(parameter.numel() for parameter in lm.parameters())
    write_json(run.path("untrained", "done.json"), {"parameters": count})
    return {"parameters": count}


PROBLEM_SETS = dataset_step("problems", problems)
TOKENIZER = file_step("tokenizer", tokenizer, "tokenizer", "done.json")
UNTRAINED = file_step("untrained", untrained, "untrained", "done.json")
PRETRAIN = file_step("pretrain", pretrain, "pretrain", "done.json")
SFT = file_step("sft", sft, "sft", "done.json")
GENERATED = Step(name="generate", run=generate, done=lambda run: Dataset.exists(run.uri("generated")))
CONTINUED = file_step("continued", continued, "continued", "done.json")
RL = file_step("rl", rl, "rl", "done.json")


def mixture_step(number: int, formats: Mapping[str, str]) -> Step:
    """The step that makes mixture and shards `number`."""

    def work(run: Run) -> dict[str, Any]:
        shape = run.recipe.mixture if number == 1 else run.recipe.continued_mixture
        return mixture(run, shape, number, formats)

    return Step(name=f"mixture {number}", run=work, done=lambda run: run.path(f"shards-{number}", "manifest.json").is_file(), spreads=True)
