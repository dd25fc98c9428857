"""What all networks share: checkpoints, in a folder or on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from torch import nn

from geoattn._optional import require
from geoattn.train.task import as_it_is

if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin
    from typing_extensions import Self
else:
    PyTorchModelHubMixin = require("huggingface_hub").PyTorchModelHubMixin

HUB = "hf-hub:"


class Network(nn.Module, PyTorchModelHubMixin):
    """A network that solves a task, made from a frozen dataclass and nothing else: ``Network(config)``.

    Attributes:
        name: Its name in the registry, which `geoattn.models.register_model` gives and ``config.json`` keeps.
        tasks: Names of the tasks it solves.
        config: What it is made of.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    config: Any

    def input_transform(self) -> Callable[[Any], Any]:
        """The transform that makes of a sample, such as a loaded mesh, what ``forward`` reads; it can be pickled."""
        return as_it_is

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:  # type: ignore[override]
        """Write ``model.safetensors`` and ``config.json``, from which `geoattn.models.load_model` makes it again."""
        if "name" not in type(self).__dict__:
            raise ValueError(f"{type(self).__name__} could not be loaded again: give it a name with register_model")
        super().save_pretrained(folder, config={"network": self.name, **asdict(self.config)}, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """Load a checkpoint, in evaluation mode; `geoattn.models.load_model` finds the class by itself.

        Args:
            source: Folder of a checkpoint or of a training run, or ``hf-hub:<owner>/<name>``.
            **options: Of `huggingface_hub.PyTorchModelHubMixin.from_pretrained`, such as ``revision`` and ``token``.

        Raises:
            FileNotFoundError: If there is no such folder, or no checkpoint in it.
        """
        return super().from_pretrained(str(find_checkpoint(source)).removeprefix(HUB), **options).eval()

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, config: Any, **download: Any
    ) -> Self:
        safetensors = require("safetensors.torch")
        file = Path(model_id) / "model.safetensors"
        if not Path(model_id).is_dir():
            file = require("huggingface_hub").hf_hub_download(model_id, file.name, **download)
        if isinstance(config, dict):  # the mixin does not see annotations that are strings
            made = get_type_hints(cls.__init__)["config"]
            config = made(**{field.name: config[field.name] for field in fields(made) if field.name in config})
        model = cls(config)
        try:
            safetensors.load_model(model, file, strict, map_location)
        except (OSError, RuntimeError, require("safetensors").SafetensorError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"{file} is damaged, or does not belong to the config.json beside it: {reason}") from error
        return model


def find_checkpoint(source: str | Path) -> str | Path:
    """The folder that holds a checkpoint: ``source``, or the best or the last one of the training run it is.

    A source that begins with ``hf-hub:`` is on the Hugging Face hub, and given back as it is.

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
    """
    if str(source).startswith(HUB):
        return source
    folder = Path(source)
    if not folder.is_dir():
        hint = f"; a model on the Hugging Face hub is named {HUB}{source}" if str(source).count("/") == 1 else ""
        raise FileNotFoundError(f"{source}: no such folder{hint}")
    for candidate in (folder, folder / "best", folder / "last"):
        if (candidate / "config.json").is_file():
            return candidate
    raise FileNotFoundError(f"{source}: no checkpoint there: no config.json, best/config.json or last/config.json")
