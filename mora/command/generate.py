"""Answers of a model to prompts. A prompt goes in unchanged: a run knows the form that it was trained on."""

from __future__ import annotations

import argparse

from mora.config.arguments import amount, device, positive_int, seed
from mora.errors import ConfigError, ModelError, ends_in_one_line
from mora.models.known import named, refused

from . import trained


def parse(arguments: list[str] | None = None, prog: str = "mora generate") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "run", help="a run's id or folder, an adapter's or checkpoint's folder, a hub id or a known model"
    )
    parser.add_argument("prompt", nargs="+", help="one or more; each is answered alone")
    parser.add_argument("--max-tokens", type=positive_int, default=128, help="of an answer; default: 128")
    parser.add_argument("--temperature", type=amount, default=0.0, help="0, the default: the likeliest token each time")
    parser.add_argument("--seed", type=seed, default=0, help="of what is drawn at a temperature above 0")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", type=device, help="default: cuda if there is a GPU")
    options = parser.parse_args(arguments)
    if "" in options.prompt:
        parser.error("prompt '': expected a text")
    return options


@ends_in_one_line("mora generate")
def main(arguments: list[str] | None = None) -> int:
    for answer in answers(parse(arguments)):
        print(answer)
    return 0


def answers(options: argparse.Namespace) -> list[str]:
    """Return one answer per prompt, without the prompt. An adapter is merged into its base first.

    Raises:
        ConfigError: The model cannot be loaded, or a prompt is empty.
    """
    folder = trained.find(options.run)
    if folder is None and named(options.run) is None and (reason := refused(options.run)):
        raise trained.unknown(options.run) if reason.endswith("model") else ConfigError(reason)
    import torch

    from mora.models.load import load_any
    from mora.models.tokenizers import pad_id
    from mora.train.run_messages import quiet

    quiet()
    where = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = options.precision or ("fp32" if torch.device(where).type == "cpu" else "bf16")
    try:
        model, tokenizer = load_any(options.run if folder is None else str(folder), precision)
    except ModelError as error:
        if folder is not None or named(options.run) is not None:
            raise
        raise ConfigError(f"{trained.unknown(options.run)}; as a hub id: {error}") from error
    model = model.to(where).eval()
    torch.manual_seed(options.seed)
    sampling = {"do_sample": True, "temperature": options.temperature} if options.temperature else {"do_sample": False}
    written = []
    for prompt in options.prompt:
        ids = tokenizer(prompt)["input_ids"]
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers end every text: the answer would begin after its end
        if not ids:
            raise ConfigError(f"prompt {prompt!r}: expected a text with at least one token")
        given = torch.tensor([ids], device=where)
        output = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=options.max_tokens,
            pad_token_id=pad_id(tokenizer),
            **sampling,
        )
        written.append(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
    return written
