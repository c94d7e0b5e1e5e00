"""docs/environment.md says what the environments do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from rlprune.mdp.episode import ACTION_SIZE
from rlprune.mdp.observe import EPISODE_SLOTS, SLOTS, STEP_SLOTS
from rlprune.mdp.traits import TASK_SLOTS
from rlprune_envs import ChannelPruningEnv, example_task

PAGE = (Path(__file__).parents[2] / "docs" / "environment.md").read_text(encoding="utf-8")


def first_column(heading: str) -> list[str]:
    """Names in backticks in the first column of the table below a heading."""
    section = PAGE.partition(f"\n{heading}\n")[2].partition("\n#")[0].partition("| --- ")[2]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    return [name.strip('"') for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_tables_name_the_slots_in_their_order() -> None:
    tables = (
        ("### Slots that depend on the task", TASK_SLOTS),
        ("### Slots that depend on the episode", EPISODE_SLOTS),
        ("### Slots that depend on the step", STEP_SLOTS),
    )
    for heading, slots in tables:
        assert first_column(heading) == list(slots)
    assert f"({len(SLOTS)},)" in PAGE


def test_tables_name_the_arguments_and_the_actions() -> None:
    arguments = list(inspect.signature(ChannelPruningEnv.__init__).parameters)[1:]
    assert first_column("## Arguments") == arguments
    assert sorted(first_column("## Actions")) == sorted(ACTION_SIZE)


def test_table_names_what_the_last_info_holds() -> None:
    env = ChannelPruningEnv([example_task()])
    env.reset(seed=0)
    over = False
    while not over:
        *_, over, _, info = env.step(env.action_space.sample())
    assert sorted(first_column("## End")) == sorted(info)


def test_examples_run_and_print_what_the_page_says() -> None:
    printed: list[str] = []
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        lines: list[str] = []
        exec(block, {"print": lambda *words, to=lines: to.append(" ".join(map(str, words)))})
        printed.append("\n".join(lines))
    [said] = re.findall(r"```text\n(.*?)\n```", PAGE, flags=re.DOTALL)
    assert printed[0] == said
    assert printed[2] == "True True"
