"""Specifications of the other commands: they list, draw, or convert files."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from rose.diffusion.steps import MAX_STEPS, PACKAGES
from rose.diffusion.steps import STEPS as DENOISING_STEPS
from rose.layer.settings import BlockSize, Sparsity
from rose.model.settings import MAX_SEED, NamedSettings
from rose.recipe import parts as part
from rose.recipe.steps import STEPS, Json
from rose.spec import Real, Spec, SpecField, Whole, one_or_several, setting

Folder = Annotated[part.Name, setting("folder of the model", form="place", metavar="FOLDER")]
Prompts = Annotated[part.Name, setting("what to draw, one prompt a line", metavar="FILE.txt")]
PACKAGED = "garments"
ABSENT = "–"  # a value that a recipe does not have


class Models(Spec):
    """List the models that work offline, the pruning methods and the orders."""

    run: ClassVar[str] = "models"


class RunRecipe(Spec):
    """Do what a recipe says, again or with some fields changed."""

    run: ClassVar[str] = "run"

    recipe: Annotated[part.Name, setting("a recipe.yaml, or a folder that has one", form="place", metavar="RECIPE")]
    changes: Annotated[
        tuple[str, ...],
        setting(
            "fields to change, such as sparsity=0.5; output=FOLDER says where the result goes",
            form="place",
            metavar="NAME=VALUE",
        ),
    ] = ()


class WriteReport(Spec):
    """Write finished runs as one HTML file, two of them side by side."""

    run: ClassVar[str] = "report"

    folders: Annotated[
        tuple[part.Name, ...],
        BeforeValidator(one_or_several),
        setting("folder that analyze, prune, slim or tune has written", form="place", metavar="FOLDER"),
    ]
    output: Annotated[part.File, setting("needs no network to be read", metavar="FILE.html")]


class Inspect(Spec):
    """Look into a file of weights, or at what differs between two; no model is built."""

    run: ClassVar[str] = "inspect"

    file: Annotated[part.Name, setting("folder, .safetensors or .gguf file", form="place", metavar="FILE", path=True)]
    other: Annotated[
        part.Name | None, setting("say how the tensors of this one differ", form="place", metavar="OTHER", path=True)
    ] = None
    output: Annotated[part.File, setting("write a row for every tensor", metavar="FILE.csv")] | None = None
    json_file: Json | None = None


class Export(Spec):
    """Write a model as a GGUF file, which llama.cpp runs; zeros stay zeros."""

    run: ClassVar[str] = "export"

    folder: Annotated[Folder, setting("of the model; or a packaged name or .gguf file")]
    to: Annotated[Literal["gguf"], setting("the format")] = "gguf"
    type: Annotated[
        Literal["f16", "q8_0", "q4_0"], setting("number format of the layers' weights; others would lose zeros")
    ] = "f16"
    embeddings: Annotated[
        Literal["auto", "f32"], setting("as llama.cpp stores them in a file of this type, or exact")
    ] = "auto"
    output: Annotated[part.File, setting("default: FOLDER-TYPE.gguf", metavar="FILE.gguf")] | None = None


class App(Spec):
    """Open the app in a browser; takes options of `streamlit run`, too."""

    run: ClassVar[str] = "app"

    port: Annotated[Whole, setting("on this machine", ge=1, le=65535)] = 8501


class DrawingPart(Spec):
    """A diffusion model, and how it draws."""

    model: Annotated[part.Name, setting("packaged name, Hub id or folder")] = PACKAGED
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], setting("number format of the weights")] = "float32"
    steps: Annotated[Whole, setting("denoising steps", ge=1, le=MAX_STEPS)] = DENOISING_STEPS
    seed: Annotated[Whole, setting("seed of the noise", ge=0, le=MAX_SEED)] = 0
    guidance: Annotated[Real, setting("guidance scale (default: the pipeline's own)")] | None = None


class PicturesPart(Spec):
    """Which pictures calibrate, and how much each denoising step counts."""

    step_weights: Annotated[
        Literal["log_decrease", "uniform", "log_increase", "linear"], setting("how much each denoising step counts")
    ] = "log_decrease"
    packages: Annotated[Whole, setting("groups of layers, pruned one after another", ge=1)] = PACKAGES
    prompts: Annotated[Prompts, setting("calibration prompts, one a line")] | None = None
    samples: Annotated[Whole, setting("calibration pictures", ge=1)] = 50
    output: Annotated[part.Output, setting("new folder for the pipeline")]


class DiffusePrune(PicturesPart, NamedSettings, DrawingPart):
    """Prune a pipeline's transformer or UNet and save the pipeline."""

    run: ClassVar[str] = "diffuse prune"

    sparsity: Sparsity = "0.5"
    block_size: Annotated[BlockSize | None, setting("columns per block (default: 128, fewer in a small model)")] = None  # type: ignore[assignment]


class DiffuseSample(DrawingPart):
    """Draw pictures into a PNG file."""

    run: ClassVar[str] = "diffuse sample"

    classes: Annotated[
        part.Name | None, setting("of the packaged model: names of garments, or numbers", metavar="A,B")
    ] = None
    prompts: Prompts | None = None
    count: Annotated[Whole, setting("pictures, classes in turn", ge=1)] = 10
    beside: Annotated[
        part.Name | None, setting("draw the same from the same noise in a row above", metavar="MODEL")
    ] = None
    output: Annotated[part.File, setting("the picture", metavar="FILE.png")]


_RUN: tuple[type[Spec], ...] = (*STEPS, DiffusePrune)
SPECS: dict[str, type[Spec]] = {spec.run: spec for spec in _RUN}
"""The specifications that recipes can run, by name."""
_TOOLS = (RunRecipe, WriteReport, Inspect, Export, DiffusePrune, DiffuseSample, App)
_ALL: tuple[type[Spec], ...] = (Models, *STEPS, *_TOOLS)
COMMANDS = {spec.run: spec for spec in _ALL}
"""The commands of the command line by name, in the order of the help."""


def settings_beside(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[SpecField, list[str]]]:
    """Each declared field of the recipes with its value in every recipe as text; "–" in recipes without the field.

    `recipes` come from `RunReport.recipe`: "run" and the values of its fields.
    """
    runs = {str(recipe.get("run")) for recipe in recipes}
    specs = [spec for name, spec in SPECS.items() if name in runs] or list(SPECS.values())
    fields = {name: field for spec in reversed(specs) for name, field in spec.fields().items()}
    return [
        (fields[name], [setting_text(recipe.get(name)) for recipe in recipes])
        for name in dict.fromkeys(name for spec in specs for name in spec.fields())
        if fields[name].extra["kept"] and any(recipe.get(name) is not None for recipe in recipes)
    ]


def setting_text(value: Any) -> str:
    """A value of a recipe for people: "0.7", "yes", "a, b", "rank_ratio=0.3"; "–" for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={setting_text(each)}" for name, each in value.items()) or ABSENT
    if isinstance(value, list | tuple):
        return ", ".join(map(setting_text, value)) or ABSENT
    return ABSENT if value is None else f"{value:g}" if isinstance(value, float) else str(value)
