"""Sphinx with MyST: `pip install ".[docs]" && sphinx-build -W docs docs/_build`."""

import contextlib
import inspect
import io
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from pygments.lexers import PythonLexer
from sphinx.highlighting import lexers
from sphinx.util.docutils import SphinxDirective, SphinxRole

import nlhf_jax
from nlhf_jax.main import main

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(nlhf_jax.__file__).parents[1]

project = "nlhf_jax"
author = "the developers of nlhf_jax"
version = release = nlhf_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Nash learning from human feedback in JAX",
    "fixed_sidebar": True,
    "page_width": "70rem",
}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_use_ivar = True
# Docstrings write code as `name`; one that is no reference is just code.
default_role = "code"


class Configuration(SphinxDirective):
    """`{config} FILE`: what `nlhf config --gin_file=FILE --markdown` prints."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main(["config", f"--gin_file={self.arguments[0]}", "--markdown"])
        if code:
            raise self.error(f"nlhf config --gin_file={self.arguments[0]} failed")
        container = nodes.container(classes=["config"])
        self.state.nested_parse(StringList(out.getvalue().splitlines()), 0, container)
        return container.children


class SourceLine(SphinxRole):
    """`{line}` + a dotted name: a link to the definition in these pages, named by its line."""

    def run(self) -> tuple[list[nodes.Node], list]:
        module_name, _, name = self.text.rpartition(".")
        module = sys.modules.get(module_name) or __import__(module_name, fromlist=[name])
        function = inspect.unwrap(getattr(module, name))  # an AttributeError ends the build
        number = inspect.getsourcelines(function)[1]
        file = Path(inspect.getsourcefile(function)).relative_to(ROOT).as_posix()
        depth = self.env.docname.count("/")
        target = f"{'../' * depth}_modules/{module_name.replace('.', '/')}.html#{name}"
        text = f"{file}:{number}"
        return [nodes.reference("", "", nodes.literal(text, text), refuri=target)], []


def tables_as_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings have tables as Markdown does; here they are shown as they are."""
    shown: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|"):
            shown += [] if before.startswith("|") else ["::", ""]
            line = f"    {line}"
        shown.append(line)
    lines[:] = shown


def setup(app) -> None:
    app.connect("autodoc-process-docstring", tables_as_text)
    lexers["gin"] = PythonLexer()
    app.add_directive("config", Configuration)
    app.add_role("line", SourceLine())
