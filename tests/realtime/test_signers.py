"""A bundle says who signed it, and only a trusted signer's signature of just this bundle counts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime.bundle import minisign as format_of
from realtime.bundle.bundle import Bundle
from realtime.bundle.signers import (
    SIGNATURE_FILE,
    Trust,
    given_signers,
    pinned_signers,
    signers_folder,
)
from realtime.bundle.user_cache import PACKAGE
from realtime.cli import main
from realtime.errors import BundleError

# Made by minisign 0.11: `minisign -G -W`, and `minisign -S -t "trusted words"` of a file with "hello\n".
BY_MINISIGN_PUBLIC = "RWSsUI1a1tOReO24fytU1ZgDxwB+SLxK0AiPDbRNXgVPy3SxZUPEeBY8"
BY_MINISIGN_SECRET = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAArFCNWtbTkXiDwgdTp7Ub8k3EOncAp4NQda4M"
    "tjV3d0eADxlyBAcH/+24fytU1ZgDxwB+SLxK0AiPDbRNXgVPy3SxZUPEeBY8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
)
BY_MINISIGN_SIGNED = b"hello\n"
BY_MINISIGN_SIGNATURE = (
    "untrusted comment: signature from minisign secret key\n"
    "RUSsUI1a1tOReJNo1MG7w6pz3r5SPg9NLnkLk90t3hkb0ppmsSeBL69hm/0glBTs6yeJNuyJTTdT/QXLrPaY4Ks7NRQzBXqDRgo=\n"
    "trusted comment: trusted words\n"
    "IduepqJvAx26PwFRllVIHx3K2OBDs15Kk8RuXHta7O4J3K6w+Z1QaUON+zREvmS6zZZerJ/V3wg+xw4LUGyXCg==\n"
)


@pytest.fixture
def folder(make_tiny_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    return make_tiny_bundle(tmp_path / "bundle")


@pytest.fixture
def key() -> format_of.SecretKey:
    return format_of.new_secret_key()


@pytest.fixture
def trust(key: format_of.SecretKey) -> Trust:
    return Trust(signers=given_signers([key.public.text]), required=True)


def sign(folder: Path, key: format_of.SecretKey) -> None:
    signature = format_of.sign((folder / "bundle.json").read_bytes(), key, "made by a test")
    (folder / SIGNATURE_FILE).write_text(signature)


def test_minisigns_own_files_are_read() -> None:
    public = format_of.read_public_key(BY_MINISIGN_PUBLIC, "a lab")
    secret = format_of.read_secret_key(BY_MINISIGN_SECRET)
    signature = format_of.read_signature(BY_MINISIGN_SIGNATURE)
    assert (public.name, public.text) == ("a lab", BY_MINISIGN_PUBLIC)
    assert format_of.id_text(public.id) == "7891D3D65A8D50AC"
    assert secret.public.text == BY_MINISIGN_PUBLIC
    assert signature.trusted_comment == "trusted words"
    assert format_of.is_signed(BY_MINISIGN_SIGNED, signature, public)
    # Ed25519 has no randomness: the same content, key and comment give the same signature.
    again = format_of.sign(BY_MINISIGN_SIGNED, secret, "trusted words")
    assert again.splitlines()[1:] == BY_MINISIGN_SIGNATURE.splitlines()[1:]


@given(data=st.data())
def test_no_other_content_signature_comment_or_key_passes(data: st.DataObject) -> None:
    content, lines = bytearray(BY_MINISIGN_SIGNED), BY_MINISIGN_SIGNATURE.split("\n")
    public = format_of.read_public_key(BY_MINISIGN_PUBLIC, "a lab")
    what = data.draw(st.sampled_from(["content", "signature", "comment", "key"]))
    if what == "content":
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif what == "key":
        public = format_of.new_secret_key().public
    else:
        number = {"signature": data.draw(st.sampled_from([1, 3])), "comment": 2}[what]
        line = lines[number]
        at = data.draw(st.integers(len("trusted comment: ") if number == 2 else 0, len(line) - 3))
        other = data.draw(st.sampled_from("ABCabc123/+").filter(lambda letter: letter != line[at]))
        lines[number] = line[:at] + other + line[at + 1 :]
    try:
        signature = format_of.read_signature("\n".join(lines))
    except ValueError:
        return
    if signature.id == public.id:
        assert not format_of.is_signed(bytes(content), signature, public)


@given(text=st.text() | st.binary().map(lambda content: content.decode("latin-1")))
def test_any_text_is_a_key_or_a_signature_or_a_value_error(text: str) -> None:
    for read in (
        format_of.read_signature,
        format_of.read_secret_key,
        lambda text: format_of.read_public_key(text, ""),
    ):
        with pytest.raises(ValueError, match="expected|ASCII"):
            read(text)


def test_minisign_and_this_project_accept_each_others_files(
    minisign: str, tmp_path: Path, key: format_of.SecretKey
) -> None:
    def run(*arguments: str | Path) -> None:
        subprocess.run([minisign, *map(str, arguments)], check=True, capture_output=True, cwd=tmp_path)

    content = b"any content\0\xff"
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "ours.pub").write_text(format_of.public_key_file(key.public))
    (tmp_path / "ours.key").write_text(format_of.secret_key_file(key))
    (tmp_path / "file.minisig").write_text(format_of.sign(content, key, "a comment: with\ttabs and é"))
    run("-V", "-p", "ours.pub", "-m", "file")
    run("-V", "-P", key.public.text, "-m", "file")
    run("-S", "-s", "ours.key", "-m", "file", "-x", "by-minisign")
    run("-V", "-p", "ours.pub", "-m", "file", "-x", "by-minisign")
    run("-G", "-W", "-p", "theirs.pub", "-s", "theirs.key")
    run("-S", "-s", "theirs.key", "-m", "file", "-x", "theirs", "-t", "  spaces  ")
    for public, name in (("ours.pub", "by-minisign"), ("theirs.pub", "theirs")):
        signature = format_of.read_signature((tmp_path / name).read_text())
        assert format_of.is_signed(
            content, signature, format_of.read_public_key((tmp_path / public).read_text(), "")
        )
    theirs = format_of.read_secret_key((tmp_path / "theirs.key").read_text())
    assert format_of.public_key_file(theirs.public) == (tmp_path / "theirs.pub").read_text()


def test_a_bundle_says_who_signed_it(folder: Path, key: format_of.SecretKey, trust: Trust) -> None:
    assert Bundle.open(folder).signed.description == "unsigned"
    sign(folder, key)
    signed = Bundle.open(folder, trust).signed
    assert (signed.by, signed.description) == (key.public.name, f"signed by {key.public.name}")
    stranger = Bundle.open(folder).signed
    assert stranger.by is None
    assert stranger.description == f"signed by the key {key.public.name}, which is not a trusted signer's"


def test_a_bundle_that_must_be_signed_and_is_not_is_refused(
    folder: Path, key: format_of.SecretKey, trust: Trust
) -> None:
    with pytest.raises(
        BundleError, match=rf"trusted signer \({key.public.name}\), found one that is unsigned"
    ):
        Bundle.open(folder, trust)
    sign(folder, format_of.new_secret_key())
    with pytest.raises(BundleError, match=r"found one that is signed by the key [0-9A-F]{16}, which is not"):
        Bundle.open(folder, trust)
    with pytest.raises(BundleError, match=r"trusted signer \(nobody yet\)"):
        Bundle.open(folder, Trust(required=True))


def test_a_signature_of_other_content_is_refused_even_where_none_is_required(
    folder: Path, key: format_of.SecretKey, trust: Trust
) -> None:
    sign(folder, key)
    path = folder / "bundle.json"
    path.write_bytes(path.read_bytes().replace(b'"tiny"', b'"huge"'))
    for required in (True, False):
        with pytest.raises(BundleError, match=r"minisig: expected the signature of .*did not sign"):
            Bundle.open(folder, Trust(signers=trust.signers, required=required))


def test_the_id_of_a_trusted_key_is_no_proof(folder: Path, key: format_of.SecretKey, trust: Trust) -> None:
    sign(folder, format_of.SecretKey(id=key.id, seed=format_of.new_secret_key().seed))
    with pytest.raises(BundleError, match="did not sign"):
        Bundle.open(folder, trust)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a\nb\nc\nd\n", b"x" * 5000])
def test_a_damaged_signature_is_named(folder: Path, content: bytes) -> None:
    (folder / SIGNATURE_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json\.minisig: expected"):
        Bundle.open(folder)


@pytest.fixture
def signers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of trusted signers, in a configuration folder of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = signers_folder()
    assert folder == platformdirs.user_config_path(PACKAGE) / "signers"
    assert not pinned_signers()
    folder.mkdir(parents=True, mode=0o700)
    return folder


def test_signers_are_pinned_as_files_that_only_the_user_may_write(
    signers: Path, folder: Path, key: format_of.SecretKey
) -> None:
    sign(folder, key)
    (signers / "our lab.pub").write_text(format_of.public_key_file(key.public))
    (signers / "notes.txt").write_text("no key")
    assert Bundle.open(folder, Trust(signers=pinned_signers(), required=True)).signed.by == "our lab"
    signers.chmod(0o777)
    with pytest.raises(BundleError, match=r"signers: expected .* only this user may write"):
        pinned_signers()
    signers.chmod(0o700)
    (signers / "our lab.pub").chmod(0o666)
    with pytest.raises(BundleError, match=r"our lab\.pub: expected .* only this user may write"):
        pinned_signers()
    (signers / "our lab.pub").chmod(0o644)
    (signers / "other.pub").write_text("no key")
    with pytest.raises(BundleError, match=r"other\.pub: expected a public key of minisign's"):
        pinned_signers()


def test_a_signer_is_given_as_a_key_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lab.pub"
    file.write_text(BY_MINISIGN_PUBLIC + "\n")
    names = [each.name for each in given_signers([str(file), BY_MINISIGN_PUBLIC])]
    assert names == ["lab", "7891D3D65A8D50AC"]
    with pytest.raises(BundleError, match=r"nowhere\.pub: expected a public key of minisign's"):
        given_signers(["nowhere.pub"])


@pytest.mark.usefixtures("signers")
@pytest.mark.parametrize(
    "command", [("doctor",), ("bench", "-n", "1"), ("serve", "--headless"), ("replay", "{run}")]
)
def test_every_command_that_opens_a_bundle_can_require_a_signature(
    command: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(__file__).parent / "serving" / "format_1" / "runs" / "sub-01_task-closed"
    arguments = [part.format(run=run) for part in command]
    out = [] if "bench" in command else ["--out", str(tmp_path / "out")]
    status = main([*arguments, "--bundle", str(folder), "--require-signed", *out])
    assert status == 2
    assert "expected a bundle signed by a trusted signer (nobody yet), found" in capsys.readouterr().err


@pytest.mark.usefixtures("signers")
def test_the_doctor_says_who_signed(
    folder: Path, key: format_of.SecretKey, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(folder, key)
    arguments = ["--signer", key.public.text, "--require-signed", "--out", str(tmp_path)]
    assert main(["doctor", "--bundle", str(folder), *arguments]) == 0
    assert f", signed by {key.public.name}\n" in capsys.readouterr().out
