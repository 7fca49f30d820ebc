"""Supervised fine-tuning on any model and demonstrations: `align sft --model FOLDER --data demonstrations.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from align.data import read_examples, tokenize_examples
from align.logprobs import Policy
from align.sft import SFT
from recipes import inputs
from recipes.common import claim_directory, execute, make_accelerator, recipe, save_result, tell
from recipes.options import SFTOptions


def train(options: SFTOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    places = {"data": (options.data.data, options.data.split)}
    if options.held_out.eval_data is not None:
        places["eval_data"] = (options.held_out.eval_data, options.held_out.eval_split)
    rows = {name: read_examples(source, split=split) for name, (source, split) in places.items()}
    config = inputs.record(options, rows)
    accelerator = make_accelerator()
    directory = claim_directory(options.run, "sft", config, accelerator)
    say = partial(tell, options=options.run, accelerator=accelerator)

    tokenizer = inputs.make_tokenizer(options.model.model, trust_remote_code=options.model.trust_remote_code)
    limits = {"max_tokens": options.data.max_tokens, "too_long": options.data.too_long}
    examples = {name: tokenize_examples(each, tokenizer, **limits) for name, each in rows.items()}
    for does, (name, each) in zip(("learning from", "measuring on"), examples.items(), strict=False):
        lengths = [len(ids) for ids in each.ids]
        say(inputs.describe(f"{does} {places[name][0]}", lengths, each.dropped, "examples"))
    if examples["data"].split:
        say(f"{examples['data'].split:,} conversations became an example a turn: the chat template rewrites old turns")

    model = inputs.make_model(options.model, seed=options.sft.seed)
    inputs.check_fit(model, [ids for each in examples.values() for ids in each.ids])
    say(f"{options.model.model}: {inputs.count_parameters(model)}, on {accelerator.device}")
    say(f"run: {directory}")
    algorithm = SFT(Policy(model), examples["data"], options.sft, accelerator)
    held_out = examples.get("eval_data")
    result = execute(
        algorithm,
        directory,
        options.run,
        config=config,
        command=command,
        accelerator=accelerator,
        evaluate=(lambda: algorithm.evaluate(held_out)) if held_out else None,
    )
    if result.finished:
        save_result(model, tokenizer, result, options, accelerator)
        say(f"Model: {result.directory.final}")
        say(f"Go on with: align grpo --model {result.directory.final} --data prompts.jsonl --reward exact_answer")
    return result.exit_code


main = recipe("align sft", SFTOptions, train)

if __name__ == "__main__":
    main()
