"""The command line: `nlhf JOB --gin_file=... [--gin.NAME=value ...] --workdir=DIR`.

One call is one job. Bad input gets one sentence on stderr and exit code 2; a training that diverged
exits with 3, one that SIGTERM stopped with 143, Ctrl-C gives 130.
"""

import argparse
import contextlib
import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from nlhf_jax.errors import UserError

# What takes long to import (JAX, gin, the jobs) is imported by the job that needs it, so that help
# and mistakes are answered at once.

_DESCRIPTION = """\
Nash learning from human feedback in JAX.

jobs:
  run       a whole chain: SFT, preference model, policies, tournament, report
  train     one learner
  evaluate  a tournament between checkpoints
  sample    responses of one checkpoint to prompts
  report    the report of a work directory again
  data      checks JSON lines, trains a vocabulary
  convert   checkpoints of T5X and Hugging Face to ours and back

example:
  nlhf run --gin_file=quickstart.gin --workdir=out

nlhf JOB --help explains a job."""

_CONFIGURED = """
--gin.NAME=value sets a macro of the gin file, --gin.module.function.parameter=value anything else.
Gin files are found from the working directory, --gin_search_paths, and those that come with nlhf.
The same command continues a run that was stopped.
"""

_EXAMPLES = {
    "run": "nlhf run --gin_file=quickstart.gin --gin.SEED=1 --workdir=out",
    "train": "nlhf train --gin_file=runs/sft.gin --gin.TRAIN_STEPS=1000 --workdir=out/sft",
    "evaluate": "nlhf evaluate --gin_file=runs/tournament.gin --workdir=out/tournament",
    "sample": "nlhf sample --checkpoint=out/nash_md --prompts=prompts.txt --num_samples=2",
    "report": "nlhf report --workdir=out",
    "data": "nlhf data check sft:my_summaries.jsonl preferences:my_votes.jsonl",
    "convert": "nlhf convert --checkpoint=out/nash_md --to=huggingface --output=nash_md_hf",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one job; returns the exit code."""
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("nlhf: interrupted; the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `nlhf sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if isinstance(error, UserError):
            code, kind = 2, "error: "
        elif hasattr(error, "exit_code"):  # The training loop's: it diverged, or was preempted.
            code, kind = error.exit_code, ""
        else:
            raise
        from nlhf_jax import configuration

        print(f"nlhf: {kind}{configuration.message(error)}", file=sys.stderr)
        return code


def _dispatch(arguments: list[str]) -> None:
    overrides = [argument[len("--gin.") :] for argument in arguments if _is_override(argument)]
    arguments = [argument for argument in arguments if not _is_override(argument)]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_DESCRIPTION)
        return
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
    options.start(options)


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

    def error(self, message: str) -> None:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def _configured_parser(job: str, what: str, start: Callable) -> Callable[[], _Parser]:
    def build() -> _Parser:
        parser = _Parser(job, what + "\n" + _CONFIGURED, start)
        parser.add_argument(
            "--gin_file", action="append", required=True, metavar="FILE", help="may be repeated"
        )
        parser.add_argument(
            "--gin_search_paths",
            action="append",
            default=[],
            metavar="DIR",
            help="more directories with gin files; may be repeated",
        )
        parser.add_argument("--workdir", metavar="DIR", required=True, help="all output goes here")
        return parser

    return build


def _sample_parser() -> _Parser:
    what = (
        "Writes responses of a checkpoint as JSON lines: prompt, completion.\n"
        "The checkpoint knows its model and vocabulary; no gin file is needed."
    )
    parser = _Parser("sample", what, _sample)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="of a training, or of one of its steps")
    add("--prompts", metavar="FILE", help="texts, or JSON lines with 'prompt' (standard input)")
    add("--output", metavar="FILE", help="where to write (standard output)")
    add("--num_samples", type=int, default=1, metavar="N", help="responses per prompt (1)")
    add("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (1.0)")
    add("--seed", type=int, default=0, metavar="N", help="(0)")
    return parser


def _report_parser() -> _Parser:
    parser = _Parser("report", "Builds the report of a work directory again.", _report)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of `nlhf run`")
    return parser


def _data_parser() -> _Parser:
    what = (
        "Says what is wrong on which line of JSON lines files, or trains a vocabulary on them.\n"
        "KIND is sft (keys prompt, completion), preferences (prompt, chosen, rejected) or prompts."
    )
    parser = _Parser("data", what, _data)
    add = parser.add_argument
    add("action", choices=("check", "vocabulary"))
    add("files", nargs="+", metavar="KIND:FILE")
    add("--vocabulary", metavar="FILE", help="for check: SentencePiece model, to count tokens with")
    add("--output", metavar="FILE", help="for vocabulary: the SentencePiece model to write")
    add("--size", type=int, metavar="N", help="for vocabulary: its number of pieces")
    return parser


def _convert_parser() -> _Parser:
    what = (
        "Writes a checkpoint in another format. Trainings and tournaments read any format by\n"
        "themselves; converting is for other programs, and for what a checkpoint does not "
        "say."
    )
    parser = _Parser("convert", what, _convert)
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
    return parser


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


# --- jobs ----------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> None:
    from nlhf_jax import configuration
    from nlhf_jax.jobs import chain

    def names_stage(override: str) -> bool:
        return "/" in override.partition("=")[0]

    configuration.parse(
        options.gin_file,
        [override for override in options.overrides if not names_stage(override)],
        workdir=options.workdir,
        search_paths=options.gin_search_paths,
    )
    stages = configuration.arguments(chain.run, ["workdir"])["stages"]
    configuration.write(options.workdir)
    _configure_jax()
    chain.run(
        options.workdir,
        stages,
        [override for override in options.overrides if names_stage(override)],
        options.gin_search_paths,
    )


def _one_job(options: argparse.Namespace) -> None:
    """`train` and `evaluate`: a function that gin configures."""
    from nlhf_jax import configuration

    configuration.parse(
        options.gin_file,
        options.overrides,
        workdir=options.workdir,
        search_paths=options.gin_search_paths,
    )
    _configure_jax()
    configuration.run(getattr(_jobs(), options.job), options.workdir)


def _sample(options: argparse.Namespace) -> None:
    if options.num_samples < 1:
        raise UserError(f"--num_samples is {options.num_samples} but must be at least 1")
    if options.temperature < 0:
        raise UserError(f"--temperature is {options.temperature} but must not be negative")
    prompts = _read_prompts(options.prompts)
    _configure_jax()
    samples = _jobs().sample(
        checkpoint=options.checkpoint,
        prompts=prompts,
        num_samples=options.num_samples,
        temperature=options.temperature,
        seed=options.seed,
    )
    with _output(options.output) as stream:
        for prompt, completions in zip(prompts, samples, strict=True):
            for completion in completions:
                row = {"prompt": prompt, "completion": completion}
                print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)


def _report(options: argparse.Namespace) -> None:
    from nlhf_jax.report.writing import write_report

    print(write_report(options.workdir))


def _convert(options: argparse.Namespace) -> None:
    import logging

    from nlhf_jax.jobs.convert import convert

    # Orbax warns that there is nothing to merge where a checkpoint is written without OCDBT.
    logging.getLogger("absl").setLevel(logging.ERROR)
    _configure_jax()
    print(
        convert(
            options.checkpoint,
            options.output,
            options.to,
            dtype=options.dtype,
            vocabulary=options.vocabulary,
            kind=options.kind,
            feature_lengths=options.feature_lengths,
        )
    )


def _data(options: argparse.Namespace) -> None:
    from nlhf_jax.data.check import check
    from nlhf_jax.data.vocabularies import Vocabulary
    from nlhf_jax.jobs.vocabulary import train_from_files

    files = {}
    for argument in options.files:
        kind, colon, path = argument.partition(":")
        if not (kind and colon and path):
            raise UserError(f"{argument!r} must be KIND:FILE, for example sft:{path or kind}")
        files[path] = kind
    if options.action == "vocabulary":
        for name in ("output", "size"):
            if getattr(options, name) is None:
                raise UserError(f"nlhf data vocabulary needs --{name}=...")
        vocabulary = train_from_files(files, options.output, options.size)
        print(f"{options.output}: {vocabulary.size} pieces")
        return
    vocabulary = options.vocabulary and Vocabulary.load(options.vocabulary)
    checks = [check(path, kind, vocabulary or None) for path, kind in files.items()]
    for found in checks:
        print(found.report())
    bad = [found.path for found in checks if found.problems]
    if bad:
        raise UserError(f"there are bad lines in {', '.join(bad)}")


_PARSERS: dict[str, Callable[[], _Parser]] = {
    "run": _configured_parser("run", "Runs a whole chain of stages.", _run),
    "train": _configured_parser("train", "Trains one learner.", _one_job),
    "evaluate": _configured_parser("evaluate", "A tournament between checkpoints.", _one_job),
    "sample": _sample_parser,
    "report": _report_parser,
    "data": _data_parser,
    "convert": _convert_parser,
}


def _jobs():
    return importlib.import_module("nlhf_jax.jobs")


def _configure_jax() -> None:
    import jax

    # The same random numbers on one device and on many.
    jax.config.update("jax_threefry_partitionable", True)
    # On a CPU, one device a core: small programs run about 1.5 times as fast on two cores as data
    # parallel halves than with XLA's own threads. JAX_NUM_CPU_DEVICES=1 turns it off.
    chosen = jax.config.jax_num_cpu_devices != -1  # by JAX_NUM_CPU_DEVICES, or by a program
    if not chosen and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        devices = 1 << (min(cores, 8).bit_length() - 1)  # a power of two divides usual batches
        jax.config.update("jax_num_cpu_devices", devices)
        # XLA's pools have a thread a core by default. With no thread to spare, once in thousands of
        # steps an all-reduce waited for ever, and XLA ended the process. Idle threads cost nothing.
        os.environ.setdefault("PJRT_NPROC", str(4 * devices))


def _read_prompts(path: str | None) -> list[str]:
    """Prompts from a file (None: standard input) of one text a line, or of JSON lines."""
    from nlhf_jax.data import json_lines

    name = path or "standard input"
    try:
        content = sys.stdin.buffer.read() if path is None else Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the prompts in {path}: {error.strerror}") from error
    lines = content.splitlines()
    if content.lstrip().startswith(b"{"):
        rows = json_lines.all_rows(json_lines.scan_lines(lines, name, "prompts"))
        return [row.prompt for row in rows]
    try:
        prompts = [line.decode("utf-8").strip() for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text") from error
    if not prompts:
        raise UserError(f"{name} holds no prompt: give one a line")
    return prompts


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears when all is written."""
    if path is None:
        yield sys.stdout
        return
    partial = Path(path).with_name(Path(path).name + ".partial")
    try:
        stream = partial.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        with stream:
            yield stream
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
