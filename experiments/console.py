"""The command `vla`: `vla train experiment=tabletop` is `python -m experiments.train experiment=tabletop`.

A `conf` or `envs` in the working directory hides nothing of ours here: our packages are imported before
Python looks there, for modules that `plugins=[...]` names.

    eval "$(vla --completion bash)"      # completes programs, keys and the options of groups
"""

import ast
import importlib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.completion_plugin import DefaultCompletionPlugin

from experiments.config import cli, schema
from experiments.config.plugins import load_plugins, plugins_in
from vla.errors import did_you_mean

OURS = ("conf", "vla", "envs", "policies", "experiments")
USAGE = """vla <program> [key=value ...]

Programs (vla <program> --help explains one):
{programs}

Shell completion, for this shell or in ~/.bashrc or ~/.zshrc:
  eval "$(vla --completion bash)"
  eval "$(vla --completion zsh)"
"""
_BASH = """_vla() {
    local IFS=$'\\n'
    COMPREPLY=($(compgen -o default -W "$(vla --complete "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)" \
-- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//[=:]}
complete -o nospace -o default -F _vla vla
"""
_ZSH = """_vla() {
    local -a found whole
    found=(${(f)"$(vla --complete "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    whole=(${(M)found:#* })   # a name that is complete ends with a blank
    found=(${found:#* })
    if (( ! $#found && ! $#whole )); then
        compset -P '*='
        _files
        return
    fi
    compadd -Q -- ${whole% }
    compadd -Q -S '' -- $found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
compdef _vla vla
alias vla='noglob vla'           # zsh takes the brackets of plugins=[mylab] for a pattern otherwise
"""
COMPLETIONS = {"bash": _BASH, "zsh": _ZSH}


def main() -> None:
    """Run what the command line names."""
    match sys.argv[1:]:
        case [] | ["--help" | "-h"]:
            print(USAGE.format(programs=program_table()))
        case ["--completion", shell] if shell in COMPLETIONS:
            print(COMPLETIONS[shell], end="")
        case ["--completion", *_]:
            _refuse(f"--completion takes one of {list(COMPLETIONS)}")
        case ["--complete", line]:
            _prepare_path()
            print("\n".join(candidates(line)))
        case [program, *rest]:
            if program not in schema.ROOTS.names():
                _refuse(f"there is no program {program!r}; {did_you_mean(program, schema.ROOTS.names())}")
            _prepare_path()
            run_program(program, rest)


def run_program(program: str, arguments: Sequence[str]) -> None:
    """Run a program in this process, which it ends.

    Args:
        program: its name.
        arguments: what would follow `python -m experiments.<program>`.
    """
    sys.argv[1:] = arguments
    try:
        runpy.run_module(f"experiments.{program}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        _refuse(
            f"`vla {program}` needs {error.name!r}, which is not installed; install the part that has "
            "it: pip install 'vla-stack[train]' or 'vla-stack[sim]', or 'vla-stack[all]' for both"
        )


def program_table() -> str:
    """Return a line for each program: its name, and the first sentence of its module."""
    lines = []
    for name in schema.ROOTS.names():
        spec = importlib.util.find_spec(f"experiments.{name}")  # read, not imported: some need torch
        assert spec is not None, f"there is no experiments/{name}.py"
        assert spec.origin is not None, f"{name} is no file"
        said = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<16}{said.splitlines()[0]}")
    return "\n".join(lines)


def candidates(line: str) -> list[str]:
    """Return what may stand in place of the last word of a command line.

    Args:
        line: from `vla` to the cursor.
    """
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        begun = "".join(words[1:])
        return [f"{name} " for name in schema.ROOTS.names() if name.startswith(begun)]
    program = words[1]
    if program not in schema.ROOTS.names():
        return []
    load_plugins(plugins_in(words[2:]))
    schema.register(program)
    with initialize_config_module("conf", version_base="1.3"):
        completion = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        rest = line.split(maxsplit=2)[2:]
        return completion._query(config_name=program, line="".join(rest))


def _prepare_path() -> None:
    """Have Python find our packages first, here and in programs that are started, then the user's modules."""
    for name in OURS:
        importlib.import_module(name)
    root, here = str(Path(cli.__file__).parents[2]), str(Path.cwd())
    sys.path[:] = [path for path in sys.path if path not in ("", here)]
    sys.path += [path for path in (root, here) if path not in sys.path]


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(cli.EXIT_CONFIG)
