"""Models out: a fine-tuned model, or several as one, in a folder that MONAI runs by itself.

MONAI cannot build a decoder of ours or an average of networks from a configuration. So the bundle
has the whole model as TorchScript, as bundles may (``models/model.ts``): a program of tensor
operations, which is read without running any Python. Beside it are the weights as `predict` reads
them.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.data.torchscript_utils import save_net_with_metadata
from torch import Tensor, nn

import neurofoundry
from neurofoundry.contracts.cohort import is_phantom
from neurofoundry.contracts.models import PREDICTIONS, ModelPlan, files_of
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import UsageError
from neurofoundry.finetune.network import Network
from neurofoundry.inference.members import ModelFolder, read_members
from neurofoundry.nn.segmenter import Segmenter, shares_of
from neurofoundry.runtime import templates
from neurofoundry.runtime.files import atomic, hash_file, write_json, write_text
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Segmentation, Task
from neurofoundry.weights.bundle import PREPROCESSING, SCHEMA, describe_input
from neurofoundry.weights.hub import front_matter

CARD = Path(__file__).with_name("card.md")

PROGRAM = "models/model.ts"

HUB = {
    "classification": "image-classification",
    "regression": "image-to-number",
    "segmentation": "image-segmentation",
}
"""Kinds of tasks as the Hugging Face hub calls them."""


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a model, or several as one, and no encoder."""
    return (folder / "model.safetensors").exists() or (folder / "ensemble.json").exists()


def identity(folder: Path) -> dict[str, str]:
    """Return the hashes of the files that make a model. Raises DataError."""
    return {name: hash_file(folder / name) for name in files_of(folder) if (folder / name).exists()}


def export(work: Workspace, *, model: Path, authors: str) -> None:
    """Write a model for others: what `predict` reads, a MONAI bundle and a model card.

    Whom it was trained or judged on is left out: no table of finetune is copied. Raises DataError.
    """
    members = read_members(model)
    for name in files_of(model):
        (work.dir / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, work.dir / name)
    for folder in ("configs", "models"):
        (work.dir / folder).mkdir(exist_ok=True)
    described = metadata(members, authors)
    write_json(work.dir / "configs/metadata.json", described)
    write_json(work.dir / "configs/inference.json", inference(members[0].plan))
    _write_program(work.dir / PROGRAM, members, described)
    licence = members[0].plan.encoder.licence
    write_text(work.dir / "LICENSE", f"The weights are licensed under: {licence}\n")
    write_text(work.dir / "README.md", _card(members, authors, synthetic=_synthetic(members)))
    work.summary |= {"task": str(members[0].plan.task["name"]), "members": len(members)}


class Answer(nn.Module):
    """What a model says of z-scores (batch, contrasts, z, y, x), all of its members as one.

    Probabilities (batch, classes), a value (batch, 1), or of each voxel the probabilities (batch,
    1 + classes, z, y, x).
    """

    def __init__(self, members: Sequence[Network | Segmenter], *, mirror: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mirror = mirror
        first = members[0]
        self.classes = isinstance(first, Network) and first.head.out_features > 1

    def forward(self, volumes: Tensor) -> Tensor:
        """Return the mean of the members: of log odds of classes, else of what they say."""
        answer = torch.stack([self._one(member, volumes) for member in self.members]).mean(0)
        return answer.softmax(1) if self.classes else answer

    def _one(self, member: nn.Module, volumes: Tensor) -> Tensor:
        if isinstance(member, Segmenter):
            return shares_of(member, volumes, mirror=self.mirror)
        answer: Tensor = member(volumes)
        return answer


def read_answer(members: Sequence[ModelFolder]) -> Answer:
    """Read all members. Raises DataError."""
    networks = [member.read_network() for member in members]
    return Answer(networks, mirror=members[0].mirror).eval()


def _write_program(path: Path, members: Sequence[ModelFolder], described: dict[str, Any]) -> None:
    """Write the model as TorchScript."""
    plan = members[0].plan
    shape = len(plan.weights.contrasts), *plan.volumes.grid["shape_xyz"][::-1]
    with torch.no_grad():
        example = torch.zeros(1, *shape)
        program = torch.jit.trace(read_answer(members), example, check_trace=False)
    content = io.BytesIO()
    save_net_with_metadata(program, content, include_config_vals=False, meta_values=described)
    with atomic(path) as temporary:
        _without_places(content, temporary)


def _without_places(content: io.BytesIO, path: Path) -> None:
    """Write TorchScript without the names of the source files that its operations come from."""
    with zipfile.ZipFile(content) as read, zipfile.ZipFile(path, "w") as write:
        for item in read.infolist():
            if not item.filename.endswith(".debug_pkl"):
                write.writestr(item, read.read(item))


def metadata(members: Sequence[ModelFolder], authors: str) -> dict[str, Any]:
    """Return configs/metadata.json, which MONAI asks of a bundle."""
    plan, task = members[0].plan, members[0].task
    return {
        "schema": SCHEMA,
        "version": neurofoundry.__version__,
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel")},
        "name": str(plan.task["name"]),
        "task": task.question,
        "description": f"{task.kind.capitalize()} of {' and '.join(plan.weights.contrasts)} "
        "volumes of brains, fine-tuned from "
        f"{plan.initialization.encoder} on {plan.learned_from.persons} persons. Not for diagnosis.",
        "authors": authors,
        "copyright": f"Weights: {plan.encoder.licence}",
        "data_type": "nibabel",
        "intended_use": "Research. Not for diagnosis.",
        "network_data_format": {
            "inputs": {"image": describe_input(plan.weights)},
            "outputs": {"pred": _describe_output(plan, task)},
        },
    }


def _describe_output(plan: ModelPlan, task: Task | Segmentation) -> dict[str, Any]:
    channels = _channels(task)
    outlines = isinstance(task, Segmentation)
    return {
        "type": "probabilities" if task.classes else "array",
        "format": "segmentation" if outlines else "classes" if task.classes else "value",
        "num_channels": len(channels),
        "spatial_shape": plan.volumes.grid["shape_xyz"][::-1] if outlines else [],
        "dtype": "float32",
        "value_range": [0, 1] if task.classes else [],
        "is_patch_data": False,
        "channel_def": channels,
    }


def _channels(task: Task | Segmentation) -> dict[str, str]:
    """Return what each channel of the output means."""
    names = task.classes or (task.column,)
    names = ("background", *names) if isinstance(task, Segmentation) else names
    return {str(number): name for number, name in enumerate(names)}


def inference(plan: ModelPlan) -> dict[str, Any]:
    """Return configs/inference.json: `run` answers for one scan's volumes of preprocess.

    ``image`` is that of T1w, ``image_CONTRAST`` another; without it, its channel is zeros.
    """
    task, others = plan.predicts, plan.weights.contrasts[1:]
    channels = ["@t1w"]
    channels += [
        f"(@preprocessing(@image_{name}).as_tensor() if @image_{name} else 0 * @t1w)"
        for name in others
    ]
    common = {
        "imports": ["$import json", "$import nibabel", "$import pathlib", "$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "image": "volume.nii",
        **{f"image_{name}": None for name in others},
        "output": _output(task),
        "network_def": f"$torch.jit.load(@bundle_root + '/{PROGRAM}', map_location=@device)",
        "network": "$@network_def.eval()",
        "preprocessing": PREPROCESSING,
        "inferer": {"_target_": "SimpleInferer"},
        "t1w": "$@preprocessing(@image).as_tensor()",
        "volume": f"$torch.cat([{', '.join(channels)}])[None].to(@device)",
        "answer": "$@inferer(@volume, @network).detach().cpu()[0]",
    }
    if isinstance(task, Segmentation):
        voxels = "@answer.argmax(0).numpy().transpose(2, 1, 0).astype('uint8')"
        mask = f"$nibabel.Nifti1Image({voxels}, nibabel.load(@image).affine)"
        return {**common, "mask": mask, "run": ["$nibabel.save(@mask, @output)"]}
    names = list(_channels(task).values())
    if odd := [name for name in names if name.startswith(("$", "@", "%"))]:
        raise UsageError(
            f"The class {odd[0]!r} begins as what MONAI runs or looks up when it reads a bundle. "
            "Name the classes otherwise (tasks.NAME.classes), and fine-tune again."
        )
    text = "$json.dumps(dict(zip(@names, @answer.tolist())))"
    run = "$pathlib.Path(@output).write_text(@text)"
    return {**common, "names": names, "text": text, "run": [run]}


def _output(task: Task | Segmentation) -> str:
    return "mask.nii.gz" if isinstance(task, Segmentation) else "answer.json"


def _card(members: Sequence[ModelFolder], authors: str, *, synthetic: bool) -> str:
    """Return README.md: the model card, with the front matter that the hub reads."""
    plan, task = members[0].plan, members[0].task
    outlines = isinstance(task, Segmentation)
    words = "Of every voxel of the grid" if outlines else "Of a scan"
    context = {
        "front_matter": front_matter(
            licence=plan.encoder.licence,
            synthetic=synthetic,
            tags=["monai"],
            pipeline_tag=HUB[task.kind],
            license_link="LICENSE",
        ),
        "name": plan.task["name"],
        "question": task.question,
        "plan": plan,
        "members": len(members),
        "outlines": outlines,
        "others": plan.weights.contrasts[1:],
        "output": _output(task),
        "words": f"{words} {'the probability of each class' if task.classes else 'one value'}.",
        "channels": _channels(task),
        "authors": authors,
        "synthetic": synthetic,
    }
    return templates.render(CARD, context) + "\n"


def _synthetic(members: Sequence[ModelFolder]) -> bool:
    """Return whether all persons were phantoms, as far as the tables beside the models tell."""
    tables = [member.folder / "predictions.tsv" for member in members]
    persons = {
        person
        for path in tables
        if path.exists()
        for person in read_table(path, PREDICTIONS)["person"]
    }
    return bool(persons) and all(map(is_phantom, persons))
