"""What each job of the command line does with its options.

What takes long to import (JAX, gin, the jobs) is imported where it is needed.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from nlhf_jax import processes
from nlhf_jax.errors import UserError, printable, warn


def run(options: argparse.Namespace) -> None:
    from nlhf_jax import configuration
    from nlhf_jax.files import check_writable
    from nlhf_jax.jobs import chain

    check_writable(options.workdir, "--workdir")
    gin_files = _of_scale(options)

    by_stage = [each for each in options.overrides if "/" in each.partition("=")[0]]
    configuration.parse(
        gin_files,
        [override for override in options.overrides if override not in by_stage],
        workdir=options.workdir,
        search_paths=options.gin_search_paths,
    )
    arguments = configuration.arguments(chain.run, ["workdir"])
    config = configuration.text()
    _configure_jax(options)
    chain.run(
        options.workdir,
        arguments["stages"],
        by_stage,
        options.gin_search_paths,
        arguments.get("macros"),
        options.accept_changes,
        config,
    )


def exploit(options: argparse.Namespace) -> None:
    """The chain of exploit.gin, with POLICIES from the command line."""
    policies = {}
    for argument in options.policy:
        name, equals, checkpoint = argument.partition("=")
        if not equals:
            name, checkpoint = argument.rstrip("/").rpartition("/")[2].partition("#")[0], argument
        if name in policies:
            raise UserError(f"--policy: two policies are called {name!r}; give NAME=DIR")
        policies[name] = checkpoint
    options.gin_file = options.gin_file or ["exploit.gin"]
    options.overrides = [*options.overrides, f"POLICIES={policies!r}"]
    run(options)


def config(options: argparse.Namespace) -> None:
    from nlhf_jax import configuration
    from nlhf_jax.configuration import effective, tables

    gin_files = _of_scale(options)
    configuration.parse(
        gin_files,
        options.overrides,
        search_paths=options.gin_search_paths,
        complete=False,
    )
    found = effective.settings(gin_files, options.overrides)
    print(tables.markdown(found) if options.markdown else tables.terminal(found), end="")


def plan(options: argparse.Namespace) -> None:
    from nlhf_jax.files import check_writable, write_whole
    from nlhf_jax.planning import plan as planning
    from nlhf_jax.planning import tables
    from nlhf_jax.planning.chips import topology
    from nlhf_jax.planning.compiling import Request

    for name in ("json", "program"):
        if (path := getattr(options, name)) is not None:
            check_writable(path, f"--{name}", file=True)
    if options.no_compile and options.program is not None:
        raise UserError("--program says nothing with --no_compile")
    if options.compile_timeout <= 0:
        raise UserError(f"--compile_timeout is {options.compile_timeout} but must be positive")
    _configure_jax(options)
    made = planning.make(
        Request(
            tuple(options.gin_file),
            tuple(options.overrides),
            tuple(options.gin_search_paths),
            options.policy,
            options.rater,
            options.topology,
            options.careful,
        ),
        topology(options.topology),
        compile_timeout=None if options.no_compile else options.compile_timeout,
        program=options.program,
        largest_batch=options.largest_batch,
    )
    print(tables.terminal(made), end="")
    if options.json is not None:
        write_whole(options.json, json.dumps(made.json(), indent=2) + "\n")


def benchmark(options: argparse.Namespace) -> None:
    from nlhf_jax.benchmarking import command
    from nlhf_jax.files import check_writable

    for name in ("json", "figure"):
        if (path := getattr(options, name)) is not None:
            check_writable(path, f"--{name}", file=True)
    if options.workdir is not None:
        check_writable(options.workdir, "--workdir")
    _configure_jax(options)
    command.run(options)


def one_job(options: argparse.Namespace) -> None:
    """`train` and `evaluate`: a function that gin configures."""
    from nlhf_jax import configuration
    from nlhf_jax.files import check_writable

    check_writable(options.workdir, "--workdir")
    configuration.parse(
        options.gin_file,
        options.overrides,
        workdir=options.workdir,
        search_paths=options.gin_search_paths,
    )
    _configure_jax(options)
    given = {
        name: value
        for name in ("accept_changes", "watch")
        if (value := getattr(options, name, None))
    }
    configuration.run(getattr(_jobs(), options.job), options.workdir, **given)


def sample(options: argparse.Namespace) -> None:
    if options.num_samples < 1:
        raise UserError(f"--num_samples is {options.num_samples} but must be at least 1")
    if options.best_of < 1:
        raise UserError(f"--best_of is {options.best_of} but must be at least 1")
    if (options.best_of > 1) != (options.rater is not None):
        raise UserError("--best_of=N needs --rater=DIR, which compares the N, and the other way")
    if options.temperature < 0:
        raise UserError(f"--temperature is {options.temperature} but must not be negative")
    _import_modules(options.module)
    _configure_jax(options)
    from nlhf_jax.data.json_lines import read_prompts
    from nlhf_jax.files import output

    with output(options.output) as stream:
        form = _jobs().prompt_form(options.checkpoint)
        # Standard input is the first process's.
        prompts = processes.from_first(lambda: read_prompts(options.prompts, form))
        samples = _jobs().sample(
            checkpoint=options.checkpoint,
            prompts=prompts,
            num_samples=options.num_samples,
            temperature=options.temperature,
            seed=options.seed,
            best_of=options.best_of,
            by=options.by,
            rater=options.rater,
        )
        for prompt, completions in zip(prompts, samples, strict=True):
            for completion in completions:
                row = {"prompt": prompt} if isinstance(prompt, str) else dict(prompt)
                row |= {"completion": completion}
                print(json.dumps(row, ensure_ascii=False), file=stream, flush=True)


def report(options: argparse.Namespace) -> None:
    from nlhf_jax.files import check_writable
    from nlhf_jax.jobs.tracked import send_report
    from nlhf_jax.report.writing import write_report

    check_writable(options.workdir, "--workdir")
    path = write_report(options.workdir)
    print(path)
    send_report(options.workdir, path)


def convert(options: argparse.Namespace) -> None:
    import logging

    from nlhf_jax.files import check_writable
    from nlhf_jax.jobs.convert import convert

    check_writable(options.output, "--output")
    _import_modules(options.module)
    # Orbax warns that there is nothing to merge where a checkpoint is written without OCDBT.
    logging.getLogger("absl").setLevel(logging.ERROR)
    _configure_jax(options)
    print(
        convert(
            options.checkpoint,
            options.output,
            options.to,
            dtype=options.dtype,
            vocabulary=options.vocabulary,
            kind=options.kind,
            feature_lengths=options.feature_lengths,
            prompt_form=options.prompt_form,
        )
    )


def data(options: argparse.Namespace) -> None:
    from nlhf_jax.data.check import check
    from nlhf_jax.data.prompts import form_of
    from nlhf_jax.data.vocabularies import Vocabulary
    from nlhf_jax.files import check_writable
    from nlhf_jax.jobs.vocabulary import train_from_files

    files = []
    for argument in options.files:
        kind, colon, path = argument.partition(":")
        if not (kind and colon and path):
            raise UserError(f"{argument!r} must be KIND:FILE, for example sft:{path or kind}")
        files.append((path, kind))
    if options.action == "vocabulary":
        for name in ("output", "size"):
            if getattr(options, name) is None:
                raise UserError(f"nlhf data vocabulary needs --{name}=...")
        check_writable(options.output, "--output", file=True)
        if len(dict(files)) < len(files):
            raise UserError("nlhf data vocabulary: a file is given twice")
        vocabulary = train_from_files(dict(files), options.output, options.size)
        print(f"{options.output}: {vocabulary.size} pieces")
        return
    vocabulary = options.vocabulary and Vocabulary.load(options.vocabulary)
    form = form_of(options.prompt_form)
    for name in ("feature_lengths", "prompt_form"):
        if getattr(options, name) is not None and vocabulary is None:
            raise UserError(f"--{name} says nothing without --vocabulary=FILE")
    checks = [
        check(path, kind, vocabulary or None, options.feature_lengths, form) for path, kind in files
    ]
    for found in checks:
        print(printable(found.report()))
    bad = [found.path for found in checks if found.problems]
    if bad:
        raise UserError(f"there are bad lines in {', '.join(bad)}")


def sheet(options: argparse.Namespace) -> None:
    making = options.action == "make"
    for name in ("pairs", "output") if making else ("key",):
        if getattr(options, name) is None:
            raise UserError(f"nlhf sheet {options.action} needs --{name}=...")
    for name in ("key",) if making else ("pairs", "seed", "question"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} says nothing to nlhf sheet {options.action}")
    (_make_sheet if making else _read_sheet)(options)


def _make_sheet(options: argparse.Namespace) -> None:
    from nlhf_jax.evaluation import blind_sheet
    from nlhf_jax.files import check_writable

    check_writable(options.output, "--output")
    responses = {}
    for argument in options.files:
        name, colon, path = argument.partition(":")
        if not (name and colon and path):
            raise UserError(f"{argument!r} must be NAME:FILE, for example nash:{path or name}")
        if name in responses:
            raise UserError(f"the player {name!r} is given twice")
        responses[name] = blind_sheet.read_responses(path)
    question = blind_sheet.QUESTION if options.question is None else options.question
    made = blind_sheet.draw(responses, options.pairs, options.seed or 0, question)
    blind_sheet.write(made, options.output)
    if told := blind_sheet.told(made):
        warn(f"{printable(', '.join(told))} stands in texts on the sheet, where raters read it")
    for line in blind_sheet.summary(made, options.output, options.pairs):
        print(printable(line))


def _read_sheet(options: argparse.Namespace) -> None:
    from nlhf_jax.evaluation import blind_sheet, people
    from nlhf_jax.files import check_writable, write_whole

    if options.output is not None:
        check_writable(options.output, "--output", file=True)
    made = blind_sheet.read_key(options.key)
    raters = people.read_answers(options.files, made)
    for line in people.summary(made, raters):
        print(printable(line))
    if options.output is not None:
        lines = people.preferences(people.votes(made, raters))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(options.output, text)
        print(printable(f"{options.output}: {len(lines):,} preferences"))


def prepare_for_buckets(arguments: Sequence[str]) -> None:
    """Where an argument names a bucket, imports TensorFlow as ours before `epath` does, loudly."""
    if any("gs://" in argument for argument in arguments):
        importlib.import_module("nlhf_jax.data.tf_imports")


def _import_modules(names: list[str]) -> None:
    """Modules that register families of models, from the working directory too."""
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--module={name} cannot be imported: {error}") from error


def _of_scale(options: argparse.Namespace) -> list[str]:
    """`--scale=small` is of F_small.gin, which includes F.gin and says what is smaller."""
    *others, last = options.gin_file
    scale = getattr(options, "scale", None)
    return [*others, last if scale is None else f"{last.removesuffix('.gin')}_{scale}.gin"]


def _jobs() -> ModuleType:
    return importlib.import_module("nlhf_jax.jobs")


def _configure_jax(options: argparse.Namespace) -> None:
    """Before anything touches a device; where the run has several processes, they meet."""
    import jax

    from nlhf_jax import compilation_cache

    compilation_cache.keep_programs()
    # The same random numbers on one device and on many.
    jax.config.update("jax_threefry_partitionable", True)
    # A CPU is one device, all of whose cores work on each product, unless JAX_NUM_CPU_DEVICES says
    # otherwise. XLA's pools have a thread a core by default. With several devices and no thread to
    # spare, once in thousands of steps an all-reduce waited for ever, and XLA ended the process.
    # Idle threads cost nothing.
    if (devices := jax.config.values["jax_num_cpu_devices"]) > 1:
        os.environ.setdefault("PJRT_NPROC", str(4 * devices))
    if "coordinator" in options:
        processes.initialize(options.coordinator, options.processes, options.process)
