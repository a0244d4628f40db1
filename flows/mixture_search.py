"""`gristmill mix --search`: small training runs that propose a mixture's weights, and larger ones that put the proposal to the test.

    <out>/shards/             the sources, tokenized once; every run reads them by a plan of its own
    <out>/proxies/000/...     a run a sampled mixture: its mixture.yaml, its model, loss.json with the held-out losses
    <out>/confirm/...         two longer runs a seed, even weights and proposed ones, on other seeds than the proxies'
    <out>/search.json mixture.yaml search.svg   what came of it; the mixture with the proposed weights; predicted against measured

Running the same line again goes on where it was: finished runs are not run again, and more proxies add to those there are.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pipelines.atomic import write_file
from pipelines.cluster import Cluster
from pipelines.errors import UserError
from pipelines.loader import TokenStream
from pipelines.mixture import Mixture, save_mixture
from pipelines.mixture.search import fit_losses, propose, rank_correlation, sample_mixtures
from pipelines.progress import Progress, ProgressEvent, silent
from pipelines.recipe import Recipe, digest_of
from pipelines.shards import tokenize
from pipelines.shardset import ShardSet

# The demo's tiny model is a hybrid with experts; ranking mixtures needs neither, and a proxy should take seconds.
PROXY_MODEL = {"pattern": "M-*-", "hidden_size": 96, "intermediate_size": 256, "mtp_depth": 0}


class SearchRecipe(Recipe):
    """What the search spends."""

    proxies: int = Field(16, ge=4, description="small runs, each on a sampled mixture")
    proxy_steps: int = Field(80, gt=0, description="steps of a small run")
    confirm_steps: int = Field(240, gt=0, description="steps of a confirming run")
    confirm_seeds: int = Field(2, gt=0, description="confirming runs of each mixture")
    concentration: float = Field(1.0, gt=0, description="of the Dirichlet distribution mixtures are drawn from, around even weights; 1: anywhere")
    targets: dict[str, float] = Field({}, description="held-out sets that count, by source, with weights; default: all alike")
    eval_tokens: int = Field(32_768, gt=0, description="held-out tokens scored a source")
    model: dict[str, Any] = Field(PROXY_MODEL, description="changes to the tiny model")
    precision: Literal["nvfp4", "bf16", "fp32"] = Field("fp32", description="of the proxies")
    lr: float = Field(4e-3, gt=0, description="peak learning rate of the proxies")
    seed: int = Field(0, ge=0, description="of the sampled mixtures and of the models")


def search(mixture: Mixture, tokenizer: str, out: str, recipe: SearchRecipe, cluster: Cluster | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Propose weights for a mixture without phases, and compare them with even weights.

    Raises:
        UserError: the mixture has phases or no held-out documents, a target is no source, or a source has too little for the runs.
    """
    names = [source.name for source in mixture.datasets()]
    if mixture.phases or not mixture.validation.fraction or len(names) < 2:
        raise UserError(f"{mixture.name}: a search needs two sources or more, validation.fraction above 0 and no phases")
    if unknown := sorted(set(recipe.targets) - set(names)):
        raise UserError(f"no source {unknown[0]!r} to score; there are {', '.join(names)}")
    even = np.full(len(names), 1 / len(names))
    batch = mixture.batch_size * mixture.sequence_length
    loose = mixture.flat().model_copy(update={"rounding": 1e9})
    shards = tokenize(weighed(loose, even, "all"), tokenizer, f"{out}/shards", cluster, progress)
    held = [name for name in names if shards.shards(name, "validation")]
    targets = np.array([recipe.targets.get(name, 0.0) if recipe.targets else 1.0 for name in held])
    if not targets.sum():
        raise UserError(f"{mixture.name}: none of the sources that count has held-out documents")
    most = np.array([mixture.source(name).max_repetition * shards.tokens[name] for name in names]) * 0.98  # whole windows take a little more
    drawn = sample_mixtures(even, recipe.proxies, recipe.concentration, recipe.seed)
    weights = [_within(row, most / (recipe.proxy_steps * batch)) for row in drawn]
    losses = []
    for number, row in enumerate(weights):
        run = f"{out}/proxies/{number:03d}"
        losses.append(_losses(weighed(loose, row, recipe.proxy_steps * batch), shards, run, recipe, recipe.seed, held))
        progress(ProgressEvent("mixture search", number + 1, len(weights), "proxies", f"{np.dot(losses[-1], targets) / targets.sum():.4f} nats a token"))
    fit = fit_losses(np.stack(weights), np.array(losses))
    most_confirm = most / (recipe.confirm_steps * batch)
    proposed = propose(fit, even, targets, most_confirm, recipe.seed)
    confirmed: dict[str, list[list[float]]] = {"uniform": [], "proposed": []}
    for seed in range(recipe.confirm_seeds):
        for name, row in (("uniform", _within(even, most_confirm)), ("proposed", proposed)):
            run = f"{out}/confirm/{name}-{digest_of(row.tolist())[:8]}-{seed}"  # more proxies may propose something else
            confirmed[name].append(_losses(weighed(loose, row, recipe.confirm_steps * batch), shards, run, recipe, recipe.seed + 1 + seed, held))
        progress(ProgressEvent("mixture search", seed + 1, recipe.confirm_seeds, "confirming pairs"))
    score = lambda rows: (np.array(rows) @ targets / targets.sum()).tolist()
    found = {
        "sources": names,
        "held_out": held,
        "targets": targets.tolist(),
        "proposed": dict(zip(names, proposed.round(4).tolist(), strict=True)),
        "left_out_rank_correlation": rank_correlation(np.array(score(losses)), np.array(score(fit.left_out))),
        "ridge": fit.ridge,
        "proxies": [{"weights": row.tolist(), "losses": loss} for row, loss in zip(weights, losses, strict=True)],
        "predicted": score(fit.left_out),
        "measured": score(losses),
        "confirmed": {name: {"mean": score(rows), "losses": rows} for name, rows in confirmed.items()},
    }
    write_file(f"{out}/search.json", json.dumps(found, indent=1))
    write_file(f"{out}/search.svg", plot(found))
    save_mixture(weighed(mixture.flat(), proposed, mixture.tokens), f"{out}/mixture.yaml")
    return found


def weighed(mixture: Mixture, weights: np.ndarray, tokens: int | str) -> Mixture:
    """The mixture with other weights and another length."""
    sources = [source.model_copy(update={"weight": float(weight)}) for source, weight in zip(mixture.sources, weights, strict=True)]
    return mixture.model_copy(update={"sources": tuple(sources), "tokens": tokens})


def _within(weights: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Weights cut down to what the sources can give; the others take the place."""
    if most.sum() < 1:
        raise UserError(f"the sources hold {most.sum():.0%} of the tokens the runs need, repetitions included; lower the steps or raise max_repetition")
    weights = weights.copy()
    for _ in weights:
        full = weights >= most
        weights = np.where(full, most, weights)
        if full.all() or abs(weights.sum() - 1) < 1e-12:
            break
        weights = np.where(full, weights, weights * (1 - weights[full].sum()) / weights[~full].sum())
    return weights / weights.sum()


def _losses(mixture: Mixture, shards: ShardSet, run: str, recipe: SearchRecipe, seed: int, held: list[str]) -> list[float]:
    """Held-out nats a token per source of `held`, after training on a mixture; noted in the run's folder."""
    from training.evaluate import stream_text_loss
    from training.pretrain import PretrainRecipe, pretrain
    from training.setup import ModelSpec, OptimizerSpec, load_model

    noted = Path(run) / "loss.json"
    save_mixture(mixture, f"{run}/mixture.yaml")
    spec = PretrainRecipe(
        shards=shards.uri, mixture=f"{run}/mixture.yaml", model=ModelSpec(size="tiny", overrides=recipe.model), precision=recipe.precision,
        optimizer=OptimizerSpec(lr=recipe.lr), mtp_weight=0.0, checkpoint_every=0, seed=seed,
    )
    result = pretrain(spec, f"{run}/run")
    identity = {"plan": TokenStream(shards, mixture=mixture).plan.digest, "eval_tokens": recipe.eval_tokens, "held_out": held}
    if noted.is_file() and (known := json.loads(noted.read_text()))["identity"] == identity:
        return known["losses"]
    lm, tokenizer = load_model(result.model_path)
    streams = [TokenStream(shards, split="validation", sources=[name]) for name in held]
    losses = [stream_text_loss(lm, stream, tokenizer, recipe.eval_tokens)["nats_per_token"] for stream in streams]
    write_file(str(noted), json.dumps({"identity": identity, "losses": losses}))
    return losses


def plot(found: dict[str, Any]) -> str:
    """Predicted (by fits that had not seen the run) against measured loss of every proxy, as SVG."""
    import altair as alt
    import vl_convert

    points = [{"measured": m, "predicted": p} for m, p in zip(found["measured"], found["predicted"], strict=True)]
    low, high = (bound(found["measured"] + found["predicted"]) for bound in (min, max))
    scale = alt.Scale(domain=[low, high], zero=False, nice=False)
    dots = alt.Chart(alt.Data(values=points)).mark_circle(size=50).encode(
        x=alt.X("measured:Q", scale=scale, title="measured, held-out nats a token"), y=alt.Y("predicted:Q", scale=scale, title="predicted, run left out")
    )
    line = alt.Chart(alt.Data(values=[{"measured": v, "predicted": v} for v in (low, high)])).mark_line(color="#888").encode(x="measured:Q", y="predicted:Q")
    title = f"{len(points)} proxies, rank correlation {found['left_out_rank_correlation']:.2f}"
    return vl_convert.vegalite_to_svg((line + dots).properties(width=320, height=320, title=title).to_dict())
