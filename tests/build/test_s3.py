"""A team whose store is an S3 bucket: a server on this machine that speaks S3, and one that speaks to nobody."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.build.team import Team, told, tracked
from tests.conftest import Work

KEY, SECRET = "AKIAEXAMPLEEXAMPLE00", "secret-that-nobody-may-read"
READER = """{"Version": "2012-10-17", "Statement": [
{"Effect": "Allow", "Action": ["s3:Get*", "s3:List*", "s3:Head*"], "Resource": "*"}]}"""


@dataclass(frozen=True)
class Server:
    """A server of S3 and the log of its requests."""

    url: str
    log: Path

    def requests(self) -> list[str]:
        """Requests so far: method and path."""
        return [line.split('"')[1].rpartition(" ")[0] for line in self.log.read_text().splitlines() if '"' in line]

    def call(self, path: str, data: bytes | None = None, method: str | None = None) -> None:
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "text/plain"}, method=method)
        with urllib.request.urlopen(request, timeout=30):
            pass

    def reader(self) -> tuple[str, str]:
        """Key and secret of somebody who may read and no more."""
        import boto3  # type: ignore[import-untyped]

        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        iam = boto3.client("iam", endpoint_url=self.url, **keys)
        iam.create_user(UserName="reader")
        iam.put_user_policy(UserName="reader", PolicyName="reader", PolicyDocument=READER)
        found = iam.create_access_key(UserName="reader")["AccessKey"]
        return found["AccessKeyId"], found["SecretAccessKey"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("s3") / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    found = Server(f"http://127.0.0.1:{port}", log)
    try:
        for attempt in range(600):
            try:
                found.call("/moto-api/data.json")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, log.read_text()
                assert attempt < 599
                time.sleep(0.1)
        yield found
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def tracked_template(built_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tracked(built_template, tmp_path_factory.mktemp("tracked") / "project")


def configuration(url: str, more: str = "", key: str = KEY, secret: str = SECRET) -> str:
    return (
        "[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/team\n"
        f"    endpointurl = {url}\n    region = us-east-1\n"
        f"    access_key_id = {key}\n    secret_access_key = {secret}\n{more}"
    )


@pytest.fixture
def team(server: Server, tmp_path: Path) -> Team:
    server.call("/moto-api/reset", b"", "POST")
    server.call("/bucket", b"", "PUT")
    return Team(tmp_path, configuration(server.url))


@pytest.fixture
def anna(team: Team, tracked_template: Path) -> Work:
    work = team.found(tracked_template)
    assert "pushed" in work.sdbuild("push").out
    return work


def test_pushed_by_one_and_built_by_no_other(server: Server, team: Team, anna: Work) -> None:
    assert anna.sdbuild("push").out == "store has everything that is here\n"
    bert = team.join("b")
    assert bert.doit().ran == {}
    assert bert.adapter() == anna.adapter()
    assert not (bert.root / "build/cat/latents").exists()
    assert "pulled" in bert.sdbuild("pull").out
    assert bert.doit().out == "everything is up to date\n"
    assert bert.read("datasets/cats/0000.png") == anna.read("datasets/cats/0000.png")

    # One request a stale step where nobody has built it; what somebody has built is fetched.
    anna.recipe(sample={"guidance": 3})
    before = len(server.requests())
    assert set(anna.doit().ran) == {"cat:samples"}
    (request,) = server.requests()[before:]
    assert request.startswith("GET /bucket?list-type=2&prefix=team/runs/")
    anna.sdbuild("push")
    bert.recipe(sample={"guidance": 3})
    assert bert.doit().ran == {}
    assert bert.read("build/cat/samples/grid.png") == anna.read("build/cat/samples/grid.png")


def test_who_may_not_is_told_once_and_builds(server: Server, team: Team, anna: Work) -> None:
    bert, cleo = team.join("b"), team.join("c")
    bert.sdbuild("pull")
    key, secret = server.reader()
    cleo.write(".dvc/config", configuration(server.url, "", key, secret))
    server.call("/moto-api/reset-auth", b"0", "POST")  # from now on keys are looked at, and only the reader's is known
    try:
        bert.recipe(train={"seed": 1}, sample={"guidance": 3})
        built = bert.doit()
        assert set(built.ran) == {"cat:train", "cat:samples"}
        (word,) = told(built.text)
        assert "Access Key Id you provided does not exist" in word
        assert word.endswith("; going on without it")
        for command in ("push", "pull"):
            refused = bert.sdbuild(command, code=1)
            assert refused.out == ""
            assert refused.err.startswith("remote store: ")
            assert len(refused.err.splitlines()) == 1
            assert KEY not in refused.err + word
            assert SECRET not in refused.err + word

        assert "pulled" in cleo.sdbuild("pull").out
        assert cleo.sdbuild("push").out == "store has everything that is here\n"
        cleo.recipe(sample={"guidance": 3})
        assert set(cleo.doit().ran) == {"cat:samples"}
        refused = cleo.sdbuild("push", code=1)
        assert refused.err == "remote store: Access Denied\n"
    finally:
        server.call("/moto-api/reset-auth", b"1000000000", "POST")
    assert "pushed" in bert.sdbuild("push").out


def test_a_bucket_that_is_gone(server: Server, team: Team, anna: Work) -> None:
    server.call("/moto-api/reset", b"", "POST")
    anna.recipe(sample={"guidance": 3})
    result = anna.doit()
    assert set(result.ran) == {"cat:samples"}
    assert len(told(result.text)) == 1
    refused = anna.sdbuild("push", code=1)
    assert refused.err.startswith("remote store: The specified bucket does not exist")
    assert len(refused.text.splitlines()) == 1


def test_a_server_that_is_off_or_never_answers(built: Work) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        built.write(".dvc/config", configuration(url))
        started = time.monotonic()
        refused = built.sdbuild("push", code=1)
        assert "could not connect" in refused.err.lower(), refused.err
        assert len(refused.text.splitlines()) == 1

        mute.listen(100)
        built.write(".dvc/config", configuration(url, "    read_timeout = 3\n"))
        built.recipe(sample={"guidance": 3})
        result = built.doit()
        assert set(result.ran) == {"cat:samples"}
        assert told(result.text) == ["warning: remote store: no answer for 3 s; going on without it"]
        refused = built.sdbuild("pull", code=1)
        assert refused.err == "remote store: no answer for 3 s\n"
        assert time.monotonic() - started < 200
