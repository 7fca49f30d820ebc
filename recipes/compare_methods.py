"""SFT, DPO, KTO, PPO, RLOO and GRPO on the walk task, from the same warm-up with the same budget, over several seeds.

    python -m recipes.compare_methods --seeds 0 1 2 --directory runs/compare

The budget is one of trained tokens (`recipes/budget.py`). GRPO, RLOO and PPO sample what they learn from as they go;
DPO, KTO and SFT learn from answers of the warmed-up model, sampled once a seed. SFT is the control of DPO: it imitates
the chosen answers of the same pairs. Each run has the settings of its walk recipe and a directory of its own, such as
runs/compare/seed-0/grpo. At the end stand comparison.md and comparison.html.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from align.config import OptimizerConfig, SFTConfig
from align.data import read_examples, read_prompts, tokenize_examples, tokenize_prompts
from align.evaluate import evaluate
from align.models import load_model, load_tokenizer
from align.sft import SFT
from align.surrogates import kl_penalty, leave_one_out
from recipes import dpo_walk, grpo_walk, kto_walk, ppo_walk, walk
from recipes.answers_walk import REWARDS, Start, answers, sampler_of, write
from recipes.budget import Budgeted
from recipes.common import RunOptions, claim_directory, execute, make_accelerator, recipe, save_result
from recipes.comparison import HEAD, Outcome, outcome_of, rows, written
from recipes.comparison_page import print_table
from recipes.warm_up import warm_up

if TYPE_CHECKING:
    from accelerate import Accelerator

RLOO_KL_COEF = ppo_walk.PPO_DEFAULTS.token_rewards.kl_coef
SFT_OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=5, final_fraction=0.1)


@dataclass(frozen=True)
class Size:
    """How large a comparison is.

    budget: trained tokens of a run; GRPO's recipe takes about as many as the default.
    sft_steps: supervised steps of the warm-up.
    walks, samples: what the warmed-up model is asked for DPO, KTO and SFT: with the defaults DPO and KTO use up their
        budget in about one epoch.
    held_out: walks to measure on.
    steps: the most of a run, in those of its recipe: a bound for what learns from fewer and fewer tokens a step.
    """

    budget: int = 120_000
    sft_steps: int = 250
    walks: int = 4000
    samples: int = 8
    held_out: int = 512
    steps: float = 2.0


QUICK = Size(budget=4000, sft_steps=40, walks=150, held_out=64, steps=0.4)


@dataclass(frozen=True)
class Given:
    """What a seed's methods begin with: the warmed-up model, and what it answered."""

    warm: Path
    accelerator: Accelerator

    def start(self, rows: str = "") -> Start:
        """Load the start anew, with the rows of that name."""
        model, tokenizer = load_model(self.warm), load_tokenizer(self.warm)
        return Start.of(model, tokenizer, self.warm.parents[1] / rows, self.accelerator)


def sft(config: SFTConfig, given: Given) -> SFT:
    """Build the control: imitate what DPO prefers."""
    start = given.start("pairs.jsonl")
    pairs = [json.loads(line) for line in start.rows.read_text(encoding="utf-8").splitlines()]
    chosen = read_examples([{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs])
    return SFT(start.policy, tokenize_examples(chosen, start.tokenizer), config, start.accelerator)


def rloo(config: Any, given: Given) -> Any:
    """Build RLOO, which is GRPO with another baseline and a penalty taken off the reward."""
    penalty = kl_penalty(given.start().reference, given.accelerator, kl_coef=RLOO_KL_COEF)
    options = grpo_walk.Options(grpo=config)
    return grpo_walk.build(options, given.warm, given.accelerator, advantages=leave_one_out, penalty=penalty)[0]


@dataclass(frozen=True)
class Method:
    """A method: its name, what it does in words, the settings of its recipe, and what builds it from them.

    rows: the file of answers that it learns from; empty if it samples as it goes.
    parts: in words, what it is built of that its settings do not say.
    """

    name: str
    words: str
    config: Any
    build: Callable[[Any, Given], Any]
    rows: str = ""
    parts: str = ""


METHODS = {
    "sft": Method(
        "SFT",
        "the control of DPO: imitates the chosen answers of its pairs, which are right answers of the start itself",
        SFTConfig(steps=500, optimizer=SFT_OPTIMIZER),
        sft,
        "pairs.jsonl",
    ),
    "dpo": Method(
        "DPO",
        "prefers right to wrong answers of the start, and imitates the right ones too (sft_weight 1)",
        dpo_walk.DPO_DEFAULTS,
        lambda config, given: dpo_walk.build(config, given.start("pairs.jsonl")),
        "pairs.jsonl",
    ),
    "kto": Method(
        "KTO",
        "likes right and dislikes wrong answers of the start, without pairs",
        kto_walk.KTO_DEFAULTS,
        lambda config, given: kto_walk.build(config, given.start("feedback.jsonl")),
        "feedback.jsonl",
    ),
    "ppo": Method(
        "PPO",
        "samples as it goes, a value head for a baseline; learns twice from each token; KL in the reward",
        ppo_walk.PPO_DEFAULTS,
        lambda config, given: ppo_walk.build(ppo_walk.Options(ppo=config), given.warm, given.accelerator)[0],
    ),
    "rloo": Method(
        "RLOO",
        "samples as it goes, the others of a group for a baseline; KL in the reward; groups of one reward as in GRPO",
        grpo_walk.GRPO_DEFAULTS,
        rloo,
        parts=f"leave-one-out advantages, {RLOO_KL_COEF} * KL taken off the reward",
    ),
    "grpo": Method(
        "GRPO",
        "samples as it goes, advantages standardised within a group; groups of one reward cost no trained token",
        grpo_walk.GRPO_DEFAULTS,
        lambda config, given: grpo_walk.build(grpo_walk.Options(grpo=config), given.warm, given.accelerator)[0],
    ),
}


@dataclass(frozen=True)
class Options:
    """Compare methods on the walk task: the same start, the same budget of trained tokens, several seeds."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Each has its own model, warm-up and walks, shared by the methods."""
    methods: tuple[Literal["sft", "dpo", "kto", "ppo", "rloo", "grpo"], ...] = tuple(METHODS)  # pyright: ignore[reportAssignmentType]
    """What is compared."""
    directory: Path = Path("runs/compare")
    """Directory of all runs, of the table and of the picture."""
    resume: bool = False
    """Go on in the directory: finished runs are kept, a stopped one goes on from its checkpoint."""
    quick: bool = False
    """A small fraction of everything, to see that it works; its numbers mean nothing."""


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    accelerator = make_accelerator()
    if accelerator.num_processes > 1:
        raise ValueError("a comparison runs in one process: start it without torchrun")
    size = QUICK if options.quick else Size()
    runs = [Run(options, size, seed, METHODS[name]) for seed in options.seeds for name in options.methods]
    for one in runs:
        one.claim(accelerator)
    outcomes: list[Outcome] = []
    for one in runs:
        if code := one.prepare(command, accelerator) or one.learn(command, accelerator):
            return code
        outcomes.append(one.outcome())
        print(f"seed {one.seed}, {one.method.name}: {outcomes[-1].accuracy:.1%} right, {outcomes[-1].seconds:.0f} s")
    show(options, size, outcomes, command)
    return 0


@dataclass(frozen=True)
class Run:
    """One method on one seed, and where its files lie; the warm-up and the answers are shared by the seed's runs."""

    options: Options
    size: Size
    seed: int
    method: Method

    @property
    def place(self) -> Path:
        """The seed's directory."""
        return self.options.directory / f"seed-{self.seed}"

    @property
    def run(self) -> RunOptions:
        """How every run is run."""
        directory = self.place / self.method.name.lower()
        return RunOptions(directory=directory, resume=self.options.resume, evaluate_every=0, quiet=True)

    @property
    def config(self) -> dict[str, Any]:
        """What the run depends on."""
        steps = int(self.size.steps * self.method.config.steps)
        settings = replace(self.method.config, seed=self.seed, steps=steps)
        return {"method": self.method.name, "parts": self.method.parts, "size": asdict(self.size), "settings": settings}

    @property
    def shared(self) -> dict[str, Any]:
        """What the warm-up depends on."""
        return {"sft_steps": self.size.sft_steps, "seed": self.seed}

    @property
    def warm(self) -> Path:
        """The warmed-up model."""
        return self.place / "warm-up" / "final"

    def claim(self, accelerator: Accelerator) -> None:
        """Refuse a directory that holds other runs, before anything is run."""
        claim_directory(self.run, "compare_methods", self.config, accelerator)
        claim_directory(replace(self.run, directory=self.warm.parent), "compare_methods", self.shared, accelerator)

    def prepare(self, command: Sequence[str], accelerator: Accelerator) -> int:
        """Warm the seed's model up and let it answer, where that is not done, and return an exit code."""
        if not self.warm.exists():
            settings: dict[str, Any] = {"config": self.shared, "steps": self.size.sft_steps, "seed": self.seed}
            if code := warm_up(self.run, self.warm.parent, command, accelerator, **settings):
                return code
        cost = self.place / "answers.json"
        if self.method.rows and not cost.exists():
            started = time.perf_counter()
            sampler = sampler_of(load_model(self.warm).to(accelerator.device), load_tokenizer(self.warm))
            told = answers(sampler, walk.splits(self.seed, self.size.walks)[2], self.size.samples, self.seed)
            seconds = time.perf_counter() - started
            write(self.place / "pairs.jsonl", dpo_walk.pairs_of(told))
            write(self.place / "feedback.jsonl", kto_walk.feedback_of(told))
            generated = sum(answer.tokens for group in told for answer in group)
            write(cost, [{"generated": generated, "seconds": seconds}])  # the last, so that all are there with it
        return 0

    def learn(self, command: Sequence[str], accelerator: Accelerator) -> int:
        """Run the method until its budget is used, unless that is done, and return an exit code."""
        final = self.place / self.method.name.lower() / "final"
        if final.exists():
            return 0
        accelerator.free_memory()  # of the run before
        given = Given(self.warm, accelerator)
        algorithm, reference = self.method.build(self.config["settings"], given), given.start().reference
        model, tokenizer = algorithm.trainer.unwrapped.model, load_tokenizer(self.warm)
        held_out = walk.splits(self.seed, 0)[0][: self.size.held_out]
        prompts, sampler = tokenize_prompts(read_prompts(walk.tasks(held_out)), tokenizer), sampler_of(model, tokenizer)
        measures = {"kl/completion": kl_penalty(reference, accelerator, kl_coef=1.0)}

        def measure() -> dict[str, float]:
            told = evaluate(sampler, prompts, REWARDS, seed=self.seed, measures=measures, accelerator=accelerator)
            return told.metrics

        result = execute(
            Budgeted(algorithm, self.size.budget, measure),
            final.parent,
            self.run,
            config=self.config,
            command=command,
            accelerator=accelerator,
            evaluate=measure,
        )
        if result.finished:
            save_result(model, tokenizer, result, self.run, accelerator)
        return result.exit_code

    def outcome(self) -> Outcome:
        """Read what the run came to; the answers that it learned from are counted with it."""
        cost: dict[str, Any] = {"generated": 0, "seconds": 0.0}
        if self.method.rows:
            cost = json.loads((self.place / "answers.json").read_text(encoding="utf-8"))
        return outcome_of(self.place / self.method.name.lower(), self.method.name, self.seed, **cost)


def show(options: Options, size: Size, outcomes: Sequence[Outcome], command: Sequence[str]) -> None:
    """Write the comparison and print its table."""
    seeds = f"{'Means over seeds' if len(options.seeds) > 1 else 'Seed'} {', '.join(map(str, options.seeds))}"
    rule = (
        f"From the same warm-up, until {size.budget:,} tokens are trained: completion tokens whose log-probability the "
        "gradient went through, both answers of a pair, and a token again each time it is learned from. "
        f"{seeds}, ranked by accuracy on {size.held_out} held-out walks. Generated tokens and seconds include the "
        "answers sampled for SFT, DPO and KTO, all that were asked for; seconds leave out the warm-up and the "
        "evaluations."
    )
    standings = written(
        options.directory,
        outcomes,
        title="Six ways to learn a walk" if len(options.methods) == len(METHODS) else "Ways to learn a walk",
        rule=rule,
        words={method.name: method.words for method in METHODS.values()},
        command=shlex.join(word for word in command if word != "--resume"),
    )
    print_table(HEAD, rows(standings))
    for name in ("comparison.md", "comparison.html"):
        print(options.directory / name)


main = recipe("python -m recipes.compare_methods", Options, train)

if __name__ == "__main__":
    main()
