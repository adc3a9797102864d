"""The ONNX standard's own tests of its ops, all of them, through `q8c.onnx_backend`.

`unsupported.txt` lists what cannot be compiled, with the reason. What is not on it must pass, what is on it must be
refused, so the list can only shrink.
"""
from __future__ import annotations

import fnmatch
import importlib
import pkgutil
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnx.backend.test.case.node as standard
import pytest
from onnx.backend.test.runner import Runner

from q8c import onnx_backend
from q8c.errors import Error, InputError

PREFIX = f"{standard.__name__}."
MODULES = sorted(m.name.removeprefix(PREFIX) for m in pkgutil.walk_packages(standard.__path__, PREFIX) if not m.ispkg)
LIST = Path(__file__).with_name("unsupported.txt")


def unsupported() -> dict[str, dict[str, str]]:
    """Patterns of names of tests, and the reasons, by the module of the standard that they are in."""
    found: dict[str, dict[str, str]] = {}
    module = ""
    for line in LIST.read_text().splitlines():
        if line.startswith(" "):
            pattern, _, reason = line.strip().partition("  ")
            assert pattern not in found[module] and reason.strip(), line
            found[module][pattern] = reason.strip()
        elif line and not line.startswith("#"):
            module = line.removesuffix(":")
            assert module not in found, line
            found[module] = {}
    return found


UNSUPPORTED = unsupported()


def cases_of(module: str) -> list[Any]:
    """The standard's test cases in one module; importing it makes them."""
    before = len(standard._NodeTestCases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of divisions by zero that are meant
        importlib.import_module(PREFIX + module)
    return standard._NodeTestCases[before:]


def outcome(case: Any) -> str:
    """"" if it passes, "refused" and the error if q8c says that it cannot, else what is wrong."""
    try:
        model = onnx_backend.prepare(case.model, threads=1)
        for inputs, expected in case.data_sets:
            found = model.run([array(x) for x in inputs])
            Runner.assert_similar_outputs([array(y) for y in expected], found, case.rtol, case.atol)
    except InputError as error:
        return f"the inputs are refused: {error}"
    except Error as error:
        return f"refused: {error}"
    except AssertionError as error:
        return f"wrong: {' '.join(str(error).split())}"
    return ""


def array(x: Any) -> Any:
    """Tensors that numpy has no type for are given as messages."""
    return onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x


@pytest.mark.parametrize("module", MODULES)
def test_standard(module: str) -> None:
    patterns = UNSUPPORTED.get(module, {})
    used: set[str] = set()
    problems = []
    for case in cases_of(module):
        listed = [p for p in patterns if fnmatch.fnmatchcase(case.name, p)]
        used.update(listed)
        found = outcome(case)
        if listed and not found.startswith("refused"):
            problems.append(f"{case.name} is on the list of what is unsupported ({listed[0]}), but "
                            f"{found or 'passes'}")
        elif found and not listed:
            problems.append(f"{case.name}: {found}")
    problems += [f"the pattern {p} on the list fits no test" for p in patterns if p not in used]
    assert not problems, "\n".join(problems)


def test_the_list_names_modules_of_the_standard() -> None:
    assert UNSUPPORTED.keys() <= set(MODULES)
