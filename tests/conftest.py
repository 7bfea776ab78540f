"""Settings for all tests: outside tools, signal stacks, and a certificate for those that need one."""

from __future__ import annotations

import datetime
import importlib
import ipaddress
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings

from .signal_stack import signal_stack
from .tools import AGE, CHROMIUM, COMPILER, CURL, MINISIGN, told

# Before torch is loaded, and for the processes that tests start. The models are so small that a second thread
# gains nothing, and threads that spin while they wait for each other take the cores from other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How fast an example runs on a busy machine is no property of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def own_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests' runtimes and scanners keep their keys in a folder of the session's, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield


@pytest.fixture(scope="session")
def age() -> str:
    """The path of age."""
    return AGE.path()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser that speaks Chromium's protocol."""
    return CHROMIUM.path()


@pytest.fixture(scope="session")
def compiler() -> str:
    """The path of the compiler that DeepSpeed needs where it trains on CPUs."""
    return COMPILER.path()


@pytest.fixture(scope="session")
def curl() -> str:
    """The path of curl."""
    return CURL.path()


@pytest.fixture(scope="session")
def minisign() -> str:
    """The path of minisign."""
    return MINISIGN.path()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """After all else, which tools were missing."""
    yield
    for line in told([str(report.longrepr) for report in terminalreporter.getreports("skipped")]):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session", autouse=True)
def signal_stacks() -> list[object]:
    """The alternate signal stack of the main thread, at first and after each test."""
    return [signal_stack()] if sys.platform == "linux" else []


@pytest.fixture(autouse=True)
def keeps_signal_stack(signal_stacks: list[object]) -> Iterator[None]:
    """No test replaces it: a signal on a stack that was unmapped since kills the process."""
    yield
    if sys.platform == "linux":
        signal_stacks.append(signal_stack())
        assert signal_stacks[-1] == signal_stacks[-2], "the test changed the main thread's signal stack"


def _write_certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(map(_name, names)), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "key.pem").chmod(0o600)
    return folder / "cert.pem", folder / "key.pem"


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


@pytest.fixture(scope="session")
def make_certificate() -> Callable[..., tuple[Path, Path]]:
    """``make_certificate(folder, *names)``: a self-signed certificate for these, and its key."""
    return _write_certificate


@pytest.fixture(scope="session")
def load_benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """A benchmark as a module, by its name; they import each other as scripts of one folder do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        yield importlib.import_module


@pytest.fixture(scope="session")
def contributing_example() -> Callable[[str], str]:
    """``contributing_example(file)``: the block of CONTRIBUTING.md whose first line names that file."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^```\w+\n\W*([\w./-]+)[^\n]*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return dict(blocks).__getitem__
