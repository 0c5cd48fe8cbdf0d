"""Ways to plant a mistake in every template that is lowered."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from simulator.placement.plan import Template, with_frees
from simulator.placement.program import Program

Change = Callable[[Template], Template]


def changed(monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """Let every template that is lowered from now on be the changed one."""
    lowered = Program.template
    made: dict[int, Template] = {}

    def template(self: Program, microbatches: int, warm: bool = False) -> Template:
        sound = lowered(self, microbatches, warm)
        return made.setdefault(id(sound), change(sound))

    monkeypatch.setattr(Program, "template", template)


def first(template: Template, operator: str) -> int:
    return next(i for i, task in enumerate(template.tasks) if task.operator == operator)


def without(template: Template, index: int, renamed: dict[str, str]) -> Template:
    """A template without one task; who read its results reads something else, at the right times freed."""
    tasks = [
        replace(task, reads=tuple(renamed.get(name, name) for name in task.reads), frees=(),
                after=tuple(i - (i > index) for i in task.after if i != index))
        for number, task in enumerate(template.tasks) if number != index
    ]  # fmt: skip
    return replace(template, tasks=with_frees(tasks, ()), outcome=template.outcome - 1, imports=())


def edited(template: Template, index: int, **changes: object) -> Template:
    tasks = list(template.tasks)
    tasks[index] = replace(tasks[index], **changes)
    return replace(template, tasks=tuple(tasks))
