"""Writes the model card, with what people should know before they use a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.lineage.provenance import model_stage
from export.precision_forms import DESCRIPTIONS, Form
from realtime.bundle.spec import Sampler, Spec, Stage
from train.checkpoints.checkpoint import Checkpoint, CheckpointInfo
from train.data.replays import held_out_in_words, replay_command
from train.recipe import Diffusion, Finetune, Preprocessing
from train.store.fingerprints import SYNTHETIC_FILE

_CARD = """\
# {name}

Decodes what subject {subject} was shown from {length} volumes of fMRI (TR {tr_s:.3f} s), the first of them
{offset} volumes after the picture's onset: `realtime serve --subject {subject} --bundle DIR`.

{recordings}

## Model

| part | size |
|---|---|
| region | {n_voxels} voxels of a grid of {grid} |
| brain module | {n_voxels} x {length} z-scores to {tokens} tokens of {token_width}; {brain} M parameters |
| diffusion model | UNet on latents of {latents}, {tuned}; {unet} M parameters |
| VAE | latents to pictures of {height} x {width} px; {vae} M parameters with its encoder |

{training}

{held_out}

Preprocessing: cosine drifts slower than {high_pass_hz:g} Hz removed, z-scores, settled after {warmup}
volumes.{drift}

Samplers, best first; the runtime takes the first that the time between volumes allows: {samplers}.{noise}

## How well it decodes

{quality}

## Files

{files}

{form} `parity.html` compares every step, graph by graph and in whole decodes.

## How close each step stayed to the one before

{parity}

Differences are the largest ones, relative to the largest number of what is compared; `noise` is what the UNet
predicts, `image` counts levels of 255 beyond the one that rounding can flip. The hash of every step is in
`bundle.json`.

## Limits

{limits}
"""

_SYNTHETIC = """\
**The recordings are synthetic.** No person was scanned: a simulated cortex looked at scenes of OpenMoji
pictures (seed {seed}, settings {settings}). What this bundle decodes says nothing about brains.

Pictures: [OpenMoji](https://openmoji.org), the open-source emoji and icon project, licence
[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/); turned, scaled and drawn on gradients.
The model learned from them and its pictures derive from them: share them under the same licence."""

_RECORDED = """\
The recordings are those that the checkpoint was trained on; it carries no note of a synthetic subject. Use
this bundle under the terms of their data set."""

_NOT_EVALUATED = "Not measured when this bundle was made: `python -m train evaluate` does."

_LIMITS = (
    "Made for subject {subject} alone, on this grid, at this TR: the runtime refuses other runs. On another "
    "grid a run needs a bundle with a reference volume, at another TR `--resample`.",
    "Measured where it was exported, on the engines that `parity.html` names, and on no others.",
    "Parity says that the bundle computes what the trained model computes, not that the model is right.",
    "A picture shows what the window of {length} volumes holds; the haemodynamic response alone puts it "
    "{delay_s:.1f} s behind what was seen.",
    "The diffusion model completes what the brain leaves open: a sharp picture is no sign of a sure one.",
)


def card(
    spec: Spec,
    stages: Iterable[Stage],
    sizes: Mapping[str, int],
    checkpoint: Checkpoint,
    form: Form,
    quality: str | None = None,
) -> str:
    """The text of a bundle's ``README.md``.

    :param sizes: sizes of the bundle's files in bytes
    :param quality: how well the model decodes, in Markdown
    :raises ExportError: the checkpoint's ``synthetic.json`` cannot be read
    """
    recipe = checkpoint.recipe
    stages = list(stages)
    merged = next(stage for stage in stages if stage.name == model_stage(checkpoint))
    window = spec.decoders[0].window
    facts = {
        "subject": spec.subject,
        "length": window.length_volumes,
        # From the picture's onset to the end of the window's last volume.
        "delay_s": (window.delay_volumes + 1) * spec.tr_s,
    }
    return _CARD.format(
        **facts,
        name=spec.name,
        tr_s=spec.tr_s,
        offset=window.offset_volumes,
        recordings=_recordings(checkpoint.folder),
        n_voxels=spec.roi.n_voxels,
        grid=_times(spec.roi.shape),
        tokens=spec.condition_shape[0],
        token_width=spec.condition_shape[1],
        latents=_times(spec.latent_shape),
        height=spec.image_size_px[0],
        width=spec.image_size_px[1],
        tuned=_tuned(recipe.finetune),
        brain=_millions(merged, "brain"),
        unet=_millions(merged, "image_unet"),
        vae=_millions(merged, "vae"),
        training=_training(checkpoint),
        held_out=_held_out(checkpoint),
        drift=_drift(recipe.preprocessing),
        high_pass_hz=spec.preprocessing.high_pass_hz,
        warmup=spec.preprocessing.warmup_volumes,
        samplers=", ".join(f"`{s.name}` with guidance {_guidance(s)}" for s in spec.samplers),
        noise=_noise(recipe.diffusion),
        form=DESCRIPTIONS[form],
        quality=quality or _NOT_EVALUATED,
        files=_table(("file", "MB"), [(f"`{name}`", f"{size / 1e6:.2f}") for name, size in sizes.items()]),
        parity=_parity(stages),
        limits="\n".join(f"- {limit.format(**facts)}" for limit in _LIMITS),
    )


def _guidance(sampler: Sampler) -> str:
    n_guided = sum(guidance != 1 for guidance in sampler.guidance)
    strength = f"{sampler.guidance[0]:g}"
    return strength if n_guided in (0, len(sampler.guidance)) else f"{strength} in {n_guided} steps"


def _noise(diffusion: Diffusion) -> str:
    """A warning about recipes that sample with DDPM, because a bundle's tables add no noise."""
    if diffusion.sampler == "ddim":
        return ""
    return (
        "\n**Its recipe samples with DDPM, whose steps add noise; these add none:** what `train evaluate` "
        "measured with\nDDPM is not of what is decoded here; use `train evaluate --sampler ddim`."
    )


def _recordings(folder: Path) -> str:
    """The paragraph on the recordings; a synthetic subject's checkpoint has a copy of ``synthetic.json``."""
    path = folder / SYNTHETIC_FILE
    if not path.exists():
        return _RECORDED
    try:
        made: dict[str, Any] = json.loads(path.read_bytes())
        return _SYNTHETIC.format(seed=made["seed"], settings=made["settings_sha256"][:12])
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path}: expected the file that `python -m sim synthesize` writes, got {error!r}"
        ) from error


def _held_out(checkpoint: Checkpoint) -> str:
    if checkpoint.info.imported_from:
        return "Held out, by their account: the images that every subject saw."
    runs = sorted(checkpoint.subject.held_out_runs)
    # The base model's training is not the decoder's: it may have seen what other subjects are shown.
    said = f"Held out: {held_out_in_words(runs)}. The decoder's training used no picture that is shown there."
    return f"{said}\nReplay one: `{replay_command(runs[0], 'DIR')}`." if runs else said


def _drift(preprocessing: Preprocessing) -> str:
    """A warning about decoders trained with linear drift, because the runtime removes cosines only."""
    if preprocessing.drift == "cosine" or "whole_run" not in preprocessing.train_on:
        return ""
    return (
        "\n**It was trained on runs of which a line was removed, not cosines:** what it is fed here has less "
        "slow signal\nthan what it learned from."
    )


def _parity(stages: Iterable[Stage]) -> str:
    rows = [
        (stage.name, stage.notes.get("against", ""), what, f"{value:.2g}", stage.notes.get("limit", ""))
        for stage in stages
        for what, value in stage.parity.items()
    ]
    return _table(("step", "against", "what", "difference", "limit"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _times(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


def _tuned(finetune: Finetune) -> str:
    """The tuned part of the UNet."""
    if finetune.layers == "lora":
        return f"LoRA of rank {finetune.rank} merged"
    return "as pretrained" if finetune.layers == "none" else f"tuned: {finetune.layers}"


def _training(checkpoint: Checkpoint) -> str:
    """The data, the length and the start of the training."""
    info = checkpoint.info
    if info.imported_from:
        return (
            "Trained by the paper's authors, who released it (facebook/dynadiff): imported from their "
            f"checkpoint `{info.imported_from}`;\non which presentations and for how long is theirs to tell."
        )
    sessions = f" of the first {info.n_sessions} session(s)" if info.n_sessions else ""
    found = checkpoint.subject.found
    on_disk = f"\n{found.in_words(checkpoint.subject.number)}" if found else ""
    return (
        f"Trained on {checkpoint.subject.n_train_trials} presentations{sessions} {_method(info)} with seed "
        f"{info.seed}.{_beginning(info)}{on_disk}"
    )


def _method(info: CheckpointInfo) -> str:
    if info.method == "brain-diffuser":
        return "by ridge regression (the paper's baseline Brain-Diffuser)"
    fit = info.recipe.fit
    return f"for {fit.steps} steps of {fit.batch}"


def _beginning(info: CheckpointInfo) -> str:
    if info.parent is None:
        return ""
    subjects = ", ".join(map(str, info.parent.subjects))
    return (
        f"\nIt began with a model of subject(s) {subjects} (checkpoint {info.parent.identity}); the layers "
        "that read voxels began anew."
    )


def _millions(merged: Stage, part: str) -> str:
    return f"{int(merged.notes[f'{part}_parameters']) / 1e6:.1f}"
