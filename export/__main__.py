"""``python -m export``: makes bundles from checkpoints, banks from bundles, TensorRT engines, signatures."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from export.precision_forms import Form
from realtime.errors import RealtimeError

_DESCRIPTION = """\
Write a bundle: one folder with everything that `realtime` needs to decode a subject without torch.

LoRA is merged into the UNet; the brain module, one step of the sampler and the VAE's decoder become ONNX
graphs; DDIM becomes a table. Every step is compared with the one before, and the bundle is written only if
all differences are within their limits. The bundle contains these figures and the SHA-256 of every step.
"""

_EPILOG = """\
example:

  python -m export bundle --checkpoint checkpoints/sub-01 --out bundles/sub-01
  realtime serve --subject 1 --bundle bundles/sub-01

forms of the graphs:

  (neither option)    compact: fp32 arithmetic, big weights stored as fp16; half the size, for CPUs
  --precision fp32    arithmetic and weights in fp32 (add --compact for the form above)
  --precision fp16    networks compute in fp16: several times as fast on a GPU; `python -m export engines`
                      builds TensorRT engines from it. It runs on a CPU too, but slowly

--out is written completely or not at all. An existing bundle there is replaced, anything else is not. Free
disk space and memory are checked first. The demo's checkpoint takes about a minute.
"""

_BANK_DESCRIPTION = """\
Make a bank: one bundle with a general decoder and specialised ones, from bundles with one decoder each.

`realtime serve` decodes every volume with the general decoder. For each picture that markers announce, it
also decodes the window that each specialised decoder was trained for. Equal graphs are stored and loaded
once.
"""

_BANK_EPILOG = """\
example:

  python -m export bank --general bundles/sub-01 --specialised bundles/before-2 bundles/after-5 \\
      --out bundles/bank
  realtime serve --subject 1 --bundle bundles/bank
"""

_ENGINES_DESCRIPTION = """\
Build TensorRT engines of a bundle for this machine's GPU. They are written into the user's cache, on Linux
~/.cache/realtime-dynadiff, under the bundle's SHA-256. An engine is executable code, so it never travels in a
bundle: build it on every machine that serves, as the user who serves.

The precision of each engine's layers is checked: it is an error if a layer of a float16 graph computes in
float32 without need. Each engine and a whole picture are compared with ONNX Runtime on the CPU. Either all
engines are written or none.
"""

_ENGINES_EPILOG = """\
example:

  python -m export engines --bundle bundles/sub-01 --timing-cache timing.cache
  realtime serve --subject 1 --bundle bundles/sub-01

Needs an NVIDIA GPU and pip install '.[tensorrt]', but not torch. An engine works only with the version of
TensorRT, the GPU architecture and the graphs that it was built for; build again when one of them changes.
"""


_REFERENCE_DESCRIPTION = """\
Write a copy of a bundle with a reference volume: where the subject's head lies on the grid of the bundle's
region. Runs on any other grid are then registered to it, so that the subject can come back for another
session, and to another scanner. A bundle without one takes only volumes on its region's own grid.
"""

_REFERENCE_EPILOG = """\
example:

  python -m export reference bundles/sub-01 --image mean.nii.gz --out bundles/sub-01-anywhere
  realtime serve --subject 1 --bundle bundles/sub-01-anywhere --source folder:/mnt/scanner --volumes 226

The image is best the mean of the volumes that the decoder was trained on. It may have another grid than the
region, but must be in its space (for NSD: func1pt8mm/mean.nii.gz).
"""

_SIGN_DESCRIPTION = """\
Sign a bundle, so that others can check who made it. Its files are checked first; the signature is written
beside bundle.json, which names the SHA-256 of every other file. The format is minisign's: a key of that tool
signs too (minisign -S -s KEY -m BUNDLE/bundle.json), and that tool can check the signature.
"""

_SIGN_EPILOG = """\
example:

  python -m export signing-key ~/lab.key
  python -m export sign bundles/sub-01 --key ~/lab.key
  realtime serve --bundle bundles/sub-01 --require-signed --signer lab.pub
"""

_SIGNING_KEY_DESCRIPTION = """\
Make a key to sign bundles with: FILE is the secret key, which has no password and which only you may read;
beside it, with the suffix .pub, is the public key. Give the public key to those who use your bundles, over a
way that they trust. They pass it as --signer, or put it into the folder signers of realtime's user
configuration.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 2 for an error that the message explains."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        options.run(options)
    except (ExportError, RealtimeError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export", description="Turn a trained checkpoint into a bundle for the runtime."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "bundle",
        help="write a bundle from a checkpoint",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder that `python -m train fit`, or `ridge`, wrote",
    )
    command.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="folder of the base model, if it has been moved since the checkpoint was made",
    )
    command.add_argument(
        "--subject", type=int, help="whose decoder, when the checkpoint has several subjects"
    )
    command.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder of the bundle")
    command.add_argument(
        "--precision", choices=("fp32", "fp16"), help="precision of the arithmetic (default: fp32 --compact)"
    )
    command.add_argument(
        "--compact", action="store_true", help="with fp32 arithmetic: store big weights as fp16"
    )
    command.add_argument(
        "--nsd",
        type=Path,
        metavar="DIR",
        help="root of the recordings: decode held-out windows, and check that identification does not change",
    )
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder that `python -m train prepare` wrote (default: in the checkpoint)",
    )
    command.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="table.md that `python -m train evaluate` wrote, for the model card; the table.json beside it "
        "lets the runtime tell how well the bundle decodes",
    )
    command.add_argument("--name", help="name that the runtime shows (default: the subject, as sub-01)")
    command.set_defaults(run=_bundle)
    _add_bank(commands)
    _add_reference(commands)
    _add_engines(commands)
    _add_signing(commands)
    return parser


def _add_bank(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "bank",
        help="combine bundles of specialised decoders with that of a general one",
        description=_BANK_DESCRIPTION,
        epilog=_BANK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--general", type=Path, required=True, metavar="DIR", help="bundle of the decoder for every volume"
    )
    command.add_argument(
        "--specialised",
        type=Path,
        required=True,
        nargs="+",
        metavar="DIR",
        help="bundles of the same subject and base model, each of a model for another window",
    )
    command.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder of the bank")
    command.set_defaults(run=_bank)


def _add_reference(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "reference",
        help="give a bundle a reference volume, for other sessions and grids",
        description=_REFERENCE_DESCRIPTION,
        epilog=_REFERENCE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    command.add_argument(
        "--image", type=Path, required=True, metavar="FILE", help="NIfTI volume in the space of the region"
    )
    command.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder of the copy")
    command.set_defaults(run=_reference)


def _add_engines(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "engines",
        help="build a bundle's TensorRT engines for this machine's GPU",
        description=_ENGINES_DESCRIPTION,
        epilog=_ENGINES_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="folder of the bundle")
    command.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        help="effort of TensorRT's search for fast kernels, 0 to 5 (default: TensorRT's own, 3)",
    )
    command.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="file with kernel timings; read if it exists, and written, so that the next build is faster",
    )
    command.set_defaults(run=_engines)


def _add_signing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "sign",
        help="sign a bundle",
        description=_SIGN_DESCRIPTION,
        epilog=_SIGN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder of the bundle")
    command.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="secret key that `signing-key` made"
    )
    command.set_defaults(run=_sign)
    command = commands.add_parser(
        "signing-key", help="make a key to sign bundles with", description=_SIGNING_KEY_DESCRIPTION
    )
    command.add_argument("file", type=Path, metavar="FILE", help="where to write the secret key")
    command.set_defaults(run=_signing_key)


def _form(options: argparse.Namespace) -> Form:
    if options.precision == "fp16":
        if options.compact:
            raise ExportError(
                "expected --compact only with fp32 arithmetic, because fp16 weights are small already; leave "
                "out one of the two"
            )
        return "fp16"
    return "compact" if options.compact or options.precision is None else "fp32"


def _bundle(options: argparse.Namespace) -> None:
    form = _form(options)
    from export.bundle.build import export_bundle  # imports torch, which sets up its own logging

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # hides the warning that torchvision is missing
    bundle = export_bundle(
        options.checkpoint,
        options.out,
        form=form,
        nsd=options.nsd,
        cache=options.cache,
        base=options.base,
        subject=options.subject,
        name=options.name,
        evaluation=options.evaluation,
    )
    sizes = [path.stat().st_size for path in bundle.folder.iterdir()]
    print(f"{options.out}: {sum(sizes) / 1e6:.1f} MB, sha256 {bundle.sha256}")
    print(f"serve it: realtime serve --subject {bundle.spec.subject} --bundle {options.out}")


def _bank(options: argparse.Namespace) -> None:
    from export.bundle.bank import make_bank

    made = make_bank(options.general, options.specialised, options.out)
    names = ", ".join(decoder.name for decoder in made.spec.decoders)
    print(f"{options.out}: {names}; {len(made.spec.graphs)} graphs, sha256 {made.sha256}")
    print(f"serve it: realtime serve --subject {made.spec.subject} --bundle {options.out}")


def _reference(options: argparse.Namespace) -> None:
    from export.bundle.reference import add_reference

    made = add_reference(options.bundle, options.image, options.out)
    print(f"{options.out}: registers other grids to {made.spec.reference}, sha256 {made.sha256}")
    print(f"serve it: realtime serve --subject {made.spec.subject} --bundle {options.out}")


def _engines(options: argparse.Namespace) -> None:
    try:
        from export.tensorrt_plans.build import build_engines  # needs packages for machines with a GPU
    except ImportError as error:
        raise ExportError(
            f"expected TensorRT, polygraphy and CUDA's bindings: {error}; install them on a machine with an "
            "NVIDIA GPU: pip install '.[tensorrt]'"
        ) from error
    built = build_engines(
        options.bundle, optimization_level=options.optimization_level, timing_cache=options.timing_cache
    )
    sizes = [path.stat().st_size for path in built.iterdir()]
    print(f"{built}: {sum(sizes) / 1e6:.1f} MB")
    print(f"serve with them: realtime serve --bundle {options.bundle}")


def _sign(options: argparse.Namespace) -> None:
    from export.bundle.sign import sign_bundle

    public = sign_bundle(options.bundle, options.key)
    print(f"{options.bundle}: signed with the key {public.name}")
    print(f"check it: realtime doctor --bundle {options.bundle} --require-signed --signer {public.text}")


def _signing_key(options: argparse.Namespace) -> None:
    from export.bundle.sign import make_signing_key

    public = make_signing_key(options.file)
    print(f"{options.file}: the secret key; keep it to yourself")
    print(f"{public}: the public key; give it to those who use your bundles")


if __name__ == "__main__":
    sys.exit(main())
