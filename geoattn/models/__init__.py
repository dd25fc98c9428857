"""Networks that solve a task, by their names: `list_models`, `create_model`, `load_model`."""

from geoattn.models.network import Network
from geoattn.models.official import KeyReport, load_official
from geoattn.models.registry import (
    create_model,
    find_task,
    list_models,
    list_tasks,
    load_model,
    load_task,
    model_config,
    register_model,
    register_task,
)

__all__ = [
    "KeyReport",
    "Network",
    "create_model",
    "find_task",
    "list_models",
    "list_tasks",
    "load_model",
    "load_official",
    "load_task",
    "model_config",
    "register_model",
    "register_task",
]
