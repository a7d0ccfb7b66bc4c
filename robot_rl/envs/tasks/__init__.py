"""The tasks, by name. Written in the workspace frame; they know neither arm nor engine."""

from robot_rl.envs.tasks.base import Task, TaskView
from robot_rl.envs.tasks.door import Door
from robot_rl.envs.tasks.drawer import Drawer
from robot_rl.envs.tasks.insertion import Insertion
from robot_rl.envs.tasks.pick_place import PickPlace
from robot_rl.envs.tasks.push import Push
from robot_rl.envs.tasks.reach import Reach
from robot_rl.errors import unknown_name

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Reach, Push, PickPlace, Drawer, Door, Insertion)
}


def list_tasks() -> list[str]:
    """Names of the tasks."""
    return list(TASKS)


def make_task(name: str) -> Task:
    """The task of that name (case does not matter).

    Raises:
        InvalidInputError: no such task; the message lists those there are.
    """
    for known, task in TASKS.items():
        if known.lower() == str(name).lower():
            return task()
    raise unknown_name("task", name, TASKS)


__all__ = [
    "TASKS",
    "Door",
    "Drawer",
    "Insertion",
    "PickPlace",
    "Push",
    "Reach",
    "Task",
    "TaskView",
    "list_tasks",
    "make_task",
]
