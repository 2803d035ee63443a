"""Options of the command lines and YAML files: what is said of one that can't be used.

jsonargparse tells it in many lines, with Python's names of types; here it becomes one message with the option's place
in the YAML file, the value found, and what was expected: the nearest name, the classes, or the kind of value.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args

import yaml  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

from calorefine.errors import ConfigError, nearest

VALUE_KINDS = {
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "dict": "options by name",
}
NO_OPTION = r"(?:Option|does not accept option|unrecognized arguments:) (?:--)?'?([^'\s=]+)"
NO_CLASS = r"Expected a dot import path string: (.+)|Import path (\S+) does not correspond to a subclass"
UNION = r"Does not validate against any of .*?Errors:\n(.*?)\nGiven value type.*?\nGiven value: (.*)"
TRAP = "; a name that YAML reads as something else (no, on, null, 1) is written in quotes"
MEANINGS = {"bool": "true or false", "null": "null", "int": "a number", "float": "a number", "timestamp": "a date"}
LONGEST_VALUE = 80  # characters of a value that are shown


@dataclass
class Refusal:
    """What jsonargparse refused.

    Args:
        parser: of the options that the last keys belong to.
        path: keys that lead to the option.
        key: the last of them, those known to the parser.
        owner: class whose options these are; nothing for those of the command.
        value: what was found, as text.
        reasons: why it was refused, as each of the kinds of values that the option takes.
    """

    parser: ArgumentParser
    path: list[str] = field(default_factory=list)
    key: str = ""
    owner: str = ""
    value: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Options of the parser, and groups of them."""
        options = [action.dest for action in self.parser._actions]  # nothing public lists them
        names = dict.fromkeys(name for option in options for name in _prefixes(option))
        return [name for name in names if name != "help" and not name.startswith("print_")]

    def located(self, text: str) -> str:
        """A text with the option's place in the YAML file before it."""
        return f"{'.'.join(self.path)}: {text}" if self.path else text


def explained(message: str, parser: ArgumentParser) -> str:
    """One short message for an error of jsonargparse."""
    refusal = Refusal(parser)
    text = _innermost(message, refusal)
    if plain := re.search(r"unrecognized arguments: ([^-]\S*)", text):
        return f"'{plain[1]}' found where an option is expected, as in '-c {plain[1]}'"
    if unknown := re.search(NO_OPTION, text):
        return _unknown(refusal, unknown[1])
    if missing := re.search(r"arguments are required: (.*)", text):
        names = [re.sub(r"^(fit|validate|test|predict)\.", "", name) for name in missing[1].split(", ")]
        return f"{', '.join('.'.join([*refusal.path, name]) for name in names)}: missing, and without a default"
    if name := re.search(NO_CLASS, text):
        return _no_class(refusal, name[1] or name[2])
    if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", text):
        return f"'{choice[1]}' is no verb{nearest(choice[1], re.findall(r'[a-z]+', choice[2]))}; expected {choice[2]}"
    if file := re.search(r"(?:Unable to load config|File does not exist:) [\"'](.*?)[\"']", text):
        near = nearest(file[1], map(str, Path(file[1]).parent.glob("*.yaml")))
        return refusal.located(f"'{file[1]}' is no file{near}; expected options by name, or a YAML file of them")
    if syntax := re.search(r"Problems parsing config: .*\n(\S.*)\n *in .*(line \d+, column \d+)", text, re.DOTALL):
        return f"{syntax[2]}: {syntax[1]}; this is no YAML"
    if content := re.match(r"Unexpected config: (.*)", text, re.DOTALL):
        return f"'{_short(content[1])}' found, expected options by name, as in 'seed: 1'"
    if expected := _expected(refusal):
        trap = TRAP if "text" in expected and re.fullmatch(r"True|False|null|-?[\d.]+", refusal.value) else ""
        return refusal.located(f"'{_short(refusal.value)}' found, expected {expected}{trap}")
    return refusal.located(text)


def _innermost(text: str, refusal: Refusal) -> str:
    """Follow a message inwards, through keys, classes and the kinds of values that an option takes."""
    text = textwrap.dedent(text).strip()
    if key := re.match(r'Parser key "(.+?)":(.*)', text, re.DOTALL):
        refusal.key = key[1]
        refusal.path += key[1].split(".")
        return _innermost(key[2], refusal)
    if inside := re.match(r"Problem with given class_path '(.+?)':\n(.*)", text, re.DOTALL):
        refusal.path.append("init_args")
        refusal.parser, refusal.owner, refusal.reasons = _parser_of(inside[1]), inside[1].rpartition(".")[2], []
        return _innermost(inside[2], refusal)
    if union := re.search(f"^(?:- )?{UNION}", text, re.DOTALL | re.MULTILINE):
        refusal.value = re.sub("^None$", "null", union[2].strip())
        refusal.reasons = re.split(r"^- ", textwrap.dedent(union[1]), flags=re.MULTILINE)[1:]
        return _innermost(min(refusal.reasons, key=_rank), refusal)
    if got := re.search(r"Got value: (.*)", text):
        refusal.value, refusal.reasons = got[1], [*refusal.reasons[1:], text]
    return text


def _rank(reason: str) -> int:
    """How much a reason tells: of a class that was found, of what is wrong in it, of a class that wasn't found."""
    if reason.startswith("Problem with"):
        return 0
    if re.match(NO_CLASS, reason):
        return 2
    return 3 if reason.startswith(("Expected a", "Not a valid")) else 1


def _unknown(refusal: Refusal, option: str) -> str:
    """An option that nobody has: its first key that isn't known, and the nearest one."""
    known = refusal.names
    name = next((part for part in _prefixes(option) if part not in known), option)
    near = nearest(name, known)
    group = name.rpartition(".")[0]
    siblings = [one for one in known if one.rpartition(".")[0] == group]
    others = f"; expected one of {', '.join(siblings)}" if refusal.owner or not near else ""
    what = f"no option of {refusal.owner}" if refusal.owner else "no such option"
    return f"{'.'.join([*refusal.path, name])}: {what}{near}{others}"


def _no_class(refusal: Refusal, name: str) -> str:
    """A class that can't be found, or is of another kind; or text in the place of the options of the only class."""
    kinds = _classes(refusal)
    options = [one for kind in kinds for one in inspect.signature(kind).parameters]
    if len(kinds) == 1:
        return refusal.located(f"'{name}' found, expected options by name: {', '.join(options)}")
    names = sorted(kind.__name__ for kind in kinds)
    expected = ", or ".join([*([", ".join(names)] if names else []), "one of your own as module.Class"])
    return refusal.located(f"'{name}' is no class that fits{nearest(name, names)}; expected {expected}")


def _expected(refusal: Refusal) -> str:
    """Kinds of values that an option takes, in words."""
    kinds: list[str] = []
    for reason in refusal.reasons:
        if kind := re.search(r"Expected an? <class '(\w+)'>", reason):
            kinds.append(VALUE_KINDS.get(kind[1], kind[1]))
        elif size := re.search(r"Expected a tuple with (\d+) elements", reason):
            kinds.append(f"a list of {size[1]}")
        elif choice := re.search(r"Expected a typing\.Literal\[(.*?)\]", reason):
            kinds.append(" or ".join(choice[1].split(", ")) + nearest(refusal.value, re.findall(r"'(.*?)'", choice[1])))
        elif "Not a valid subclass" in reason:
            kinds.append(f"a class ({', '.join(sorted(kind.__name__ for kind in _classes(refusal)))})")
    return " or ".join(dict.fromkeys(kinds))


def _classes(refusal: Refusal) -> list[type]:
    """Classes that an option takes."""
    hints = [getattr(action, "_typehint", None) for action in refusal.parser._actions if action.dest == refusal.key]
    bases = [kind for hint in hints for kind in _within(hint) if kind.__module__ != "builtins"]
    return list(dict.fromkeys(kind for base in bases for kind in _concrete(base)))


def _within(hint: Any) -> Iterator[type]:
    """Classes within a type hint."""
    if inspect.isclass(hint) and not get_args(hint):
        yield hint
    for part in get_args(hint):
        yield from _within(part)


def _concrete(base: type) -> Iterator[type]:
    """A class and those that derive from it, without the abstract and private ones."""
    if not inspect.isabstract(base) and not base.__name__.startswith("_"):
        yield base
    derived: type
    for derived in base.__subclasses__():
        yield from _concrete(derived)


def _parser_of(class_path: str) -> ArgumentParser:
    """Parser of a class's options; without options, if it can't be imported."""
    parser = ArgumentParser(exit_on_error=False)
    with suppress(ImportError, AttributeError, ValueError):
        parser.add_class_arguments(pkgutil.resolve_name(class_path))
    return parser


def _prefixes(option: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    keys = option.split(".")
    return [".".join(keys[: n + 1]) for n in range(len(keys))]


def _short(value: str) -> str:
    """A value as it was found, on one line that isn't too long."""
    line = " ".join(value.split())
    return line if len(line) <= LONGEST_VALUE else f"{line[:LONGEST_VALUE]}..."


def mode_of(name: str, load: Callable[..., Any]) -> str:
    """Name for jsonargparse of a way to load YAML."""
    set_loader(name, load, (yaml.YAMLError,))
    return name


def load_yaml(text: str, path: str = "") -> Any:
    """Content of a YAML file, whose path serves messages.

    Raises:
        ConfigError: a key is there twice, or is something that YAML doesn't read as text.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for mapping in _mappings(root) if root else ():
        _check_keys(mapping, f"{path}, " if path else "")
    return get_loader("yaml")(text)


def refuse_unfit(parser: ArgumentParser, given: Any) -> None:
    """End with an error where an option or a group of options is something that it can't be.

    An option that takes no null is null, which jsonargparse takes for one that is left out, or a group is no mapping.
    """
    hints = {action.dest: getattr(action, "_typehint", None) or action.type for action in parser._actions}
    groups = dict.fromkeys(name.partition(".")[0] for name in hints if "." in name)
    for group in (name for name in groups if hints.get(name) is None):  # the others are options that take a class
        if not isinstance(given.get(group, {}), Mapping | Namespace):
            found = "null" if given[group] is None else repr(given[group])
            parser.error(f"{group}: {found} found, expected a mapping of options")
    for action in parser._actions:
        kinds = {*(get_args(hints[action.dest]) or [hints[action.dest]])}
        takes_null = kinds & {None, NoneType, Any} or action.default is None
        if not takes_null and given.get(action.dest, action) is None:
            parser.error(f"{action.dest}: null found, expected a value{TRAP}")


def _mappings(node: Any) -> Iterator[Any]:
    """All mappings within a node of YAML."""
    if isinstance(node, yaml.MappingNode):
        yield node
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    for part in parts if isinstance(node, yaml.CollectionNode) else ():
        yield from _mappings(part)


def _check_keys(mapping: Any, file: str) -> None:
    """Refuse a key that is there twice, or that is no text."""
    lines: dict[str, int] = {}
    for key, _ in mapping.value:
        line, kind = key.start_mark.line + 1, key.tag.rpartition(":")[2]
        if kind in MEANINGS:
            msg = f"{file}line {line}: YAML reads the key '{key.value}' as {MEANINGS[kind]}, expected a name"
            raise ConfigError(f'{msg}; write it in quotes: "{key.value}"')
        if isinstance(key.value, str) and key.value in lines and key.value != "<<":
            msg = f"{file}line {line}: '{key.value}' is there already in line {lines[key.value]}"
            raise ConfigError(f"{msg}, expected each option once")
        lines[str(key.value)] = line


class OptionsParser(ArgumentParser):
    """jsonargparse's parser, which ends with one short message."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, and end with status 2; parsers inside others leave that to them."""
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"error: {explained(message, getattr(ex, 'subcommand_parser', None) or self)}\n")
