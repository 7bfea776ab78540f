"""Makes a bank: one bundle with a general decoder and specialised ones, from bundles with one decoder each.

The general bundle's files are copied unchanged. Each specialised bundle adds its brain graph, its null
condition and its denoise graph, unless an equal denoise graph is in the bank already. All decoders share the
VAE. Parity figures are copied from the bundles, because no graph changes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import onnx

from export.atomic_folder import check_replaceable, staging
from export.bundle.build import CARD_FILE
from export.bundle.spec import hash_files
from export.errors import ExportError
from export.graphs.onnx_model import files_sha256
from export.parity import parity_report
from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.spec import Decoder, Stage

_ALIKE = (
    *("subject", "tr_s", "roi", "preprocessing", "drift_prior"),
    *("latent_shape", "condition_shape", "samplers"),
)
"""Fields of the specification that all decoders of a bank must share."""


def make_bank(general: Path, specialised: Sequence[Path], out: Path) -> Bundle:
    """Make a bank; ``out`` is written completely or stays as it was.

    Specialised decoders are named after the start of their windows: ``after-5`` starts five volumes after a
    picture's onset, ``before-4`` four volumes before it.

    :raises ExportError: a bundle is itself a bank, two bundles have the same window, or they do not match
    :raises BundleError: a folder is not a bundle
    """
    check_replaceable(out)
    first = Bundle.open(general)
    with staging(out) as folder:
        bank = _Bank(folder, first)
        for source in specialised:
            bank.add(Bundle.open(source))
        bundle_spec.write_spec(folder, bank.spec())
        Bundle.open(folder)
    return Bundle.open(out)


class _Bank:
    """A bank that is being made."""

    def __init__(self, folder: Path, general: Bundle) -> None:
        _check_single(general)
        self._folder, self._general = folder, general
        for name in general.spec.files:
            shutil.copyfile(general.folder / name, folder / name)
        decoder = general.decoder()
        self._decoders = [decoder]
        self._graphs = dict(general.spec.graphs)
        self._stages = list(general.spec.provenance)
        self._specs = [general.spec]
        self._denoisers = {_content(general.graph_path(decoder.denoise)): decoder.denoise}
        """Names of denoise graphs by the hash of what they compute."""
        self._rows: list[str] = []

    def add(self, source: Bundle) -> None:
        """Add the decoder of a specialised bundle."""
        _check_single(source)
        self._check_alike(source)
        own = source.decoder()
        if own.window.delay_volumes < 0:
            raise ExportError(
                f"expected a window that ends after the picture's onset, but that of {source.folder} ends "
                f"{-own.window.delay_volumes} volumes before it, when no marker has announced the picture; "
                "leave it out"
            )
        name = _name(own.window.offset_volumes)
        if name in (decoder.name for decoder in self._decoders):
            raise ExportError(
                f"expected specialised decoders with different windows, but {source.folder} is the second "
                f"whose window starts {own.window.offset_volumes} volumes after the onset; leave one out"
            )
        null_condition = f"null_condition-{name}.npy"
        shutil.copyfile(source.folder / own.null_condition, self._folder / null_condition)
        for path in map(Path, {parity_report.JSON_FILE, parity_report.PAGE_FILE} & source.spec.files.keys()):
            shutil.copyfile(source.folder / path, self._folder / f"{path.stem}-{name}{path.suffix}")
        self._stages += (
            msgspec.structs.replace(stage, name=f"{name}: {stage.name}") for stage in source.spec.provenance
        )
        self._decoders.append(
            Decoder(
                name=name,
                graph=self._take(source, own.graph, f"{own.graph}-{name}"),
                window=own.window,
                denoise=self._denoiser(source, name),
                null_condition=null_condition,
            )
        )
        self._specs.append(source.spec)
        self._rows.append(f"| `{name}` | {own.window.offset_volumes} | `{source.sha256}` |")

    def spec(self) -> bundle_spec.Spec:
        """Complete the bank's model card, and return the content of its ``bundle.json``."""
        card = self._folder / CARD_FILE
        card.write_text(card.read_text(encoding="utf-8") + self._chapter(), encoding="utf-8")
        trained_sessions = self._trained_sessions()
        return msgspec.structs.replace(
            self._general.spec,
            decoders=tuple(self._decoders),
            graphs=self._graphs,
            trained_sessions=trained_sessions,
            held_out_runs=tuple(sorted(self._held_out_runs())) if trained_sessions else (),
            files=hash_files(self._folder),
            provenance=tuple(self._stages),
        )

    def _trained_sessions(self) -> tuple[int, ...]:
        """The sessions of which any decoder was trained on runs; empty where one decoder does not say."""
        if not all(spec.trained_sessions for spec in self._specs):
            return ()
        return tuple(sorted({each for spec in self._specs for each in spec.trained_sessions}))

    def _held_out_runs(self) -> set[tuple[int, int]]:
        """Session and run of the runs on which none of the decoders was trained."""
        runs = {run for spec in self._specs for run in spec.held_out_runs}
        return {run for run in runs if not any(spec.was_trained_on(*run) for spec in self._specs)}

    def _chapter(self) -> str:
        rows = "\n".join(self._rows)
        return (
            "\n## Specialised decoders\n\n"
            "This bundle is a bank: beside the general decoder, of which all above tells, it holds "
            "specialised ones, each from a bundle of its own. Each decodes, of every picture, the one window "
            "that begins so many volumes after its onset.\n\n"
            f"| decoder | window starts, volumes after onset | from bundle |\n|---|---|---|\n{rows}\n"
        )

    def _denoiser(self, source: Bundle, name: str) -> str:
        """Name of the bank's denoise graph for a bundle: an equal graph, or one that is added."""
        own = source.decoder().denoise
        content = _content(source.graph_path(own))
        if content not in self._denoisers:
            self._denoisers[content] = self._take(source, own, f"{own}-{name}")
        return self._denoisers[content]

    def _take(self, source: Bundle, graph: str, name: str) -> str:
        """Copy a graph under another name, with the file of its weights, if there is one."""
        path, entry = source.graph_path(graph), source.spec.graphs[graph]
        file = f"{name}.onnx"
        data = path.with_name(f"{path.name}.data")
        if data.exists():
            shutil.copyfile(data, self._folder / f"{file}.data")
            model = onnx.load(path, load_external_data=False)
            for location in _locations(model):
                location.value = f"{file}.data"
            onnx.save(model, self._folder / file)
            self._stages.append(
                Stage(
                    name=f"{name}: renamed",
                    sha256=files_sha256(self._folder / file),
                    made_from=(files_sha256(path),),
                    parity={},
                    notes={},
                )
            )
        else:
            shutil.copyfile(path, self._folder / file)
        self._graphs[name] = msgspec.structs.replace(entry, file=file)
        return name

    def _check_alike(self, source: Bundle) -> None:
        spec, general = source.spec, self._general
        different = [name for name in _ALIKE if getattr(spec, name) != getattr(general.spec, name)]
        if spec.files[spec.roi.file] != general.spec.files[general.spec.roi.file]:
            different.append("region")
        if _content(source.graph_path("vae")) != _content(general.graph_path("vae")):
            different.append("VAE")
        if different:
            raise ExportError(
                f"expected bundles of the same subject, stream and base model, but {source.folder} differs "
                f"from {general.folder} in {', '.join(different)}; export both in the same form, from "
                "checkpoints that differ only in the window"
            )


def _name(offset_volumes: int) -> str:
    return f"before-{-offset_volumes}" if offset_volumes < 0 else f"after-{offset_volumes}"


def _check_single(source: Bundle) -> None:
    if len(source.spec.decoders) != 1:
        raise ExportError(f"expected bundles with one decoder each, but {source.folder} is a bank")


def _content(path: Path) -> str:
    """SHA-256 of what a graph computes: its file without the metadata on its origin, and its weights."""
    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:]
    for location in _locations(model):
        location.value = ""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    data = path.with_name(f"{path.name}.data")
    if data.exists():
        digest.update(file_sha256(data).encode())
    return digest.hexdigest()


def _locations(model: onnx.ModelProto) -> Iterator[onnx.StringStringEntryProto]:
    """The entries of a graph that name the file of its weights."""
    for tensor in model.graph.initializer:
        yield from (entry for entry in tensor.external_data if entry.key == "location")
