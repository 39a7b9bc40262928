"""What each job of the command line can be given; a job starts with what is parsed here."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import NoReturn

from nlhf_jax import commands
from nlhf_jax.errors import UserError

_CONFIGURED = """
--gin.NAME=value sets a macro of the gin file, --gin.module.function.parameter=value anything else.
Gin files are found from the working directory, --gin_search_paths, and those that come with nlhf.
The same command continues a run that was stopped.
"""

_EXAMPLES = {
    "run": "nlhf run --gin_file=quickstart.gin --gin.SEED=1 --workdir=out",
    "train": "nlhf train --gin_file=runs/sft.gin --gin.TRAIN_STEPS=1000 --workdir=out/sft",
    "evaluate": "nlhf evaluate --gin_file=runs/tournament.gin --workdir=out/tournament",
    "exploit": "nlhf exploit --policy=MD=out/nash_md --gin.REFERENCE_CHECKPOINT='\"out/sft\"' "
    "--gin.RATER_CHECKPOINT='\"out/preference\"' --workdir=out/exploit",
    "sample": "nlhf sample --checkpoint=out/nash_md --prompts=prompts.txt --num_samples=2",
    "report": "nlhf report --workdir=out",
    "sheet": "nlhf sheet make sft:sft.jsonl nash:nash.jsonl --pairs=100 --output=comparison\n"
    "  nlhf sheet read answers-*.json --key=comparison/sheet.key.json --output=votes.jsonl",
    "config": "nlhf config --gin_file=tldr/nash_md.gin --gin.BETA=0.25",
    "plan": "nlhf plan --gin_file=tldr/nash_md.gin --policy=t5_1_1_large --rater=t5_1_1_xl "
    "--topology=v5e:4x4",
    "benchmark": "nlhf benchmark --gin_file=mini/nash_md.gin --policy=t5_1_1_small "
    "--rater=t5_1_1_small --batch=8 --text=128 --response=64",
    "data": "nlhf data check sft:my_summaries.jsonl preferences:my_votes.jsonl",
    "convert": "nlhf convert --checkpoint=out/nash_md --to=huggingface --output=nash_md_hf",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """A job's options, with `start`, the function that takes them; None if help is asked for.

    Raises UserError for what does not exist.
    """
    overrides = [argument[len("--gin.") :] for argument in arguments if _is_override(argument)]
    arguments = [argument for argument in arguments if not _is_override(argument)]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return None
    job = arguments[0]
    if job not in _EXAMPLES:
        close = difflib.get_close_matches(job, _EXAMPLES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_EXAMPLES)}"
        raise UserError(f"there is no job {job!r}; {hint}")
    parser = _PARSERS[job]()
    options, unknown = parser.parse_known_args(arguments[1:])
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see nlhf {job} --help"
        raise UserError(f"nlhf {job} has no option {unknown[0]!r}; {hint}")
    if overrides and "gin_file" not in options:
        raise UserError(f"nlhf {job} needs no gin file, so --gin.{overrides[0]} says nothing to it")
    options.job, options.overrides = job, overrides
    return options


def _is_override(argument: str) -> bool:
    if argument.startswith("--gin.") and "=" not in argument:
        raise UserError(f"{argument} has no value: write {argument}=value")
    return argument.startswith("--gin.")


# --- options -------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def __init__(self, job: str, description: str, start: Callable[[argparse.Namespace], None]):
        super().__init__(
            prog=f"nlhf {job}",
            description=description,
            epilog=f"example:\n  {_EXAMPLES[job]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.set_defaults(start=start)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def _configured_parser(job: str, what: str, start: Callable) -> Callable[[], _Parser]:
    def build() -> _Parser:
        parser = _Parser(job, what + "\n" + _CONFIGURED, start)
        _add_gin_files(parser, "exploit.gin" if job == "exploit" else None)
        parser.add_argument("--workdir", metavar="DIR", required=True, help="all output goes here")
        if job == "exploit":
            parser.add_argument(
                "--policy",
                action="append",
                required=True,
                metavar="[NAME=]DIR",
                help="a policy's checkpoint; may be given several times",
            )
        if job == "run":
            _add_scale(parser)
        if job in ("run", "train", "exploit"):
            parser.add_argument(
                "--accept_changes",
                action="store_true",
                help="continue what was begun with other settings or data; run.json keeps both",
            )
        if job == "evaluate":
            parser.add_argument(
                "--watch",
                metavar="DIR",
                help="a training's work directory: each of its checkpoints plays against PLAYERS as"
                " soon as it is there, until the training has ended",
            )
        _add_processes(parser)
        return parser

    return build


def _config_parser() -> _Parser:
    what = (
        "Prints every setting of gin files with its value and the file and line that set it, what\n"
        "is still required, and what overrides what; of a chain its stages as well."
    )
    parser = _Parser("config", what, commands.config)
    _add_gin_files(parser)
    _add_scale(parser)
    parser.add_argument("--markdown", action="store_true", help="tables, for documentation")
    return parser


def _plan_parser() -> _Parser:
    what = (
        "Says what each chip of a topology holds and does in a training, and how long that takes:\n"
        "in closed form, and by compiling the real step for those chips. Neither they nor data\n"
        "nor checkpoints need to be there."
    )
    parser = _Parser("plan", what, commands.plan)
    _add_gin_files(parser)
    add = parser.add_argument
    add(
        "--topology",
        required=True,
        metavar="KIND:SHAPE",
        help="such as v5e:4x4, v5p:2x2x4, h100:8, or of two slices 2xv5e:4x4; here: the devices at "
        "hand, measured",
    )
    add("--policy", metavar="MODEL", help="sizes that its checkpoint does not tell: t5_1_1_large")
    add("--rater", metavar="MODEL", help="the same of the rater")
    add("--no_compile", action="store_true", help="closed form only, at once")
    add(
        "--compile_timeout",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="when to give up the compiler (900)",
    )
    add("--careful", action="store_true", help="compile as the run itself will: takes longer")
    add("--largest_batch", action="store_true", help="look for the largest batch that fits")
    add("--json", metavar="FILE", help="all numbers, in bytes, FLOPs and seconds")
    add("--program", metavar="FILE", help="the compiled program's text")
    return parser


def _benchmark_parser() -> _Parser:
    what = (
        "Times each phase of a training step, and the whole, with random parameters and data, and\n"
        "sets that beside what the devices could do at best."
    )
    parser = _Parser("benchmark", what, commands.benchmark)
    _add_gin_files(parser, "mini/nash_md.gin")
    add = parser.add_argument
    add("--policy", metavar="MODEL", help="sizes that its checkpoint does not tell: t5_1_1_small")
    add("--rater", metavar="MODEL", help="the same of the rater")
    add("--batch", type=int, metavar="N", help="rows of a step (BATCH_SIZE)")
    add("--text", type=int, metavar="N", help="tokens of a prompt (TASK_FEATURE_LENGTHS)")
    add("--response", type=int, metavar="N", help="tokens of a response (TASK_FEATURE_LENGTHS)")
    add("--repeats", type=int, default=7, metavar="N", help="calls of each program that count (7)")
    add("--sweep", metavar="AXIS,...", help="how time grows: batch, text, response, size")
    add("--factors", metavar="N,...", help="of --sweep: so many times as much (0.25,0.5,1,2)")
    add("--json", metavar="FILE", help="all numbers, in seconds, bytes and FLOPs")
    add("--figure", metavar="FILE", help="of --sweep: a PNG")
    add("--workdir", metavar="DIR", help="for benchmark.json and benchmark.png")
    return parser


def _add_gin_files(parser: _Parser, otherwise: str | None = None) -> None:
    known = "" if otherwise is None else f"; without one, {otherwise}"
    parser.add_argument(
        "--gin_file",
        action="append",
        required=otherwise is None,
        metavar="FILE",
        help=f"may be repeated{known}",
    )
    parser.add_argument(
        "--gin_search_paths",
        action="append",
        default=[],
        metavar="DIR",
        help="more directories with gin files; may be repeated",
    )


def _add_scale(parser: _Parser) -> None:
    parser.add_argument(
        "--scale",
        metavar="NAME",
        help="of a file F.gin, the smaller or larger F_NAME.gin beside it: --scale=small",
    )


def _add_processes(parser: _Parser) -> None:
    """For machines that do not say by themselves which processes a run has."""
    group = parser.add_argument_group("several processes, each started with the same command")
    add = group.add_argument
    add("--coordinator", metavar="HOST:PORT", help="of the first (JAX_COORDINATOR_ADDRESS)")
    add("--processes", type=int, metavar="N", help="how many there are (JAX_NUM_PROCESSES)")
    add("--process", type=int, metavar="I", help="which this one is, from 0 (JAX_PROCESS_ID)")


def _sample_parser() -> _Parser:
    what = (
        "Writes responses of a checkpoint as JSON lines: prompt, completion.\n"
        "The checkpoint knows its model and vocabulary; no gin file is needed."
    )
    parser = _Parser("sample", what, commands.sample)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="of a training, or of one of its steps")
    add("--prompts", metavar="FILE", help="texts, or JSON lines with 'prompt' (standard input)")
    add("--output", metavar="FILE", help="where to write (standard output)")
    add("--num_samples", type=int, default=1, metavar="N", help="responses per prompt (1)")
    add("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (1.0)")
    add("--seed", type=int, default=0, metavar="N", help="(0)")
    add(
        "--best_of", type=int, default=1, metavar="N", help="send one of N by what --rater says (1)"
    )
    add("--rater", metavar="DIR", help="a checkpoint that compares the N")
    add(
        "--by",
        default="nash",
        metavar="HOW",
        help="nash: draw from the N's Nash mixture; borda: the most preferred on average; reward:"
        " the largest reward (nash)",
    )
    _add_modules(parser)
    _add_processes(parser)
    return parser


def _report_parser() -> _Parser:
    parser = _Parser("report", "Builds the report of a work directory again.", commands.report)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of `nlhf run`")
    return parser


def _sheet_parser() -> _Parser:
    what = (
        "Makes a page and a table on which people say which of two responses is better without\n"
        "knowing whose they are, of lines with prompt, completion; and reads what they answered."
    )
    parser = _Parser("sheet", what, commands.sheet)
    add = parser.add_argument
    add("action", choices=("make", "read"))
    add("files", nargs="+", metavar="FILE", help="to make: NAME:FILE of a player; else answers")
    add("--output", metavar="PATH", help="to make: a directory; to read: preferences, JSON lines")
    add("--pairs", type=int, metavar="N", help="to make: how many comparisons at most")
    add("--seed", type=int, metavar="N", help="to make: of all draws (0)")
    add("--question", metavar="TEXT", help="to make: 'Which response is better?' unless given")
    add("--key", metavar="FILE", help="to read: sheet.key.json, made with the sheet")
    return parser


def _data_parser() -> _Parser:
    what = (
        "Says what is wrong on which line of JSON lines files, or trains a vocabulary on them.\n"
        "KIND is sft (keys prompt, completion), preferences (prompt, chosen, rejected) or prompts."
    )
    parser = _Parser("data", what, commands.data)
    add = parser.add_argument
    add("action", choices=("check", "vocabulary"))
    add("files", nargs="+", metavar="KIND:FILE")
    add("--vocabulary", metavar="FILE", help="for check: SentencePiece model, to count tokens with")
    add(
        "--feature_lengths",
        type=_lengths,
        metavar="NAME=N,...",
        help="for check: says how many texts these would cut: inputs and targets, text and summary",
    )
    add(
        "--prompt_form",
        metavar="FORM",
        help="for check: what stands around each prompt, such as '{prompt} TL;DR:'",
    )
    add("--output", metavar="FILE", help="for vocabulary: the SentencePiece model to write")
    add("--size", type=int, metavar="N", help="for vocabulary: its number of pieces")
    return parser


def _convert_parser() -> _Parser:
    what = (
        "Writes a checkpoint in another format. Trainings and tournaments read any format by\n"
        "themselves; converting is for other programs, and for what a checkpoint does not "
        "say."
    )
    parser = _Parser("convert", what, commands.convert)
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="nlhf's, T5X's or Hugging Face's; DIR#best and DIR#average of nlhf's",
    )
    add("--output", required=True, metavar="DIR", help="where to write")
    add("--to", required=True, metavar="FORMAT", help="nlhf, t5x, t5x_orbax or huggingface")
    add("--dtype", default="float32", metavar="TYPE", help="float32 or bfloat16 (float32)")
    add("--vocabulary", metavar="FILE", help="SentencePiece model, where the checkpoint has none")
    add(
        "--kind",
        default="policy",
        metavar="KIND",
        help="to nlhf: policy, preference or reward (policy)",
    )
    add(
        "--feature_lengths",
        type=_lengths,
        metavar="NAME=N,...",
        help="to nlhf: tokens with EOS, for example inputs=512,targets=64",
    )
    add(
        "--prompt_form",
        metavar="FORM",
        help="to nlhf: what stands around each prompt, such as '{prompt} TL;DR:'",
    )
    _add_modules(parser)
    return parser


def _add_modules(parser: _Parser) -> None:
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="NAME",
        help="of your own, with the checkpoint's family of models; may be repeated",
    )


def _lengths(text: str) -> dict[str, int]:
    lengths = {}
    for pair in text.split(","):
        name, _, number = pair.partition("=")
        if not (name and number.isdigit() and int(number) >= 2):
            raise argparse.ArgumentTypeError(
                f"{pair!r} must be NAME=N with N at least 2, for example inputs=512"
            )
        lengths[name] = int(number)
    return lengths


_PARSERS: dict[str, Callable[[], _Parser]] = {
    "run": _configured_parser("run", "Runs a whole chain of stages.", commands.run),
    "train": _configured_parser("train", "Trains one learner.", commands.one_job),
    "evaluate": _configured_parser(
        "evaluate", "A tournament between checkpoints.", commands.one_job
    ),
    "exploit": _configured_parser(
        "exploit",
        "Trains a best response against each frozen policy: how much can it be beaten by.",
        commands.exploit,
    ),
    "sample": _sample_parser,
    "report": _report_parser,
    "config": _config_parser,
    "plan": _plan_parser,
    "benchmark": _benchmark_parser,
    "sheet": _sheet_parser,
    "data": _data_parser,
    "convert": _convert_parser,
}
